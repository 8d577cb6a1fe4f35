"""Where the time of the hot loop goes, function by function, sampled by py-spy.

    python benchmarks/hot_loop.py --json benchmarks/results/hot_loop.json
    python benchmarks/hot_loop.py --checkout ../before     # another commit, same work and clock

Runs the row rayssl-none of throughput.py in a fresh process and looks at its Python stack a hundred
times a second. Kept are the samples inside the algorithm's training_step; those of torch.compile at
work are left out. `total` is the share of these samples that have the function anywhere in their
stack, `self` the share that have it on top: time in C code counts for the function that called it.
"""

import dataclasses
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import report, run_facts, usable_cores
from rayssl.cli import git_commit, refuse

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path("benchmarks/throughput.py")
LOOP = "training_step"
COMPILING = ("torch/_dynamo/convert_frame", "torch/_inductor/compile")
COLUMNS = ("name", "total", "self")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Samples the hot loop of one checkout."""

    checkout: Path | None = None
    """Folder of the code to look at."""
    row: str = "rayssl-none"
    """Row of throughput.py."""
    seconds: float = 60.0
    """Length of the measured window."""
    threads: int | None = None
    """CPU threads of torch; by default all cores that this process may use."""
    least: float = 0.02
    """Smallest share that the table shows."""
    json: Path | None = None
    """File for the figures: a list with one object a function."""


def shares(lines: Iterable[str]) -> tuple[Counter[str], Counter[str], int]:
    """Returns samples with a function in their stack, with it on top, and all that are kept.

    Args:
      lines: py-spy's raw format, `function (file:line);...;function (file:line) count`.
    """
    total: Counter[str] = Counter()
    own: Counter[str] = Counter()
    kept = 0
    for line in lines:
        stack, _, count = line.rstrip().rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        # The function alone: a caller's name may hold the word, and so may a file's.
        names = [frame.partition(" (")[0].rpartition(".")[2] for frame in frames]
        if LOOP not in names or any(part in stack for part in COMPILING):
            continue
        start = names.index(LOOP)
        kept += int(count)
        own[frames[-1]] += int(count)
        total.update(dict.fromkeys(frames[start:], int(count)))
    return total, own, kept


def sample(settings: Settings, threads: int) -> list[str]:
    """Returns py-spy's lines of one measurement.

    Raises:
      RuntimeError: if py-spy is missing or the measurement fails.
    """
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise RuntimeError("py-spy is not installed: pip install -e '.[bench]'")
    checkout = (settings.checkout or ROOT).resolve()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        words = [
            spy, "record", "--rate", "100", "--format", "raw", "--output", str(raw), "--",
            sys.executable, str(checkout / SCRIPT),
            "--measure", settings.row, "--seconds", str(settings.seconds),
            "--threads", str(threads),
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, cwd=checkout)
        if done.returncode or not raw.is_file():
            raise RuntimeError(f"py-spy ended with {done.returncode}: {done.stderr[-500:]}")
        return raw.read_text().splitlines()


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Samples, prints a table, and returns the rows that it saves."""
    settings = tyro.cli(Settings, args=argv)
    threads = settings.threads or usable_cores()
    checkout = settings.checkout or ROOT
    if not (checkout / SCRIPT).is_file():
        refuse(f"expected a checkout of rayssl, got {checkout}: it holds no {SCRIPT}")
    facts = run_facts(settings) | {
        "threads": threads,
        "commit_sampled": git_commit(checkout),
    }
    try:
        total, own, kept = shares(sample(settings, threads))
    except RuntimeError as error:
        refuse(error)
    if not kept:
        refuse(f"expected samples inside {LOOP}, got none")
    rows = [
        {"name": name, "total": count / kept, "self": own[name] / kept, "samples": kept}
        for name, count in total.most_common()
        if count >= settings.least * kept
    ]
    for row in rows:
        row["run"] = facts
    report(rows, COLUMNS, settings.json)
    return rows


if __name__ == "__main__":
    main()
