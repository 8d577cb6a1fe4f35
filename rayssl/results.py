"""Result folders -> runs: what experiments/ wrote, of one run or of a thousand, read again.

A *run* is one training: one seed of one arm. An *arm* is what runs that differ in their seed only
share. The layouts are those of the README ("What a run leaves behind") and of docs/results.md.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeGuard

import numpy as np
import pandas as pd

from rayssl.envs.atari import AtariSettings, game_title
from rayssl.evaluation import aux_weight_of, trained_with
from rayssl.presets import AtariRun
from rayssl.report import read_epochs, read_run
from rayssl.training import PROTOCOLS, ClassifierSettings

# What names an arm, by job. The first group is void where there is no pretext loss.
AUX_SETTINGS: Final = {
    "atari": ("aux_task", "aux_weight", "aux_every", "schedule", "pretrain_updates", "optimizers",
              "aux_samples"),
    "mnist": ("aux_task", "aux_weight", "aux_copies"),
}  # fmt: skip
CONTEXT_SETTINGS: Final = {"atari": ("network",), "mnist": ("protocol",)}
# Not worth a word in an arm's name: the paper's own, section IV.
USUAL: Final = {
    "aux_every": 1, "schedule": "alternate", "pretrain_updates": 0, "optimizers": "shared",
    "aux_copies": None, "aux_combine": "cycle", "aux_samples": "usable",
}  # fmt: skip
AUX_NAMES: Final = {"aux_task", "aux_weight", "init_from", "freeze_trunk", *USUAL}
# Where and how a run was computed, not what: two runs of an arm may differ in these.
HOUSEKEEPING: Final = {
    "seed", "seeds", "name", "results_dir", "resume", "address", "num_workers", "num_learners",
    "num_gpus", "num_cpus", "learner_cpus", "checkpoint_every", "save_replay", "data_dir", "verify",
    "compile", "cuda_graphs", "replay_device", "steps_per_report", "evaluate_every",
    "evaluation_games", "preset", "game",
    "dataset", "trial", "restore_from",
}  # fmt: skip
# Games of several lengths are compared where all have come; of other jobs the end alone is scored.
GAME_LENGTH, LENGTH = "steps", "epochs"
PAPER_CODE: Final = "paper-code"  # preset of games, and the protocol that it stands for
AUX_ONLY: Final = "aux-only"  # schedule without a TD update: a trunk for other runs
PBT: Final = "pbt"  # a sweep's scheduler that changes settings and weights on the way
SWEEP, TRIALS, SETTINGS = "sweep.json", "trials.csv", "settings.json"
LAYOUT_VERSION = 1  # of docs/results.md
CLASSES: Final = 10  # of every data set of experiments/mnist.py

Settings = Mapping[str, Any]
Pairs = tuple[tuple[str, Any], ...]


def in_words(pair: tuple[str, Any]) -> str:
    """Returns a setting with its value: `compute-dtype float32`."""
    name, value = pair
    return f"{name.replace('_', '-')} {value}"


class ArmKey(NamedTuple):
    """What the runs of an arm share.

    Attributes:
      job: `atari`, `mnist`, ...
      where: the game or data set.
      context: settings that arms must share to be compared, e.g. network or protocol; of games,
        the preset `paper-code` is a protocol, any other is none, and the schedule `aux-only`
        stands here. So does the scheduler `pbt`, under which aux is that of the start.
      aux: the pretext task, its weight and its schedule; in a contrast (rayssl.comparison) also the
        settings whose values are set beside one another.
    """

    job: str
    where: str
    context: Pairs
    aux: Pairs

    @property
    def task(self) -> str:
        """Name of the pretext task; `none`."""
        return str(dict(self.aux).get("aux_task", "none"))

    @property
    def weight(self) -> float:
        """Of the pretext loss, the largest if there are several; 0 without one."""
        weights = str(dict(self.aux).get("aux_weight", 0.0)).split(",")
        return max(float(weight) for weight in weights)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the job's own loss is trained, all of it, from random weights."""
        return self.weight == 0 and self.is_from_scratch

    @property
    def is_from_scratch(self) -> bool:
        """Whether the trunk is trained, from random weights."""
        return not {"init_from", "freeze_trunk"} & dict(self.aux).keys()

    @property
    def is_pretrained(self) -> bool:
        """Whether training starts from another run's trunk."""
        return "init_from" in dict(self.aux)

    @property
    def name(self) -> str:
        """`none`, or `permutation, weight 1, every 4`; `none, trunk from pretrained`."""
        values = dict(self.aux)
        frozen = "frozen " if "freeze_trunk" in values else ""
        source = f" from {values['init_from']}" if self.is_pretrained else ""
        start = [] if self.is_from_scratch else [f"{frozen}trunk{source}"]
        more = [in_words(pair) for pair in self.aux if pair[0] not in AUX_NAMES]
        if self.task == "none":
            return ", ".join(["none", *start, *more])
        several = isinstance(values["aux_weight"], str)
        words = [
            self.task,
            f"weight {values['aux_weight'] if several else f'{self.weight:g}'}",
            *start,
        ]
        short = {"aux_every": "every", "pretrain_updates": "pretrained for", "schedule": "",
                 "optimizers": "optimizers", "aux_copies": "copies",
                 "aux_combine": "combined by", "aux_samples": "samples"}  # fmt: skip
        for key, word in short.items():
            if key in values and values[key] != USUAL[key]:
                words.append(f"{word} {values[key]}".strip())
        return ", ".join([*words, *more])

    @property
    def setting(self) -> str:
        """The context in words: `protocol strict`."""
        return ", ".join(map(in_words, self.context))


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
      key: its arm.
      seed: as `--seed`.
      settings: all of them.
      commits: of its starts, each once.
      rows: its log, sorted by `x`; empty where only the sweep's table knows it.
      epochs: of a classifier, as `rayssl.report.read_epochs` returns them.
      x: the column of `rows` that counts progress.
      planned: where it would end.
      reached: where it is.
      reported: the value that its protocol reports; None before its end, and for games, whose
        score is read from `rows` where a comparison needs it.
      source: the folder, and the trial within.
    """

    key: ArmKey
    seed: int
    settings: Settings
    commits: tuple[str, ...]
    rows: pd.DataFrame
    x: str
    planned: int
    reached: int
    reported: float | None
    source: str
    epochs: Sequence[Mapping[str, Any]] = ()

    @property
    def finished(self) -> bool:
        """Whether it came to its planned end."""
        return self.reached >= self.planned

    def curve(self, column: str) -> pd.DataFrame:
        """Returns the log's rows in which a column has a number; none if there is no column."""
        if column not in self.rows:
            return self.rows.iloc[:0]
        return self.rows[self.rows[column].notna()]

    def value_at(self, column: str, limit: float) -> float | None:
        """Returns a column's last number up to a number of steps; None without."""
        known = self.curve(column)
        if known.empty:  # of a job whose log has no reader here: no columns at all
            return None
        known = known[known[self.x] <= limit]
        return float(known[column].iloc[-1]) if len(known) else None


