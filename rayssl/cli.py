"""Settings dataclass <-> command line, and one clear line for a user's mistake. No Ray."""

import dataclasses
import errno
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from rayssl.envs.atari import rom_id
from rayssl.presets import AtariRun, preset_values

USAGE_ERROR = 2  # exit code
Run = TypeVar("Run")
MAY_DIFFER = frozenset({"address", "data_dir", "results_dir"})  # where a resumed experiment runs
LEAST_FREE_BYTES = 100e6  # three checkpoints of the network `nature`, without replay


def parse_atari_run(argv: Sequence[str] | None = None) -> AtariRun:
    """Returns the settings of a command line: the preset's values, then what the line says.

    With `--resume DIR` the preset's place is taken by the settings that DIR was started with; a
    `--preset` beside it may only repeat DIR's own, as the line with which DIR was started does.

    Args:
      argv: words after the script's name; None: those of this process.
    Raises:
      SystemExit: after --help, or with code 2 and a message for an unknown option or value.
      ValueError: for an unknown preset, one that is not DIR's, a damaged settings.json, or a value
        that DIR's checkpoints do not fit.
      FileNotFoundError: if DIR holds no settings.json.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    preset, resume = value_of(words, "--preset"), value_of(words, "--resume")
    base = preset_values(preset or "pong")
    if resume is not None:
        base = saved_settings(Path(resume))
        saved = base.get("preset", AtariRun.preset)
        if preset and preset != saved:
            raise ValueError(
                f"{resume} was started with --preset {saved}, got --preset {preset}. Leave it out: "
                "a run goes on with its own settings, and single options on the line change them."
            )
    run = tyro.cli(AtariRun, args=words, default=AtariRun(**base))
    if run.resume is not None:
        _check_fits_checkpoints(run, AtariRun(**base))
    return run


def _check_fits_checkpoints(run: AtariRun, saved: AtariRun) -> None:
    """Refuses what the start would find out too late: when settings.json is written anew."""
    if run.schedule == "aux-only" != saved.schedule:  # pretrain.py atari says so unasked
        raise ValueError(
            f"{run.resume} was started with --schedule {saved.schedule}; as aux-only it would make "
            f"no more TD updates. Go on with experiments/atari.py --resume {run.resume} without "
            "--schedule, or start a new run with --name."
        )
    names = ["game", "aux_task", "network", "frame_size", "optimizers", "freeze_trunk"]
    if run.init_from != saved.init_from:
        names.append("init_from")  # it would be passed over: the weights are the checkpoint's
    if run.num_workers == saved.num_workers == 0:  # the checkpoint holds the games under way
        names.append("envs_per_worker")
    for name in names:
        before, now = getattr(saved, name), getattr(run, name)
        if before != now and not (name == "game" and rom_id(before) == rom_id(now)):
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{run.resume} was started with {option} {before}, got {option} {now}. Leave it "
                "out: its checkpoints fit no other. Or start a new run with --name."
            )


def saved_settings(run: Path) -> dict[str, Any]:
    """Returns the settings that a run folder was started with, as arguments of AtariRun.

    Raises:
      FileNotFoundError: if there is no settings.json.
      ValueError: if settings.json cannot be read.
    """
    path = run / "settings.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} is not the folder of a run: it holds no settings.json. Pass the folder that "
            "the run printed, e.g. --resume results/local/pong-permutation-s0."
        )
    try:
        values = dict(json.loads(path.read_text())["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}). Start a new run with --name."
        ) from error
    known = {field.name for field in dataclasses.fields(AtariRun)}
    values = {key: value for key, value in values.items() if key in known}
    for key in ("results_dir", "resume", "policy", "init_from"):
        if values.get(key) is not None:
            values[key] = Path(values[key])
    return values


def parse_experiment(
    run_type: type[Run],
    argv: Sequence[str] | None = None,
    may_differ: Collection[str] = MAY_DIFFER,
) -> Run:
    """Returns the settings of a command line; with --resume those that the folder was started with.

    Args:
      run_type: a dataclass with a field `resume: Path | None`.
      argv: words after the script's name; None: those of this process.
      may_differ: fields in which a resumed experiment may differ from its start.
    Raises:
      SystemExit: after --help, or with code 2 for an unknown option or value.
      ValueError: if a resumed experiment is asked to change, or its settings.json is damaged.
      FileNotFoundError: if the folder to resume holds no settings.json.
    """
    run: Any = tyro.cli(run_type, args=argv)
    if run.resume is None:
        return run
    path = run.resume / "settings.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run.resume} is not the folder of an experiment: no {path.name}.")
    try:
        values = dict(json.loads(path.read_text())["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Start anew with --name.") from error
    fields = [field.name for field in dataclasses.fields(run)]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in fields}
    paths = [field.name for field in dataclasses.fields(run) if "Path" in str(field.type)]
    values |= {k: Path(values[k]) for k in paths if isinstance(values.get(k), str)}
    saved: Any = run_type(**values | {"resume": run.resume})
    again = tyro.cli(run_type, args=argv, default=saved)
    for name in fields:
        old, new = getattr(saved, name), getattr(again, name)
        if old != new and name not in may_differ:
            raise ValueError(
                f"{run.resume} was started with {name} {old}, got {new}. A resumed "
                "experiment keeps its settings; start another one with --name."
            )
    return again


def check_name(name: str | None) -> None:
    """Raises ValueError if a --name is not that of one folder; None stands for a default."""
    if name is not None and (Path(name).name != name or name in ("", "..")):
        raise ValueError(f"--name must be a plain folder name, got '{name}'. See --results-dir.")


def experiment_folder(results_dir: Path, name: str | None, default: str) -> Path:
    """Returns the folder of a new experiment.

    Raises:
      ValueError: if the name is not that of a folder.
      FileExistsError: if it holds an experiment already.
    """
    check_name(name)
    folder = results_dir / (name or default)
    if (folder / "settings.json").exists():
        raise FileExistsError(
            f"{folder} holds an experiment already. Go on with --resume {folder}, or choose --name."
        )
    return folder


def provenance(settings: Any) -> dict[str, Any]:
    """Returns what makes a result traceable: settings, command, commit, time, versions, machine.

    Args:
      settings: a dataclass; values that JSON does not know (paths) become text.
    """
    return {
        "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "command": shlex.join(["python", *sys.argv]),
        "commit": git_commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        # From the packages' metadata: importing Ray is for rllib/ alone.
        "versions": {"python": sys.version.split()[0]} | {n: version(n) for n in ("torch", "ray")},
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "gpu": gpu_name(),
    }


def cpu_name() -> str:
    """Returns the processor's model as Linux names it, or else what the platform calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not a Linux
        pass
    return platform.processor() or platform.machine()


