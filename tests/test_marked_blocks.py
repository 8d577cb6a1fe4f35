"""RESULTS.md's marked tables are those that its own files give, and can be made again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import report
from rayssl.marked_blocks import remade
from tests.test_results import write_game

ROOT = Path(__file__).parent.parent
BLOCK = "# Title\n\n<!-- report: runs; Runs of games -->\nold\n<!-- end of report -->\nrest\n"
END = "<!-- end of report -->"


def test_marked_tables_of_results_md_are_those_that_its_files_give() -> None:
    text = (ROOT / "RESULTS.md").read_text()
    again, count = remade(text, ROOT, above=report.Settings.above)
    assert count > 0
    assert again == text, "run: python experiments/report.py --update RESULTS.md"


def test_block_is_replaced_by_its_table_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    write_game(tmp_path / "runs" / "a", {1_000: -20.5, 2_000: -9.25})
    text, count = remade(BLOCK, tmp_path, above=-5.0)
    assert count == 1
    assert "-9.25" in text
    assert "old" not in text
    assert text.startswith("# Title\n\n<!-- report: runs; Runs of games -->\n")
    assert text.endswith("<!-- end of report -->\nrest\n")
    assert str(tmp_path) not in text
    assert remade(text, tmp_path, above=-5.0) == (text, 1)


def test_tables_of_files_are_alike_wherever_the_checkout_lies(tmp_path: Path) -> None:
    block = BLOCK.replace("Runs of games", "Trained agents")
    made = []
    for root in (tmp_path / "a", tmp_path / "a" / "longer" / "path"):
        write_game(root / "runs" / "b", {1_000: -20.5})
        summary = {"num": 2, "mean": 1.0, "ci_low": 0.5, "ci_high": 1.5, "iqm": 1.0}
        row = {"agent": "random", "game": "Pong", "summary": summary}
        evaluation = {"commit": "abc", "settings": {"epsilon": 1, "sticky": 0}, "rows": [row]}
        (root / "runs" / "random-evaluation.json").write_text(json.dumps(evaluation))
        made.append(remade(block, root, above=-5.0)[0])
    assert "runs/random-evaluation.json" in made[0]
    assert made[0] == made[1]


def test_benchmarks_file_gives_its_rows_with_median_and_range(tmp_path: Path) -> None:
    rows = [
        {"name": "td", "ms": {"min": 1.0, "median": 2.5, "max": 30.25}, "claim": None},
        {"name": "aux", "claim": "<= 0.65"},
    ]
    (tmp_path / "cost.json").write_text(json.dumps(rows))
    block = "<!-- report: cost.json; ms, claim -->\n<!-- end of report -->"
    lines = remade(block, tmp_path, above=-5.0)[0].splitlines()
    assert lines[2:6] == [
        "| row | ms              | claim   |",
        "| --- | --------------- | ------- |",
        "| td  | 2.5 (1 to 30.2) | -       |",
        "| aux | -               | <= 0.65 |",
    ]
    with pytest.raises(ValueError, match=r"no column cost\. Available: name, ms, claim"):
        remade(block.replace("ms,", "cost,"), tmp_path, above=-5.0)


def test_markdown_file_stands_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("| a |\n| - |\n| 1 |\n")
    block = "<!-- report: table.md -->\nold\n<!-- end of report -->"
    text = "<!-- report: table.md -->\n\n| a |\n| - |\n| 1 |\n\n<!-- end of report -->"
    assert remade(block, tmp_path, above=-5.0) == (text, 1)


def test_script_says_whether_anything_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_game(tmp_path / "runs" / "a", {1_000: -20.5})
    file = tmp_path / "NOTES.md"
    file.write_text(BLOCK)
    for words in ("1 marked block, changed", "1 marked block, no difference"):
        report.main(["--update", str(file)])
        assert words in capsys.readouterr().out


def test_kill_while_the_file_is_written_leaves_the_old_one(
    tmp_path: Path, killed_write: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_game(tmp_path / "runs" / "a", {1_000: -20.5})
    file = tmp_path / "NOTES.md"
    file.write_text(BLOCK)
    (tmp_path / "link.md").symlink_to(file)
    killed_write()
    with pytest.raises(KeyboardInterrupt):
        report.main(["--update", str(file)])
    assert file.read_text() == BLOCK
    monkeypatch.undo()
    report.main(["--update", str(tmp_path / "link.md")])
    assert "-20.5" in file.read_text()
    assert (tmp_path / "link.md").is_symlink()


@pytest.mark.parametrize(
    ("block", "error"),
    [
        (BLOCK.replace("Runs of games", "Table V"), "No table or section 'Table V' there"),
        (BLOCK.replace("report: runs", "report: gone"), "no results could be read"),
        (BLOCK.replace("report: runs", "report: gone.json"), "there is no such file"),
        (BLOCK.replace(END, "prose") + BLOCK, "block of line 3 has no end"),
        (BLOCK + BLOCK.replace(END, "prose"), "block of line 9 has no end"),
        (BLOCK + f"prose\n{END}\n", "Line 8 ends a marked block, but none begins above it"),
        (BLOCK.replace(" -->\n", " --> \n", 1), "Line 3 begins a marked block, expected"),
    ],
)
def test_block_that_cannot_be_made_is_one_line_and_changes_nothing(
    block: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_game(tmp_path / "runs" / "a", {1_000: -20.5})
    file = tmp_path / "NOTES.md"
    file.write_text(block)
    with pytest.raises(SystemExit) as stop:
        report.main(["--update", str(file)])
    assert stop.value.code == 2
    assert error in capsys.readouterr().err
    assert file.read_text() == block
    with pytest.raises(SystemExit):
        report.main(["--update", str(tmp_path / "gone.md")])
    assert "Pass a markdown file with marked tables" in capsys.readouterr().err