@dataclass(frozen=True)
class Evaluation:
    """Whole games of a trained agent, or of the random one: a row of experiments/evaluate.py.

    `network`, `seed`, `env_steps`, `td_updates`: of the training; None for the random agent.
    `aux_weight`: the largest of its pretext losses; None in files that are older than it.
    `training`: options of experiments/atari.py that it learned with, sorted; likewise.
    `epsilon`, `sticky`: of the play. `life_mean`: the mean over lives of their clipped scores; None
    in files that are older than it.
    """

    game: str
    agent: str
    aux_task: str
    aux_weight: float | None
    network: str | None
    seed: int | None
    env_steps: int | None
    td_updates: int | None
    epsilon: float
    sticky: float
    num: int
    mean: float
    low: float | None
    high: float | None
    iqm: float
    life_mean: float | None
    commit: str
    source: str
    training: Pairs | None = None


@dataclass(frozen=True)
class Probe:
    """A finished classifier over frozen features, for Table III.

    Attributes:
      faces: what the faces are; anything but DFDC's says so.
      protocol, backbone, layer, classifier, split, seed: of its settings.
      accuracy: per frame, in per cent, with the ends of its interval over videos.
      commits, source: see `Run`.
    """

    faces: str
    protocol: str
    backbone: str
    layer: str
    classifier: str
    split: str
    seed: int
    accuracy: tuple[float, float, float]
    commits: tuple[str, ...]
    source: str


class LeftOut(NamedTuple):
    """A folder, file or trial that is not on the page, and why."""

    source: str
    why: str