def gpu_name() -> str | None:
    """Returns the name of the first GPU that this process could use; None if there is none."""
    import torch  # not for those who only read results

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def git_commit(folder: Path | None = None) -> str | None:
    """Returns a checkout's commit, with `-dirty` where files differ; None if nobody knows.

    Args:
      folder: in the checkout; None: this code's own. An image has no checkout: its build writes the
        commit to RAYSSL_COMMIT.
    """
    if folder is None and os.environ.get("RAYSSL_COMMIT"):
        return os.environ["RAYSSL_COMMIT"]
    here = folder or Path(__file__).parent
    try:
        # --exclude: a tag would take the hash's place.
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def check_file_writable(path: Path) -> None:
    """Raises OSError if the file cannot be written; makes its folder, leaves no file behind."""
    try:
        is_new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise OSError(f"Cannot write {path}: {error.strerror}. Choose another path.") from None
    if is_new:
        path.unlink()


def check_writable(folder: Path) -> list[Path]:
    """Makes a folder, proves that files can be written there, and returns the folders it made.

    Room for the first checkpoints has to be there, too.

    The probe takes itself away again, also on a disk that is full.

    Returns:
      the folders that were not there before, innermost first: see `remove_empty`.
    Raises:
      OSError: with the folder's name and what to do; nothing is left behind.
    """
    made: list[Path] = []
    try:
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-probe-", buffering=0) as probe:
            probe.write(b"rayssl")
        free = shutil.disk_usage(folder).free
        if free < LEAST_FREE_BYTES:
            few = f"{free / 1e6:.0f} MB free, at least {LEAST_FREE_BYTES / 1e6:.0f} MB are needed"
            raise OSError(errno.ENOSPC, few)
        return made
    except OSError as error:
        remove_empty(made)
        raise OSError(
            f"Results cannot be written to {folder}: {error.strerror or error}. "
            "Choose another folder."
        ) from error


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes the folders of a run that did not start, in order; leaves those that hold files."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # gone, or somebody else writes there
            continue


def refuse(error: Exception | str) -> NoReturn:
    """Prints one line for a mistake in the settings and ends the process with code 2."""
    text = " ".join(str(error).split())  # RLlib's and Ray's own texts go over many lines
    print(f"error: {text or type(error).__name__}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR)


def value_of(words: Sequence[str], option: str) -> str | None:
    """Returns an option's value, of `--option VALUE` or `--option=VALUE`, the last one; or None."""
    found = None
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            found = words[i + 1]
        elif word.startswith(option + "="):
            found = word.partition("=")[2]
    return found
