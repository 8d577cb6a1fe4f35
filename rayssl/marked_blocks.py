"""Tables of a markdown file that are made from result folders, and can be made again.

    <!-- report: results/paper-first; Table IV: mean score in 100 episodes; Runs of games -->
    ... tables, made by `experiments/report.py --update RESULTS.md` ...
    <!-- end of report -->

The first part names folders, relative to the file's own; the others are titles of tables of the
page that experiments/report.py makes of them, or of its sections, which stand for all their tables.

    <!-- report: benchmarks/results/replay.json; sample_ms, bytes_per_transition -->

A JSON file is one of benchmarks/; the second part names the columns beside each row's name.
Measured figures stand as median (min to max).

    <!-- report: results/probes-second/pong/table.md -->

A markdown file, which experiments/probe.py or another script wrote, stands as it is.
"""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayssl.page import Page, Table, table_markdown
from rayssl.report import cell_text, markdown_table
from rayssl.results import read_results
from rayssl.sections import make_page

HEAD, END = "<!-- report:", "<!-- end of report -->"
_HEAD_LINE = re.compile(rf"{HEAD} ([^\n]*?) -->\n")
_BLOCK = re.compile(rf"({_HEAD_LINE.pattern})(.*?)({END})", re.DOTALL)
_MARK = re.compile(f"{HEAD}|{END}")


def remade(text: str, root: Path, *, above: float) -> tuple[str, int]:
    """Returns the text with every marked block made anew, and how many blocks there are.

    Args:
      text: of the markdown file.
      root: the folder that the blocks' folders are relative to.
      above: as for `make_page`.
    Raises:
      ValueError: for a block whose folders hold nothing, a title that no table has, or a mark
        without its other half.
    """
    _check_marks(text)
    count = 0

    def again(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return match[1] + _tables(match[2], root, above) + match[4]

    return _BLOCK.sub(again, text), count


def _check_marks(text: str) -> None:
    """Raises ValueError unless heads and ends take turns: prose between would count as tables."""
    opened = 0  # line of the head whose end is to come
    for mark in _MARK.finditer(text):
        line = text.count("\n", 0, mark.start()) + 1
        if mark[0] == END and not opened:
            raise ValueError(f"Line {line} ends a marked block, but none begins above it. Put "
                             f"'{HEAD} FOLDERS; TITLE -->' there.")  # fmt: skip
        if mark[0] == HEAD and opened:
            break
        if mark[0] == HEAD and not _HEAD_LINE.match(text, mark.start()):
            raise ValueError(f"Line {line} begins a marked block, expected '{HEAD} FOLDERS; TITLE "
                             "-->' and the end of the line.")  # fmt: skip
        opened = line if mark[0] == HEAD else 0
    if opened:
        raise ValueError(f"The marked block of line {opened} has no end: put '{END}' below its "
                         "tables, or what follows them would be replaced.")  # fmt: skip


def _tables(head: str, root: Path, above: float) -> str:
    folders, *titles = [part.strip() for part in head.split(";")]
    if folders.endswith(".json"):
        return f"\n{_benchmark(root / folders, titles)}\n\n"
    if folders.endswith(".md"):
        return f"\n{_file(root / folders).strip()}\n\n"
    results = read_results([root / folder for folder in shlex.split(folders)])
    if results.is_empty:
        raise ValueError(f"A marked block names {folders}: no results could be read there.")
    page = make_page(results, command="", above=above)
    parts = []
    for title in titles:
        for table in _named(page, title):
            heading = f"**{table.title}**" if table.title else ""
            own = _without(root, table)
            parts += [heading, table_markdown(own), own.note]
    return "\n" + "\n\n".join(part for part in parts if part) + "\n\n"


def _without(root: Path, table: Table) -> Table:
    """The table with paths from `root` on: columns are as wide wherever the checkout lies."""

    def cut(value: Any) -> Any:
        return value.replace(f"{root}/", "") if isinstance(value, str) else value

    rows = [{key: cut(value) for key, value in row.items()} for row in table.rows]
    return replace(table, rows=rows, note=cut(table.note))


def _benchmark(path: Path, columns: list[str]) -> str:
    """The rows of a benchmark's file with these columns, separated by commas."""
    names = [name.strip() for part in columns for name in part.split(",")]
    rows = json.loads(_file(path))
    unknown = [name for name in names if not any(name in row for row in rows)]
    if unknown or not names:
        known = ", ".join(dict.fromkeys(key for row in rows for key in row))
        raise ValueError(f"{path.name} has no column {', '.join(unknown)}. Available: {known}.")
    return markdown_table(
        [{"row": row["name"]} | {name: _figure(row.get(name)) for name in names} for row in rows]
    )


def _file(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"A marked block names {path.name}: there is no such file.")
    return path.read_text(encoding="utf-8")


def _figure(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    middle, low, high = (cell_text(float(value[key])) for key in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _named(page: Page, title: str) -> list[Table]:
    """The tables of this title, or all of the section that has it."""
    for section in page.sections:
        tables = [block for block in section.blocks if isinstance(block, Table)]
        own = [table for table in tables if table.title == title]
        if own or section.title == title:
            return own or tables
    known = [b.title for s in page.sections for b in s.blocks if isinstance(b, Table) and b.title]
    known = [section.title for section in page.sections] + known
    raise ValueError(f"No table or section '{title}' there. Available: {'; '.join(known)}.")