class Asked(NamedTuple):
    """A training that a sweep's or an experiment's settings ask for."""

    key: ArmKey
    seed: int
    settings: Settings


@dataclass
class Results:
    """Everything that some folders hold.

    Attributes:
      runs: in the order of the folders.
      asked: trainings that sweeps and experiments were to make, whether they ran or not.
      evaluations, probes, left_out: see there.
      notes: what a reader should know of single trials (failed, ended early).
    """

    runs: list[Run] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[LeftOut] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing could be read."""
        return not (self.runs or self.evaluations or self.probes)


def read_results(paths: Iterable[str | Path]) -> Results:
    """Returns what these folders and evaluation files hold.

    A folder may be a run, an experiment of mnist.py, a sweep, or hold any of them at any depth.
    What cannot be read is listed with its reason; nothing is raised for it. Trainings of one arm
    and seed that differ in a setting are told apart by it, as those of a sweep over it are.
    """
    found = Results()
    seen: set[Path] = set()
    for path in map(Path, paths):
        if path.is_file():
            _read_evaluation(path, found, seen)
        elif not path.is_dir():
            found.left_out.append(LeftOut(str(path), "there is no such file or folder"))
        elif not (_read_folder(path, found, seen) | _read_evaluations_below(path, found, seen)):
            why = "holds no progress.csv, epochs.jsonl, sweep.json or *evaluation*.json"
            found.left_out.append(LeftOut(str(path), why))
    _tell_apart(found)
    _shorten_trunks(found)
    return found


def unnamed_settings(key: ArmKey, settings: Settings) -> set[str]:
    """Returns the settings of what was trained that an arm's name and context do not tell."""
    told = {*AUX_SETTINGS.get(key.job, ()), *CONTEXT_SETTINGS.get(key.job, ()), *AUX_NAMES}
    told |= {*dict(key.context), *dict(key.aux)}
    return set(settings) - told - HOUSEKEEPING


def _tell_apart(found: Results) -> None:
    """Puts settings in which two runs of one arm and seed differ into the context of their kind.

    All arms of the game or data set get them, so that arms with equal values are compared. So do
    runs beside a sweep: the settings that it varied are put into their contexts, too. A longer run
    of a game is no other arm. Other jobs' runs, which are scored at their end, are told apart by
    their epochs wherever these differ, whatever the arm and seed.
    """
    runs: dict[tuple[ArmKey, int], list[Run]] = {}
    for run in found.runs:
        runs.setdefault((run.key, run.seed), []).append(run)
    names: dict[tuple[str, str, Pairs], set[str]] = {}
    for (key, _), twins in runs.items():
        first = twins[0].settings
        told = names.setdefault(_kind(key), set())
        told |= {name for name, _ in key.context if name not in _KINDS}
        for name in unnamed_settings(key, first) - {GAME_LENGTH, LENGTH}:
            if any(name in run.settings and run.settings[name] != first[name] for run in twins):
                told.add(name)
    lengths: dict[tuple[str, str, Pairs], set[Any]] = {}
    for run in found.runs:
        if run.key.job != "atari":
            lengths.setdefault(_kind(run.key), set()).add(_plain(run.settings.get(LENGTH)))
    for kind, values in lengths.items():
        if len(values) > 1:
            names.setdefault(kind, set()).add(LENGTH)

    def completed(key: ArmKey, settings: Settings) -> ArmKey:
        kind = _kind(key)
        own = {name: value for name, value in key.context if name not in _KINDS}
        more = {name: _plain(settings.get(name)) for name in names.get(kind, ())}
        return key._replace(context=kind[2] + tuple(sorted((more | own).items())))

    found.runs = [dataclasses.replace(r, key=completed(r.key, r.settings)) for r in found.runs]
    found.asked = [each._replace(key=completed(each.key, each.settings)) for each in found.asked]


# Of a context, what is there whether or not it was varied.
_KINDS: Final = {"network", "protocol", "schedule", "environments", "scheduler"}


def _kind(key: ArmKey) -> tuple[str, str, Pairs]:
    """What runs share that only the settings that were varied tell apart."""
    return key.job, key.where, tuple(pair for pair in key.context if pair[0] in _KINDS)


