"""A page of text, tables and figures -> one HTML file that needs nothing else, and markdown.

The HTML has no script, no link to elsewhere, and its figures inside; every text is escaped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rayssl.figures import save
from rayssl.report import cell_text, markdown_table

VERDICTS: Final = {"supported": "✓", "refuted": "✗", "undecided": "?"}
_NUMBER = re.compile(r"[-+−]?[\d,]*\.?\d+%?( (to|±|\().*)?|-")


@dataclass(frozen=True)
class Table:
    """Rows under a heading; `note` stands below.

    Attributes:
      title: may be empty.
      rows: name -> value; columns in the order in which the rows first name them.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    note: str = ""

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def cells(self) -> list[list[str]]:
        """What stands in the rows, as text."""
        return [[cell_text(row.get(name)) for name in self.columns] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers only: they are set flush right. Seeds are no numbers."""
        columns = zip(self.columns, zip(*self.cells, strict=True), strict=True)
        return [
            "seed" not in name and all(map(_NUMBER.fullmatch, cells)) for name, cells in columns
        ]


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows.

    Attributes:
      name: of its files, unique in the page.
      title: a few words, also for who cannot see it.
      caption: how to read it.
    """

    name: str
    title: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """Text, tables and pictures under one heading, in this order."""

    title: str
    text: Sequence[str] = ()
    blocks: Sequence[Table | Picture] = ()

    @property
    def anchor(self) -> str:
        """Its name in a link."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
      lead: lines under the title.
      warnings: what a reader must know first.
    """

    title: str
    lead: Sequence[str]
    warnings: Sequence[str]
    sections: Sequence[Section] = field(default_factory=list)


def write_page(page: Page, folder: Path) -> tuple[Path, Path]:
    """Writes index.html, report.md and each picture as PNG and SVG; returns the first two paths.

    The same page gives the same bytes.
    """
    blocks = [block for section in page.sections for block in section.blocks]
    pictures = [block for block in blocks if isinstance(block, Picture)]
    inline = {each.name: Markup(save(each.figure, folder / each.name)) for each in pictures}
    html, text = folder / "index.html", folder / "report.md"
    environment = Environment(
        loader=PackageLoader("rayssl"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    template = environment.get_template("report.html")
    html.write_text(template.render(page=page, inline=inline, marks=VERDICTS), encoding="utf-8")
    text.write_text(to_markdown(page), encoding="utf-8")
    return html, text


def to_markdown(page: Page) -> str:
    """Returns the page as markdown; pictures are links to the PNG files beside it."""
    parts = [f"# {_escape(page.title)}", *map(_escape, page.lead)]
    parts += [f"**{_escape(warning)}**" for warning in page.warnings]
    for section in page.sections:
        parts.append(f"## {_escape(section.title)}")
        parts += map(_escape, section.text)
        for block in section.blocks:
            parts.append(f"### {_escape(block.title)}" if block.title else "")
            if isinstance(block, Picture):
                parts += [f"![{_escape(block.title)}]({block.name}.png)", _escape(block.caption)]
            else:
                parts += [table_markdown(block), _escape(block.note)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table_markdown(table: Table) -> str:
    """Returns a table's rows as markdown, with texts that are no markup."""
    rows = [
        {_escape(name): _escape(v) if isinstance(v, str) else v for name, v in row.items()}
        for row in table.rows
    ]
    return markdown_table(rows)


def _escape(text: str) -> str:
    """Text in which no sign means markdown or HTML; on one line."""
    return re.sub(r"([\\`*_\[\]<>#!])", r"\\\1", " ".join(text.split()))
