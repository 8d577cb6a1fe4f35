"""Runs -> arms that may be compared: at equal steps, seed by seed, with what is odd about them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

from rayssl.claims import Claim, Verdict, all_of, verdict
from rayssl.intervals import Difference, difference
from rayssl.presets import PRESETS
from rayssl.results import (
    AUX_NAMES,
    AUX_ONLY,
    LENGTH,
    PAPER_CODE,
    PBT,
    ArmKey,
    LeftOut,
    Pairs,
    Results,
    Run,
    unnamed_settings,
)
from rayssl.training import ClassifierSettings

SCORE: Final = "score_mean_100"  # the column that games are compared by
EVALUATED: Final = "evaluation_score_mean"  # instead, where all runs were evaluated at one step
LIVES: Final = "paper_code_score_mean_100"  # mean of the last 100 lives, rewards clipped
HUNDRED_LIVES: Final = "paper_code_score_best"  # a column that is empty until 100 lives are over
LOOK_EVERY: Final = 10_000  # agent steps: checkpoint_freq of Baselines' deepq, kept by the authors
PAPER_BUDGET: Final = {
    "atari": int(PRESETS["paper-code"]["steps"].value),
    "mnist": ClassifierSettings.epochs,
}
TRAINING_SCORE: Final = "training score (last 100 whole games, exploration on)"
CURVE: Final = 3  # evaluations that make a learning curve; of fewer, only tables tell
UNIT: Final = {"env_steps": "steps", "epoch": "epochs"}
PERCENT_JOBS: Final = ("mnist",)  # whose score is an accuracy in per cent


class Score(NamedTuple):
    """A run's score, and the step or epoch of the log's row that it stands in.

    Attributes:
      asked: of an evaluation, the agent steps that it was asked for. It is made at the first report
        from there on, so that `at` lies a report or less behind.
    """

    value: float
    at: int
    asked: int


@dataclass(frozen=True)
class Reading:
    """Where the scores of runs are read: in one column, at one step of all of them.

    Attributes:
      column: SCORE (jobs other than games: what the run reports), or EVALUATED.
      step: steps or epochs; of EVALUATED, those that the evaluation was asked for.
      slack: steps by which two evaluations may differ and still count as one.
    """

    column: str
    step: int
    slack: int = 0

    def of(self, run: Run) -> Score | None:
        """Returns a run's score; None where it did not come that far or has none there.

        Other jobs than games report one value for all of their epochs: None where these are more.
        """
        if self.column == EVALUATED:
            near = [s for s in evaluations(run) if abs(s.asked - self.step) <= self.slack]
            return min(near, key=lambda score: abs(score.asked - self.step), default=None)
        is_game = run.key.job == "atari"
        if run.reached < self.step or not (is_game or run.planned == self.step):
            return None
        value = run.value_at(SCORE, self.step) if is_game else run.reported
        return None if value is None else Score(value, self.step, self.step)


def evaluations(run: Run) -> list[Score]:
    """Returns the evaluations in a game's log, in the order of their steps.

    A log whose settings do not tell how often it was evaluated has them where its rows stand.
    """
    every = int(run.settings.get("evaluate_every") or 0)
    rows = run.curve(EVALUATED)
    if EVALUATED not in rows:
        return []
    return [
        Score(float(value), int(at), int(at - at % every if 0 < every <= at else at))
        for at, value in zip(rows[run.x], rows[EVALUATED], strict=True)
    ]


def reading_of(runs: Sequence[Run]) -> Reading:
    """Returns where these runs are compared.

    By evaluations: at the last step that all runs were evaluated at which came as far as the
    shortest finished one (as the shortest of all, if none is finished). Two evaluations are of one
    step if they were asked for at the same one, or within a report (`steps_per_report`) and a tenth
    of the steps between two evaluations. Without such a step by training scores (jobs other than
    games: by what they report), where that shortest run ends.

    Args:
      runs: of one job, at least one.
    """
    finished = [run.reached for run in runs if run.finished]
    budget = min(finished or [run.reached for run in runs])
    whole = [run for run in runs if run.reached >= budget and run.key.job == "atari"]
    asked = [[score.asked for score in evaluations(run)] for run in whole]
    gaps = [b - a for steps in asked for a, b in pairwise([0, *steps])]
    slack = min([int(run.settings["steps_per_report"]) for run in whole] + [g // 10 for g in gaps],
                default=0)  # fmt: skip
    for step in sorted({step for steps in asked for step in steps}, reverse=True):
        reading = Reading(EVALUATED, step, slack)
        if all(reading.of(run) is not None for run in whole):
            return reading
    return Reading(SCORE, budget)


def paper_code_score(run: Run, limit: float) -> float | None:
    """Returns a game's score as the authors' code keeps it: the best of its looks at the mean.

    max over t = 10,000, 20,000, ... of m_t rounded to 0.1, where m_t is the mean over the last 100
    lives of their clipped scores, t lies past `learning_starts`, and 100 lives are over. Steps are
    counted from 0, so that t lies before the run's last step.

    m_t is the log's last row up to t, a report old at most.

    Args:
      run: of a game.
      limit: agent steps; looks past them do not count.
    Returns:
      None where there was no look, or the log has no such columns.
    Source: the authors' deepq_self_supervised, a fork of Baselines' deepq.learn: checkpoint_freq
      10,000, `num_episodes > 100`, which counts the episode under way.
    """
    rows = run.curve(HUNDRED_LIVES)
    if LIVES not in rows:
        return None
    steps = rows[run.x].to_numpy()
    last = int(min(limit, run.reached, run.planned - 1))
    start = run.settings["learning_starts"]
    looks = [t for t in range(LOOK_EVERY, last + 1, LOOK_EVERY) if t > start]
    places = steps.searchsorted(looks, side="right") - 1
    means = [round(float(mean), 1) for mean in rows[LIVES].iloc[places[places >= 0]]]
    return max(means, default=None)


@dataclass(frozen=True)
class Arm:
    """The runs of one arm, one a seed.

    Attributes:
      key: what they share.
      runs: seed -> run; may be empty, where a sweep asked for the arm and nothing has run.
      scores: seed -> the score that is compared; only runs that came as far as the comparison.
      read_at: seed -> the steps or epochs at which that score stands in the log.
      missing: seeds that were asked for and have no score.
      flags: what a reader should know: unfinished runs, several commits, other settings.
    """

    key: ArmKey
    runs: dict[int, Run]
    scores: dict[int, float]
    read_at: dict[int, int]
    missing: tuple[int, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """Arms of one game or data set that share their context, so that they may be compared.

    Attributes:
      job, where, context: see `rayssl.results.ArmKey`.
      arms: plain ones first.
      budget: steps or epochs at which scores are read, see `reading_of`; of evaluations, those of
        the latest that is read.
      unit: what the budget counts.
      column: of a game's logs, that scores are read from: EVALUATED or SCORE.
      flags: settings in which arms differ beside their pretext task.
    """

    job: str
    where: str
    context: Pairs
    arms: tuple[Arm, ...]
    budget: int
    unit: str
    column: str
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        """`Pong`, or `mnist, protocol strict`."""
        setting = ArmKey(self.job, self.where, self.context, ()).setting
        return f"{self.where}, {setting}" if setting else self.where

    @property
    def measure(self) -> str:
        """What a score is, with its unit."""
        if self.job == "atari":
            if self.column == EVALUATED:
                return "score (mean of an evaluation's whole games)"
            return TRAINING_SCORE
        return "test accuracy (%)" if self.job in PERCENT_JOBS else "reported value"

    @property
    def read_at(self) -> tuple[int, int]:
        """The first and the last step or epoch at which a score is read."""
        steps = [step for arm in self.arms for step in arm.read_at.values()] or [self.budget]
        return min(steps), max(steps)

    @property
    def was_evaluated_apart(self) -> bool:
        """Whether runs were evaluated, but not all of them at one step."""
        runs = [run for arm in self.arms for run in arm.runs.values()]
        return self.column == SCORE and any(len(run.curve(EVALUATED)) for run in runs)

    @property
    def size(self) -> str:
        """The budget beside the paper's: `20,480 of the paper's 1,000,000 steps`."""
        paper = PAPER_BUDGET.get(self.job)
        text = f"{self.budget:,} {self.unit}"
        if paper:
            text = f"{self.budget:,} of the paper's {paper:,} {self.unit}"
            if self.budget > paper:
                text = f"{self.budget:,} {self.unit} (the paper: {paper:,})"
        return f"{text}, {self.images:,} training images" if self.images else text

    @property
    def is_small(self) -> bool:
        """Whether the runs are shorter than the paper's."""
        return self.budget < PAPER_BUDGET.get(self.job, 0) or self.images is not None

    @property
    def images(self) -> int | None:
        """The fewest training images of any run, where a setting cut the data set short."""
        runs = [run for arm in self.arms for run in arm.runs.values()]
        cut = [run.settings.get("train_images") for run in runs]
        return min((int(each) for each in cut if each is not None), default=None)

    def plain_of(self, arm: Arm) -> Arm | None:
        """Returns the arm without a pretext loss: weight 0 of the same task, else any; None."""
        plain = [each for each in self.arms if each.key.is_plain and each.scores]
        plain.sort(key=lambda each: (each.key.task != arm.key.task, each.key.task != "none"))
        return plain[0] if plain and not arm.key.is_plain else None

    def code_scores(self, arm: Arm) -> dict[int, float]:
        """Returns seed -> `paper_code_score`, of the seeds that are compared and have one."""
        found = {seed: paper_code_score(arm.runs[seed], self.budget) for seed in arm.scores}
        return {seed: score for seed, score in found.items() if score is not None}

    def gain(self, arm: Arm) -> Difference | None:
        """Returns arm - plain over seeds; None without a plain arm or a score."""
        plain = self.plain_of(arm)
        return difference(arm.scores, plain.scores) if plain and arm.scores else None

    @property
    def protocol(self) -> str:
        """`paper`, `paper-code` or `strict`, which games are that did not run that preset."""
        return str(dict(self.context).get("protocol", "strict"))

    @property
    def is_aux_only(self) -> bool:
        """Whether its games never made a TD update, so that their scores are no agent's."""
        return dict(self.context).get("schedule") == AUX_ONLY

    @property
    def is_population(self) -> bool:
        """Whether PBT changed settings and weights of its runs on the way: arms tell the start."""
        return dict(self.context).get("scheduler") == PBT

    @property
    def stands_alone(self) -> bool:
        """Whether no claim, row of the paper's tables or curve over the aux weight counts it."""
        return self.is_aux_only or self.is_population

    @property
    def judged_by_lives(self) -> bool:
        """Whether claims are judged by the authors' own score and not by that of whole games."""
        return self.job == "atari" and self.protocol == PAPER_CODE

    @property
    def judged_by(self) -> str:
        """The protocol, and the measure that claims are judged by under it."""
        lives = "best mean of 100 lives, rewards clipped"
        return f"{self.protocol}: {lives if self.judged_by_lives else self.measure}"

    @property
    def drawn(self) -> tuple[str, str]:
        """Column of a game's logs that learning curves show, and what it is.

        As it is judged; the training score where a run has fewer evaluations than make a curve.
        """
        if self.judged_by_lives:
            return LIVES, "training score (last 100 lives, rewards clipped)"
        runs = [run for arm in self.arms for run in arm.runs.values()]
        if self.column == EVALUATED and min(len(run.curve(EVALUATED)) for run in runs) < CURVE:
            return SCORE, TRAINING_SCORE
        return self.column, self.measure

    def judged_gain(self, arm: Arm, scale: float) -> Difference | None:
        """Returns arm - scale * plain over seeds, by the measure that claims are judged by."""
        plain = self.plain_of(arm)
        if plain is None:
            return None
        if self.judged_by_lives:
            return difference(self.code_scores(arm), self.code_scores(plain), scale=scale)
        return difference(arm.scores, plain.scores, scale=scale)


def make_studies(results: Results) -> list[Study]:
    """Returns the studies of these results, in order of job, game and context.

    Of two runs of one seed in one arm the first counts; the other is noted in `results.notes`.
    """
    asked: dict[ArmKey, set[int]] = {}
    for each in results.asked:
        asked.setdefault(each.key, set()).add(each.seed)
    arms: dict[ArmKey, dict[int, Run]] = {key: {} for key in asked}
    for run in results.runs:
        own = arms.setdefault(run.key, {})
        if run.seed in own:
            why = f"a second run of seed {run.seed}; {own[run.seed].source} counts"
            results.notes.append(LeftOut(run.source, why))
        else:
            own[run.seed] = run
    groups: dict[tuple[str, str, Pairs], list[ArmKey]] = {}
    for key in arms:
        groups.setdefault((key.job, key.where, key.context), []).append(key)
    return [
        _study(keys, arms, asked)
        for group, keys in sorted(groups.items(), key=lambda item: _order(item[0]))
        if any(arms[key] for key in keys)
    ]


@dataclass(frozen=True)
class Contrast:
    """Arms that differ in other settings than the pretext task's, e.g. in the learning rate.

    Attributes:
      study: all of them at equal steps; the settings are part of the arms' names.
      names: the settings.
    """

    study: Study
    names: tuple[str, ...]

    def base_of(self, arm: Arm) -> Arm | None:
        """Returns the first arm with this one's pretext task; None: it is that one, or no score."""
        same = [each for each in self.study.arms if self._task(each) == self._task(arm)]
        return same[0] if same[0] is not arm and same[0].scores else None

    def _task(self, arm: Arm) -> Pairs:
        return tuple(pair for pair in arm.key.aux if pair[0] not in self.names)


def make_contrasts(studies: Sequence[Study]) -> list[Contrast]:
    """Returns the studies again whose settings have several values, those beside one another.

    Studies belong together if they are of one job and one game or data set, under one protocol,
    trained for as many epochs, and their contexts name the same settings.
    """
    groups: dict[tuple[Any, ...], list[Study]] = {}
    for study in studies:
        context = dict(study.context)
        alike = context.get("protocol"), context.get(LENGTH)
        kind = (study.job, study.where, *alike, tuple(context))
        groups.setdefault(kind, []).append(study)
    return [_contrast(group) for group in groups.values() if len(group) > 1]


def _contrast(studies: Sequence[Study]) -> Contrast:
    shared = set(studies[0].context).intersection(*(study.context for study in studies))
    names = tuple(name for name, value in studies[0].context if (name, value) not in shared)
    arms: dict[ArmKey, dict[int, Run]] = {}
    asked: dict[ArmKey, set[int]] = {}
    for study in studies:
        common = tuple(pair for pair in study.context if pair in shared)
        own = tuple(pair for pair in study.context if pair not in shared)
        for arm in study.arms:
            key = arm.key._replace(context=common, aux=arm.key.aux + own)
            arms[key], asked[key] = arm.runs, {*arm.runs, *arm.missing}
    return Contrast(_study(list(arms), arms, asked), names)


def seed_list(seeds: Iterable[int]) -> str:
    """Returns seeds as a person writes them: `0-4, 7`."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 2 else ", ".join(map(str, p)) for p in parts)


@dataclass(frozen=True)
class Finding:
    """A claim of the paper beside what was run.

    Attributes:
      claim: the sentence.
      study, arm: where it was tested; None where nothing was run.
      part: of a claim about several classes: which.
      difference: None where nothing was run.
      verdict: by the difference's interval.
    """

    claim: Claim
    study: Study | None
    arm: Arm | None
    part: str
    difference: Difference | None
    verdict: Verdict


def judge(claim: Claim, studies: Sequence[Study]) -> list[Finding]:
    """Returns a finding for each arm that tests a claim; one that says so if there is none.

    Games that ran the preset `paper-code` are judged by the authors' own score, see
    `paper_code_score`, all others (`strict`) by whole games.
    A claim about several classes has a finding for each, then one for all of them (`part` "all").
    """
    found: list[Finding] = []
    for study in studies:
        if (study.job, study.where) != (claim.job, claim.where) or study.stands_alone:
            continue
        for arm in study.arms:
            if arm.key.task not in claim.treated or arm.key.weight != 1 or not arm.scores:
                continue
            if not arm.key.is_from_scratch:
                continue  # the sentences are about training all of it
            if claim.per_class:
                found += _judge_classes(claim, study, arm)
                continue
            gap = study.judged_gain(arm, claim.scale)
            said = verdict(gap, claim.side, claim.threshold)
            found.append(Finding(claim, study, arm, "", gap, said))
    return found or [Finding(claim, None, None, "all" if claim.per_class else "", None,
                             "undecided")]  # fmt: skip


def class_accuracies(arm: Arm) -> dict[int, list[float]]:
    """Returns seed -> test accuracy of each class in per cent, of the reported epochs."""
    found = {}
    for seed in arm.scores:
        epochs = arm.runs[seed].epochs
        if epochs:
            last = epochs[-1]
            strict = last["protocol"] == "strict"
            chosen = last if strict else epochs[last["selected_epoch"] - 1]
            counts = chosen["test_confusion"]
            found[seed] = [
                100 * row[i] / sum(row) if sum(row) else float("nan")
                for i, row in enumerate(counts)
            ]
    return found


def _judge_classes(claim: Claim, study: Study, arm: Arm) -> list[Finding]:
    plain = study.plain_of(arm)
    own, other = class_accuracies(arm), class_accuracies(plain) if plain else {}
    if not own or not other:
        return [Finding(claim, study, arm, "all", None, "undecided")]
    num = len(next(iter(own.values())))

    def gap(weights: Sequence[float]) -> Difference | None:
        """The same mixture of classes in both arms; None for a class without test images."""
        mixed = [
            {seed: sum(w * v for w, v in zip(weights, values, strict=True) if w)
             for seed, values in each.items()}
            for each in (own, other)
        ]  # fmt: skip
        if any(math.isnan(value) for each in mixed for value in each.values()):
            return None
        return difference(mixed[0], mixed[1])

    parts: list[Finding] = []
    for digit in claim.per_class:
        found = gap([float(i == digit) for i in range(num)])
        parts.append(Finding(claim, study, arm, str(digit), found, verdict(found, claim.side)))
    joint = all_of([part.verdict for part in parts])
    rest = num - len(claim.per_class)
    contrast = gap([
        1 / len(claim.per_class) if i in claim.per_class else -1 / rest for i in range(num)
    ])  # fmt: skip
    return [
        *parts,
        Finding(claim, study, arm, "all", None, joint),
        Finding(claim, study, arm, "more than the other classes", contrast,
                verdict(contrast, claim.side)),
    ]  # fmt: skip


def _order(group: tuple[str, str, Pairs]) -> tuple[Any, ...]:
    job, where, context = group
    protocols = ["paper", "paper-code", "strict"]
    protocol = str(dict(context).get("protocol", ""))
    place = protocols.index(protocol) if protocol in protocols else len(protocols)
    games = ["Pong", "Breakout"]
    number = games.index(where) if where in games else len(games)
    return job, number, where, place, "schedule" in dict(context), str(context)


def _place(key: ArmKey) -> tuple[Any, ...]:
    """Plain arms first; those of one task by its weight, then by the settings set side by side."""
    values = [value for name, value in key.aux if name not in AUX_NAMES]
    numbers = [math.inf if isinstance(value, str | None) else value for value in values]
    return not key.is_plain, key.task != "none", key.task, key.weight, numbers, key.name


def _study(
    keys: list[ArmKey], arms: dict[ArmKey, dict[int, Run]], asked: dict[ArmKey, set[int]]
) -> Study:
    keys = sorted(keys, key=_place)
    runs = [run for key in keys for run in arms[key].values()]
    reading = reading_of(runs)
    unit = UNIT.get(runs[0].x, runs[0].x)
    first = keys[0]
    made = tuple(_arm(key, arms[key], asked.get(key, set()), reading, unit) for key in keys)
    return Study(
        job=first.job,
        where=first.where,
        context=first.context,
        arms=made,
        budget=max((at for arm in made for at in arm.read_at.values()), default=reading.step),
        unit=unit,
        column=reading.column,
        flags=tuple(_differing([list(arms[key].values()) for key in keys if arms[key]])),
    )


def _arm(key: ArmKey, runs: dict[int, Run], asked: set[int], reading: Reading, unit: str) -> Arm:
    runs = dict(sorted(runs.items()))
    found = {seed: score for seed, run in runs.items() if (score := reading.of(run)) is not None}
    scores = {seed: score.value for seed, score in found.items()}
    read_at = {seed: score.at for seed, score in found.items()}
    flags = []
    for seed, run in runs.items():
        if not run.finished:
            flags.append(f"seed {seed} unfinished: {run.reached:,} of {run.planned:,} {unit}")
        elif seed not in scores:
            why = "no whole game yet"
            if run.key.job != "atari":
                why = f"it is of {run.planned:,} {unit}, compared are those of {reading.step:,}"
            flags.append(f"seed {seed} has no score: {why}")
    commits = sorted({commit for run in runs.values() for commit in run.commits})
    if len(commits) > 1:
        flags.append(f"{len(commits)} commits: {', '.join(commits)}")
    flags += [f"uncommitted changes: {c}" for c in commits if c.endswith("-dirty")]
    flags += [f"seeds differ in {text}" for text in _differing([[r] for r in runs.values()])]
    missing = tuple(sorted(asked - scores.keys()))
    return Arm(key, runs, scores, read_at, missing, tuple(flags))


def _differing(groups: list[list[Run]]) -> list[str]:
    """Settings, beside those that name arms, whose values differ between groups of runs."""
    if not groups:
        return []
    key = groups[0][0].key
    every_run = [run for group in groups for run in group]
    names = sorted(set().union(*(unnamed_settings(key, run.settings) for run in every_run)))
    found = []
    for name in names:
        values = [sorted({str(run.settings.get(name)) for run in group}) for group in groups]
        if any(each != values[0] for each in values):
            every = list(dict.fromkeys(v for each in values for v in each))
            found.append(f"{name.replace('_', '-')}: {' / '.join(every)}")
    return found