def _shorten_trunks(found: Results) -> None:
    """Leaves of the trunks' paths in the arms' keys what keeps them apart: `pretrained`."""
    keys = [run.key for run in found.runs] + [each.key for each in found.asked]
    names = short_paths({dict(key.aux)["init_from"] for key in keys if key.is_pretrained})

    def shortened(key: ArmKey) -> ArmKey:
        aux = tuple((n, names[v] if n == "init_from" else v) for n, v in key.aux)
        return key._replace(aux=aux)

    found.runs = [dataclasses.replace(run, key=shortened(run.key)) for run in found.runs]
    found.asked = [each._replace(key=shortened(each.key)) for each in found.asked]


def short_paths(paths: Iterable[str]) -> dict[str, str]:
    """Returns path -> its last parts, as many as no other path ends with.

    Of a checkpoint, whose own name says little, these begin with its run, and leave out the folder
    between, which Tune names: `run/checkpoint_000003`. Where that is not enough: the whole path.
    """
    found: dict[str, tuple[str, ...]] = {}
    for path in paths:
        *above, last = Path(path).parts
        if last.startswith("checkpoint_") and above and above[-1].startswith("from-"):
            above.pop()
        found[path] = (*above, last)
    names = {}
    for path, parts in found.items():
        others = [other for each, other in found.items() if each != path]
        least = 2 if parts[-1].startswith("checkpoint_") else 1
        tails = (parts[-number:] for number in range(least, len(parts) + 1))
        free = (tail for tail in tails if not any(o[-len(tail) :] == tail for o in others))
        names[path] = str(Path(*next(free, Path(path).parts)))
    return names


def arm_key(job: str, settings: Settings, varied: Iterable[str] = ()) -> ArmKey:
    """Returns the arm that settings belong to.

    Args:
      job: a job without names of its own here is taken by what its sweep varied.
      varied: further settings that a sweep varied on purpose.
    Raises:
      KeyError: if a setting that names the arm is missing.
      ValueError: if a value is none that a run can have.
    """
    where = game_title(settings["game"]) if job == "atari" else str(settings.get("dataset", job))
    aux_names = AUX_SETTINGS.get(job, ("aux_task", "aux_weight"))
    context_names = [*CONTEXT_SETTINGS.get(job, ())]
    named = {*aux_names, *context_names, *HOUSEKEEPING, "init_from", "freeze_trunk"}
    context_names += [name for name in varied if name not in named]
    context = tuple((name, _plain(settings[name])) for name in context_names)
    if job == "atari" and settings.get("preset") == PAPER_CODE:
        context += (("protocol", PAPER_CODE),)  # judged by another measure than all others
        runners = max(1, int(settings.get("num_workers", 0)))
        environments = int(settings.get("envs_per_worker", 1)) * runners
        if environments != 1:  # the authors' code has one
            context += (("environments", environments),)
    if settings.get("schedule") == AUX_ONLY:
        context += (("schedule", AUX_ONLY),)  # its Q-values are those of the start
        aux_names = tuple(name for name in aux_names if name != "schedule")
    task = str(settings.get("aux_task") or "none")
    start = _start(settings)
    if "+" in task:
        aux_names = (*aux_names, "aux_combine")
    weight = 0.0 if task == "none" else _weight(settings["aux_weight"])
    if task == "none":
        return ArmKey(job, where, context, (("aux_task", task), *start))
    if weight == 0:
        return ArmKey(job, where, context, (("aux_task", task), ("aux_weight", weight), *start))
    known = {**settings, "aux_weight": weight}
    aux = tuple((n, _plain(known.get(n, USUAL.get(n)))) for n in aux_names)
    return ArmKey(job, where, context, (*aux, *start))


def _start(settings: Settings) -> Pairs:
    """Whose trunk a training of games starts from, by its whole path, and whether it stays that.

    Nothing if the trunk is trained from random weights.
    """
    path = settings.get("init_from")
    frozen = (("freeze_trunk", True),) if settings.get("freeze_trunk") else ()
    return (("init_from", str(Path(str(path)))), *frozen) if path else frozen


def _weight(value: Any) -> float | str:
    """A weight, or the text of several, one for each task."""
    weight = value if isinstance(value, str) and "," in value else float(value)
    for each in map(float, str(weight).split(",")):
        _expect(math.isfinite(each) and each >= 0, "an aux_weight of 0 or more", value)
    return weight


