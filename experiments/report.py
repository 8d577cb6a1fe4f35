"""Turns result folders into one page: index.html, report.md, and figures as PNG and SVG.

    python experiments/report.py results/local/pong-none-s0 results/local/pong-permutation-s0
    python experiments/report.py results/local/mnist-sweep --out results/local/report
    python experiments/report.py --update RESULTS.md

Takes runs of atari.py, experiments of mnist.py, sweeps of any job and files of evaluate.py, mixed,
or folders that hold them. Every number is read from the runs' own logs and settings. Runs of one
seed that differ in a setting, swept or not, stand beside one another at equal steps. `--update`
makes the marked tables of a markdown file anew from the folders that they name.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from rayssl.cli import check_writable, refuse
from rayssl.files import write_whole
from rayssl.marked_blocks import remade
from rayssl.page import Table, table_markdown, write_page
from rayssl.results import read_results
from rayssl.sections import make_page
from rayssl.tables import game_rows


@dataclass(frozen=True)
class Settings:
    """Turns result folders into one page with tables, figures, intervals and verdicts."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of runs, experiments or sweeps, folders that hold them, files of evaluate.py."""
    out: Path = Path("results/local/report")
    """Folder for index.html, report.md and the figures."""
    above: float = -5.0
    """Score of a game whose first crossing is reported, in agent steps."""
    update: Path | None = None
    """Markdown file whose marked tables are made anew; no page is written."""


def update(settings: Settings) -> list[dict[str, Any]]:
    """Makes the marked tables of a file anew, and says what has changed."""
    assert settings.update is not None
    path = settings.update
    try:
        if settings.runs:
            raise ValueError("--update takes the folders that the file names: pass no others.")
        if not path.is_file():
            raise FileNotFoundError(f"No file {path}. Pass a markdown file with marked tables.")
        before = path.read_text(encoding="utf-8")
        after, count = remade(before, path.resolve().parent, above=settings.above)
        if after != before:
            write_whole(path.resolve(), after)  # what a link points to, not the link
    except (ValueError, OSError) as error:
        refuse(error)
    blocks = f"{count} marked block{'' if count == 1 else 's'}"
    print(f"{path}: {blocks}, {'no difference' if after == before else 'changed'}")
    return []


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Writes the page; returns the rows of its table of games, none for classifications."""
    argv = sys.argv[1:] if argv is None else argv
    settings = tyro.cli(Settings, args=argv)
    if settings.update:
        return update(settings)
    try:
        if not settings.runs:
            raise ValueError("No runs given. Pass the folders of one or more runs.")
        results = read_results(settings.runs)
        for line in results.left_out:
            print(f"left out: {line.source}: {line.why}", file=sys.stderr)
        if results.is_empty:
            raise SystemExit(2)
        check_writable(settings.out)
    except (ValueError, OSError) as error:
        refuse(error)
    page = make_page(
        results,
        command=shlex.join(["python", "experiments/report.py", *argv]),
        above=settings.above,
    )
    html, text = write_page(page, settings.out)
    rows = game_rows([run for run in results.runs if run.key.job == "atari"], settings.above)
    claims = [b for s in page.sections[:1] for b in s.blocks if isinstance(b, Table)][:1]
    for table in [Table("", rows)] * bool(rows) + claims:
        print(table_markdown(table) + "\n")
    print(f"page: {html}\nmarkdown: {text}")
    return rows


if __name__ == "__main__":
    main()