def _plain(value: Any) -> Any:
    """A value that can be a dictionary's key."""
    return value if isinstance(value, str | int | float | None) else json.dumps(value)


def _read_folder(folder: Path, found: Results, seen: set[Path]) -> bool:
    """Reads the results in a folder, or below it; whether there are any, readable or not."""
    if folder.resolve() in seen:
        return True
    seen.add(folder.resolve())
    try:
        inside = sorted(folder.iterdir())
        files = {path.name for path in inside if path.is_file()}
        below = [path for path in inside if path.is_dir() and not path.is_symlink()]
    except OSError as error:
        found.left_out.append(LeftOut(str(folder), f"it cannot be read: {error.strerror}"))
        return True
    if SWEEP in files and _is_whole_sweep(folder):
        _try(_read_sweep, folder, found)
    elif SWEEP in files:
        why = f"{SWEEP} is damaged: its trials are read by themselves"
        found.left_out.append(LeftOut(str(folder), why))
        for child in below:
            _read_folder(child, found, seen)
    elif "epochs.jsonl" in files:
        _try(_read_epochs, folder, found)
    elif "progress.csv" in files:
        _try(_read_game, folder, found)
    else:
        known = [_read_folder(child, found, seen) for child in below]  # each of them is read
        if SETTINGS not in files:
            return any(known)
        if not any(known):
            why = "no log: it ended before its first report"
            found.left_out.append(LeftOut(str(folder), why))
    return True


def _is_whole_sweep(folder: Path) -> bool:
    try:
        return "trials" in json.loads((folder / SWEEP).read_text())
    except (OSError, ValueError, TypeError):
        return False


def _try(reader: Callable[..., None], folder: Path, found: Results, **words: Any) -> None:
    """Runs a reader; its trouble becomes one line of `left_out`."""
    try:
        reader(folder, found, **words)
    except _ERRORS as error:
        text = " ".join(str(error).split())
        if not isinstance(error, _ExpectedError):
            text = f"expected the files as experiments/ writes them, got {_name(error)}: {text}"
        found.left_out.append(LeftOut(str(folder), text))


# What damaged files lead to; ArithmeticError: inf where a whole number should be.
_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError)


class _ExpectedError(ValueError):
    """Says itself what was expected."""


def _expect(is_right: bool, what: str, got: Any) -> None:
    """Raises _ExpectedError unless a value is what a page can show."""
    if not is_right:
        text = repr(got)
        raise _ExpectedError(f"expected {what}, got {text[:60]}{'...' * (len(text) > 60)}")


def _name(error: Exception) -> str:
    return type(error).__name__


def _saved(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Settings and commits of a run's or an experiment's settings.json."""
    saved = json.loads((folder / SETTINGS).read_text())
    return dict(saved["settings"]), _commits(saved)


def _commits(saved: Mapping[str, Any]) -> tuple[str, ...]:
    starts = saved.get("starts", [saved])
    return tuple(dict.fromkeys(str(start.get("commit") or "no commit") for start in starts))


_GAME_DEFAULTS = {field.name: field.default for field in dataclasses.fields(AtariRun)}


def _read_game(folder: Path, found: Results, varied: Sequence[str] = ()) -> None:
    """Adds a run of experiments/atari.py; for options that are younger than it, their defaults."""
    rows = read_run(folder)
    settings, commits = _saved(folder)
    settings = _GAME_DEFAULTS | settings
    for name in rows:
        if not pd.api.types.is_numeric_dtype(rows[name]) and rows[name].notna().any():
            raise _ExpectedError(f"progress.csv is damaged: column {name} holds text")
        if (name in COUNTERS or "score" in name) and np.isinf(rows[name]).any():
            raise _ExpectedError(f"progress.csv is damaged: column {name} holds infinity")
    for name in ("steps", "steps_per_report", "evaluate_every", "learning_starts"):
        _expect(_is_count(settings[name]), f"a whole number as {name}", settings[name])
    rows["score_mean_100"]  # KeyError here, where the folder's name is known
    found.runs.append(Run(
        key=arm_key("atari", settings, varied), seed=int(settings["seed"]), settings=settings,
        commits=commits, rows=rows, x="env_steps", planned=int(settings["steps"]),
        reached=int(rows["env_steps"].iloc[-1]), reported=None, source=str(folder),
    ))  # fmt: skip


WHOLE_GAME_FRAMES: Final = AtariSettings.max_game_frames  # half an hour: the field's own limit
# Whole numbers of a run of games.
COUNTERS: Final = ("env_steps", "games", "td_updates", "aux_updates", "evaluation_games")


def _read_epochs(folder: Path, found: Results) -> None:
    """Adds what an epochs.jsonl holds: trials of mnist.py, or probes of deepfake.py."""
    rows = read_epochs(folder)
    if rows and "backbone" in rows[0]:
        _read_probes(folder, found)
    elif rows and "test_confusion" not in rows[0] and "validation_accuracy" not in rows[0]:
        raise _ExpectedError("its epochs.jsonl is of a job that this page has no table for")
    else:
        _read_classifiers(folder, found)


def _read_probes(folder: Path, found: Results, varied: Sequence[str] = ()) -> None:
    """Adds the finished probes of experiments/deepfake.py."""
    saved = json.loads((folder / SETTINGS).read_text())
    settings, commits = dict(saved["settings"]), _commits(saved)
    faces = str(saved["faces"]["dataset"] if "faces" in saved else settings["faces"])
    last = {str(row["trial"]): row for row in read_epochs(folder)}
    for name, row in last.items():
        if not row.get("done"):
            found.notes.append(LeftOut(f"{folder}: {name}", "not finished"))
            continue
        value, low, high = (100 * float(v) for v in row["frame_accuracy"])
        if not math.isfinite(value):
            why = f"expected a finite frame_accuracy, got {value / 100}"
            found.left_out.append(LeftOut(f"{folder}: {name}", why))
            continue
        found.probes.append(Probe(
            faces=faces, protocol=str(row["protocol"]), backbone=str(row["backbone"]),
            layer=str(row["layer"]), classifier=str(row["classifier"]), split=str(row["split"]),
            seed=int(row["seed"]), accuracy=(value, low, high), commits=commits,
            source=str(folder),
        ))  # fmt: skip
    for backbone, why in dict(saved.get("missing", {})).items():
        found.notes.append(LeftOut(f"{folder}: {backbone}", f"not run: {why}"))


def _read_classifiers(folder: Path, found: Results, varied: Sequence[str] = ()) -> None:
    """Adds the trials of an experiment of experiments/mnist.py, or the one of a sweep's folder."""
    settings, commits = _saved(folder)
    dataset = {"dataset": settings["dataset"]}
    single = {k: v for k, v in settings.items() if not isinstance(v, list)}  # of every trial
    if isinstance(settings.get("protocol"), list):
        for each in _asked_of_mnist(settings):
            asked = single | each | dataset
            found.asked.append(Asked(arm_key("mnist", asked), each["seed"], asked))
    names = [field.name for field in dataclasses.fields(ClassifierSettings)]
    trials: dict[str, list[dict[str, Any]]] = {}
    for row in read_epochs(folder):
        trials.setdefault(str(row["trial"]), []).append(row)
    if not trials:
        raise _ExpectedError("no epoch yet: it ended before its first report")
    for name, epochs in trials.items():
        source = str(folder) if len(trials) == 1 else f"{folder}: {name}"
        try:
            # A row's `lr` is that of its epoch; the setting stands in settings.json.
            own = {k: epochs[-1][k] for k in names if k in epochs[-1] and k != "lr"}
            own = single | own | dataset
            rows = pd.DataFrame([{k: v for k, v in e.items() if _is_number(v)} for e in epochs])
            planned = int(own["epochs"])
            whole = [e["epoch"] for e in epochs] == list(range(1, planned + 1))
            _check_epochs(own, epochs)
            if whole:
                _check_reported(own, epochs)
            found.runs.append(Run(
                key=arm_key("mnist", own, varied), seed=int(own["seed"]), settings=own,
                commits=commits, rows=rows, x="epoch", planned=planned,
                reached=planned if whole else min(len(epochs), planned - 1),
                reported=100 * _selected(own, epochs)["test_accuracy"] if whole else None,
                source=source, epochs=epochs,
            ))  # fmt: skip
        except (ValueError, KeyError, TypeError, IndexError) as error:
            text = str(error) if isinstance(error, _ExpectedError) else f"{_name(error)}: {error}"
            found.left_out.append(LeftOut(source, f"damaged epochs: {text}"))


def _check_epochs(settings: Settings, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Raises _ExpectedError for what tables and figures could not read of any epoch."""
    protocol = settings["protocol"]
    _expect(protocol in PROTOCOLS, f"a protocol of {', '.join(PROTOCOLS)}", protocol)
    for images in (settings.get("train_images"), epochs[0].get("train_images")):
        _expect(images is None or _is_count(images), "whole train_images", images)
    for epoch in epochs:
        accuracy = epoch.get("test_accuracy")
        _expect(accuracy is None or _is_number(accuracy), "a number as test_accuracy", accuracy)


def _check_reported(settings: Settings, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Raises _ExpectedError for figures of the reported epoch that no table could show."""
    if settings["protocol"] != "strict":
        place = epochs[-1].get("selected_epoch")
        is_there = _is_count(place) and 1 <= place <= len(epochs)
        _expect(is_there, f"selected_epoch from 1 to {len(epochs)}", place)
    chosen = _selected(settings, epochs)
    accuracy, counts = chosen.get("test_accuracy"), chosen.get("test_confusion")
    _expect(_is_finite(accuracy), "a finite test_accuracy", accuracy)
    is_square = _is_row(counts) and all(_is_row(row) and all(map(_is_count, row)) for row in counts)
    _expect(is_square, f"test_confusion of {CLASSES} x {CLASSES} whole numbers", counts)
    if "aux_accuracy_per_class" in chosen:
        shares, share = chosen["aux_accuracy_per_class"], chosen.get("aux_accuracy")
        is_row = _is_row(shares) and all(map(_is_number, shares))
        _expect(is_row, f"aux_accuracy_per_class of {CLASSES} numbers", shares)
        _expect(_is_number(share), "a number as aux_accuracy", share)


def _is_row(values: Any) -> TypeGuard[list[Any]]:
    """Whether these are a list with an entry for each class."""
    return isinstance(values, list) and len(values) == CLASSES


def _selected(settings: Settings, epochs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The epoch whose test figures the protocol reports; `strict` puts them into the last row."""
    last = epochs[-1]
    return last if settings["protocol"] == "strict" else epochs[last["selected_epoch"] - 1]


def _asked_of_mnist(settings: Settings) -> Iterator[dict[str, Any]]:
    """Every trial that the settings of experiments/mnist.py ask for."""
    for protocol in settings["protocol"]:
        for task in settings["aux_task"]:
            for weight in settings["aux_weight"] if task != "none" else (1.0,):
                for seed in range(int(settings["seeds"])):
                    yield {"protocol": protocol, "aux_task": task, "aux_weight": weight,
                           "aux_copies": settings.get("aux_copies"), "seed": seed}  # fmt: skip


def _read_sweep(folder: Path, found: Results) -> None:
    """Adds the trials of experiments/sweep.py (docs/results.md)."""
    sweep = json.loads((folder / SWEEP).read_text())
    if sweep["version"] != LAYOUT_VERSION:
        raise _ExpectedError(f"{SWEEP} has layout {sweep['version']}, this reads {LAYOUT_VERSION}")
    job = str(sweep["job"])
    varied = [name for name, values in sweep["axes"].items() if len(values) > 1 or "log" in values]
    path = folder / TRIALS
    try:
        table = pd.read_csv(path, keep_default_na=False) if path.is_file() else pd.DataFrame()
        told = {str(row["trial"]): row for row in table.to_dict("records")}
    except (OSError, ValueError, KeyError) as error:  # the trainings have their own logs
        told = {}
        found.notes.append(LeftOut(str(path), f"it cannot be read ({_name(error)}): no statuses"))
    readers = {"atari": _read_game, "mnist": _read_classifiers, "deepfake": _read_probes}
    more = (("scheduler", PBT),) if dict(sweep["settings"]).get("scheduler") == PBT else ()
    runs = len(found.runs)
    for trial in sweep["trials"]:
        name, settings = str(trial["trial"]), dict(trial["settings"])
        row = told.get(name, {})
        own = folder / str(row.get("folder") or name)
        key = arm_key(job, settings, varied)
        key = key._replace(context=key.context + more)
        found.asked.append(Asked(key, int(settings["seed"]), settings))
        status = str(row.get("status", ""))
        if status in ("failed", "lost", "stopped"):
            why = str(row.get("error") or "ended early by the scheduler")
            found.notes.append(LeftOut(str(own), f"{status}: {why}"))
        if job not in ("atari", "mnist") and status == "finished" and row["reported"] != "":
            _try(_read_row, own, found, key=key, settings=settings, row=row, sweep=sweep)
        if job in readers and any(
            (own / log).is_file() for log in ("progress.csv", "epochs.jsonl")
        ):
            _try(readers[job], own, found, varied=varied)
    if more and job in readers:
        found.runs[runs:] = [
            dataclasses.replace(run, key=run.key._replace(context=run.key.context + more))
            for run in found.runs[runs:]
        ]


def _read_row(
    folder: Path, found: Results, key: ArmKey, settings: Settings, row: Mapping[str, Any],
    sweep: Settings,
) -> None:  # fmt: skip
    """Adds a finished trial of a job whose log has no reader here: its line in trials.csv."""
    reported = float(row["reported"])
    _expect(math.isfinite(reported), "a finite value as reported", reported)
    found.runs.append(Run(
        key=key, seed=int(settings["seed"]), settings=settings, commits=_commits(sweep),
        rows=pd.DataFrame(), x=str(row["unit"]), planned=int(row["planned"]),
        reached=int(row["planned"]), reported=reported, source=str(folder),
    ))  # fmt: skip


def _read_evaluations_below(folder: Path, found: Results, seen: set[Path]) -> bool:
    paths = sorted(p for p in folder.rglob("*evaluation*.json") if p.is_file())
    for path in paths:
        _read_evaluation(path, found, seen)
    return bool(paths)


def _read_evaluation(path: Path, found: Results, seen: set[Path]) -> None:
    """Adds the rows of a file of experiments/evaluate.py."""
    if path.resolve() in seen:
        return
    seen.add(path.resolve())

    def read(path: Path, found: Results) -> None:
        saved = json.loads(path.read_text())
        found.evaluations += [_evaluation(row, saved, str(path)) for row in saved["rows"]]

    _try(read, path, found)


def _evaluation(row: Mapping[str, Any], saved: Mapping[str, Any], source: str) -> Evaluation:
    """The evaluation of a row; its numbers are checked, as means are taken of them."""
    played = saved["games" if "games" in saved else "settings"]  # settings: None, the agent's
    model = {} if row["agent"] == "random" else saved.get("model") or {}
    summary, life_mean = row["summary"], (row.get("lives") or {}).get("clipped_mean")
    if cut := int(row.get("cut_games") or 0):
        frames = int(played.get("max_game_frames", WHOLE_GAME_FRAMES))
        if frames < WHOLE_GAME_FRAMES:
            raise _ExpectedError(
                f"{cut} of {summary['num']} games were cut at {frames:,} frames: a score "
                f"is of whole games, or of games of {WHOLE_GAME_FRAMES:,} frames"
            )
    for name in ("mean", "iqm"):
        _expect(_is_finite(summary[name]), f"a finite {name}", summary[name])
    low, high = summary["ci_low"], summary["ci_high"]
    for name, value in (("ci_low", low), ("ci_high", high), ("clipped_mean", life_mean)):
        _expect(value is None or _is_finite(value), f"a finite {name}", value)
    for name in ("seed", "env_steps", "td_updates"):
        number = model.get(name)
        _expect(number is None or _is_count(number), f"a whole number as {name}", number)
    network = model.get("network")
    _expect(isinstance(network, str | None), "a name as network", network)
    training = model.get("training")
    _expect(_is_options(training), "names with values as training", training)
    return Evaluation(
        game=str(row["game"]), agent=str(row["agent"]),
        aux_task=trained_with(model), aux_weight=aux_weight_of(model), network=network,
        seed=model.get("seed"), env_steps=model.get("env_steps"),
        td_updates=model.get("td_updates"), epsilon=float(saved["settings"]["epsilon"]),
        sticky=float(played.get("sticky") or 0.0), num=int(summary["num"]),
        mean=float(summary["mean"]), low=low, high=high, iqm=float(summary["iqm"]),
        life_mean=life_mean, commit=str(saved.get("commit")), source=source,
        training=None if training is None else tuple(sorted(training.items())),
    )  # fmt: skip


def _is_options(found: Any) -> bool:
    """Whether this is None or a mapping to values that a command line has."""
    if not isinstance(found, dict):
        return found is None
    return all(isinstance(value, str | int | float | None) for value in found.values())


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
