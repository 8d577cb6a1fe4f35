"""experiments/report.py: any folders become one page; folders that hold nothing are said."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from experiments import report

LOG = (
    "env_steps,score_mean_100,td_updates,aux_updates,wall_s\n1000,-21,250,0,60\n2000,-4,500,0,120\n"
)
SETTINGS: dict[str, Any] = {
    "settings": {"game": "pong", "aux_task": "none", "seed": 0, "steps": 2000},
    "commit": "abc",
}


def run_folder(folder: Path, log: str = LOG, settings: object = SETTINGS) -> Path:
    """Writes what a run leaves behind and returns its folder."""
    folder.mkdir(parents=True)
    (folder / "progress.csv").write_text(log)
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "settings.json").write_text(text)
    return folder


def game_run(folder: Path, task: str, seed: int, score: float, **settings: object) -> Path:
    """A run of Pong that ends at 20,000 steps with this score, and had it per life at 10,000."""
    own = {"game": "pong", "aux_task": task, "aux_weight": 1.0, "seed": seed, "steps": 20_000}
    log = (
        "env_steps,score_mean_100,paper_code_score_mean_100,paper_code_score_best,aux_accuracy,"
        "gradient_cosine,wall_s,td_updates,aux_updates\n"
        f"10000,,{score},{score},0.25,0.1,60,100,100\n20000,{score},99,99,0.5,0.2,120,200,200\n"
    )
    return run_folder(folder, log, {"settings": own | settings, "commit": "abc"})


def epoch(seed: int, task: str, accuracy: float, **values: object) -> dict[str, Any]:
    """A finished trial of one epoch, as experiments/mnist.py logs it, in the protocol `paper`.

    Of each class's 1,000 images this share is right, and all others are taken for the next class.
    """
    right = round(1000 * accuracy)
    counts = [
        [right * (i == j) + (1000 - right) * ((i + 1) % 10 == j) for j in range(10)]
        for i in range(10)
    ]
    row = {
        "trial": f"paper-{task}-s{seed}", "protocol": "paper", "aux_task": task, "aux_weight": 1.0,
        "aux_copies": None, "seed": seed, "epoch": 1, "epochs": 1, "selected_epoch": 1, "lr": 1.0,
        "loss": 0.5, "test_accuracy": accuracy, "test_confusion": counts,
    }  # fmt: skip
    return row | values


def mnist_folder(
    folder: Path, rows: list[dict[str, Any]], seeds: int, dataset: str = "mnist"
) -> Path:
    """Writes what experiments/mnist.py leaves behind."""
    folder.mkdir(parents=True)
    settings = {
        "protocol": ["paper"], "aux_task": ["none", "rotation"], "aux_weight": [1.0],
        "aux_copies": None, "seeds": seeds, "epochs": 1, "dataset": dataset,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps({"settings": settings, "commit": "def"}))
    (folder / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Reader(HTMLParser):
    """Collects what a page refers to, its texts, and whether its tags are closed in order."""

    VOID = ("meta", "br", "img", "link", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "action", "data", "srcset"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), "Expected no script in the page."

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with three seeds of two arms of Pong and of MNIST, one in a folder named `<b>`."""
    root = tmp_path_factory.mktemp("inputs")
    for seed, (plain, treated) in enumerate([(10, 4), (12, 5), (11, 6)]):
        game_run(root / "<b>pong" / f"none-{seed}", "none", seed, plain)
        game_run(root / "<b>pong" / f"rotation-{seed}", "rotation", seed, treated)
    rows = [epoch(seed, "none", 0.99 + seed / 1000) for seed in range(3)]
    rows += [epoch(seed, "rotation", 0.97 - seed / 1000) for seed in range(3)]
    mnist_folder(root / "mnist", rows, seeds=4)
    (root / "<b>pong" / "none-evaluation.json").write_text(json.dumps({
        "commit": "abc", "model": {"aux_task": None, "seed": 0, "env_steps": 2000},
        "settings": {"epsilon": 0.01},
        "rows": [{"agent": "nature, no aux task, 2000 steps", "game": "Pong", "scores": [1, 2],
                  "summary": {"num": 2, "mean": 1.5, "ci_low": 1.0, "ci_high": 2.0, "iqm": 1.5}}],
    }))  # fmt: skip
    return root


@pytest.fixture(scope="module")
def page(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page that these folders make."""
    out = tmp_path_factory.mktemp("page")
    report.main([str(inputs), "--out", str(out)])
    return out


def test_page_needs_nothing_but_itself(page: Path) -> None:
    text = (page / "index.html").read_text()
    found = Reader(text)
    assert all(reference.startswith("#") for reference in found.references)
    assert {reference[1:] for reference in found.references} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids)), "Expected each id once, over all figures."
    assert not {"script", "img", "iframe", "link", "object", "image"} & set(found.tags)
    assert found.tags.count("svg") == len(list(page.glob("*.png"))) == len(list(page.glob("*.svg")))
    for outside in ("http:", "https:", "url(//", "@import"):
        for found_at in (i for i in range(len(text)) if text.startswith(outside, i)):
            around = text[found_at - 40 : found_at + 60]
            assert "xmlns" in around, f"Expected no address of elsewhere, got {around}"


def test_names_of_folders_are_text_and_not_markup(page: Path, inputs: Path) -> None:
    html, markdown = (page / "index.html").read_text(), (page / "report.md").read_text()
    assert "&lt;b&gt;pong" in html
    assert "b" not in Reader(html).tags
    assert r"\<b\>pong" in markdown
    assert "<b>" not in markdown


def test_every_picture_of_the_markdown_lies_beside_it(page: Path) -> None:
    names = [line.split("](")[1][:-1] for line in (page / "report.md").read_text().splitlines()
             if line.startswith("![")]  # fmt: skip
    assert names[0] == "curves.png"
    assert sorted(names) == sorted(path.name for path in page.glob("*.png"))
    assert all((page / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_same_folders_give_the_same_bytes(page: Path, inputs: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(page, again)
    before = {path.name: path.read_bytes() for path in page.iterdir()}
    report.main([str(inputs), "--out", str(page)])
    assert {path.name: path.read_bytes() for path in page.iterdir()} == before


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawing out, which takes most of the time, where only the words matter."""
    monkeypatch.setattr("rayssl.page.save", lambda figure, stem: "<svg></svg>")


def table_row(markdown: str, *words: str) -> list[str]:
    """The cells of the first row of any table that holds all of these words."""
    for line in markdown.splitlines():
        line = re.sub(r"\\(.)", r"\1", line)  # what a reader sees
        if line.startswith("|") and all(word in line for word in words):
            return [cell.strip() for cell in line.strip("|").split("|")]
    raise AssertionError(f"Expected a row with {words}.")


def test_claims_are_judged_by_the_interval_of_the_paired_difference(page: Path) -> None:
    text = (page / "report.md").read_text()
    # 4 - 10, 5 - 12, 6 - 11: mean -6, deviation 1, t(2) 4.3027: -6 +- 2.484
    row = table_row(text, "Rotation hurts on Pong")
    measure = "strict: training score (last 100 whole games, exploration on)"
    assert row[3:] == [measure, "3", "-6.00", "-8.48 to -3.52", "supported"]
    # 97.0 - 99.0, 96.9 - 99.1, 96.8 - 99.2: mean -2.2, deviation 0.2: +- 0.497
    row = table_row(text, "Rotation hurts on MNIST", "protocol paper")
    measure = "paper: test accuracy (%)"
    assert row[3:] == [measure, "3", "-2.20", "-2.70 to -1.70", "supported"]
    row = table_row(text, "Rotation hurts on Breakout")
    assert row[2:] == ["not run", "-", "-", "-", "-", "undecided"]
    joint = table_row(text, "Classes 2, 5, 6 and 9 suffer")
    assert (joint[5], joint[7]) == ("below", "supported")
    contrast = table_row(text, "more than the other classes")
    assert contrast[-1] == "undecided", "all classes lose the same here"


def test_tables_stand_beside_the_papers(page: Path) -> None:
    text = (page / "report.md").read_text()
    assert table_row(text, "best test epoch", "none")[-1] == "99.19"
    text = text[text.index("Table IV: mean") - 2000 :]
    dqn = table_row(text, "| DQN")
    assert dqn[:3] == ["DQN", "20", "11.00 (8.52 to 13.48, 3 seeds of 20,000 steps)"]
    assert dqn[3] == "1.50 (1 agent of 2,000 steps, 2 games)"
    assert table_row(text, "| Sequence")[1:3] == ["18.2", "not run"]
    assert table_row(text, "RevNet-50X4")[1:] == ["96.5", "not run", "92.7", "not run"]


def test_missing_seeds_and_commits_are_said(page: Path) -> None:
    row = table_row((page / "report.md").read_text(), "mnist, protocol paper", "| 0-2", "rotation")
    assert row == ["mnist, protocol paper", "rotation, weight 1", "0-2", "0-2", "3", "def", "-"]


def test_small_runs_are_called_small(page: Path) -> None:
    text = (page / "report.md").read_text()
    assert "20,000 of the paper's 1,000,000 steps" in text
    assert "1 of the paper's 14 epochs" in text


def test_row_tells_the_first_crossing_and_the_commits(tmp_path: Path, undrawn: None) -> None:
    folder = run_folder(tmp_path / "a")
    row = report.main([str(folder), "--out", str(tmp_path / "out")])[0]
    assert row["first above -5"] == 2000
    assert (row["last score"], row["minutes"], row["commit"]) == (-4, 2.0, "abc")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| pong | none" in text
    assert "One seed only, so no interval and no verdict" in text


def test_second_run_of_a_seed_is_listed_and_does_not_count(tmp_path: Path, undrawn: None) -> None:
    first, second = (run_folder(tmp_path / part / "pong") for part in ("a", "b"))
    rows = report.main([str(first), str(second), "--out", str(tmp_path / "out")])
    assert len(rows) == 2
    text = (tmp_path / "out" / "report.md").read_text()
    row = table_row(text, "a second run of seed 0")
    assert row == [str(second), f"a second run of seed 0; {first} counts"]


BAD = [
    (LOG, {}, "got KeyError: 'settings'"),
    (LOG, "{", "got JSONDecodeError"),
    ("a,b\n1,2\n", SETTINGS, "with a column env_steps, got a, b."),
    ("env_steps\n1\n", SETTINGS, "got KeyError: 'score_mean_100'"),
    ("env_steps,score_mean_100\n1,2\n3,4,5,6\n", SETTINGS, "got ParserError"),
    ("env_steps,score_mean_100\n1,2\n3,high\n", SETTINGS, "column score_mean_100 holds text"),
    ("env_steps,score_mean_100\n", SETTINGS, "holds no row yet"),
    ("", SETTINGS, "holds no row yet"),
    (LOG, {"settings": SETTINGS["settings"] | {"seed": None}}, "got TypeError"),
    (LOG, {"settings": SETTINGS["settings"] | {"game": "tetris world"}}, "tetris world"),
    (LOG.replace("-4", "inf"), SETTINGS, "column score_mean_100 holds infinity"),
    (LOG.replace("-4", "-inf"), SETTINGS, "column score_mean_100 holds infinity"),
    *(
        (LOG, {"settings": SETTINGS["settings"] | {name: value}},
         f"expected a whole number as {name}, got {value!r}")
        for name, value in (("evaluate_every", "x"), ("steps_per_report", None),
                            ("learning_starts", 0.5), ("learning_starts", -1), ("steps", True))
    ),
]  # fmt: skip


@pytest.mark.parametrize(("log", "settings", "text"), BAD)
def test_folder_that_is_no_run_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    log: str,
    settings: object,
    text: str,
) -> None:
    folder = run_folder(tmp_path / "a", log, settings)
    with pytest.raises(SystemExit) as stop:
        report.main([str(folder), "--out", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert text in err
    assert not (tmp_path / "out").exists()


def test_bad_folders_are_listed_and_the_rest_makes_the_page(
    tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    good = run_folder(tmp_path / "good")
    bad = [run_folder(tmp_path / f"bad{i}", log, s) for i, (log, s, _) in enumerate(BAD[:7])]
    silent = tmp_path / "silent"
    silent.mkdir()
    (silent / "settings.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "empty").mkdir()
    (tmp_path / "x-evaluation.json").write_text("[]")
    given = [
        good,
        *bad,
        silent,
        tmp_path / "empty",
        tmp_path / "gone",
        tmp_path / "x-evaluation.json",
    ]
    report.main([*map(str, given), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(given) - 1
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Left out: 11 of what was given" in text
    for folder, why in (
        (silent, "no log: it ended before its first report"),
        (tmp_path / "empty", "holds no progress.csv, epochs.jsonl, sweep.json"),
        (tmp_path / "gone", "there is no such file or folder"),
        (tmp_path / "x-evaluation.json", "got TypeError"),
    ):
        assert any(line.startswith(f"left out: {folder}: ") and why in line for line in lines)
        assert table_row(text, f"{folder.name} ", why.split(",")[0])


SQUARE = "expected test_confusion of 10 x 10 whole numbers, got "


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"test_confusion": None}, SQUARE + "None"),
        ({"test_confusion": [[1, 2], [3, 4]]}, SQUARE + "[[1, 2], [3, 4]]"),
        ({"test_confusion": [[1] * 10] * 9 + [[1]]}, SQUARE + "[[1, 1, 1, 1, 1, 1, 1, 1, 1, 1], "),
        ({"test_confusion": [[0.5] * 10] * 10}, SQUARE + "[[0.5, 0.5, "),
        ({"test_accuracy": float("inf")}, "expected a finite test_accuracy, got inf"),
        ({"test_accuracy": float("nan")}, "expected a finite test_accuracy, got nan"),
        ({"test_accuracy": "0.9"}, "expected a number as test_accuracy, got '0.9'"),
        ({"selected_epoch": 2}, "expected selected_epoch from 1 to 1, got 2"),
        ({"selected_epoch": 0}, "expected selected_epoch from 1 to 1, got 0"),
        ({"protocol": "mine"}, "expected a protocol of paper, paper-code, strict, got 'mine'"),
        ({"train_images": "all"}, "expected whole train_images, got 'all'"),
        ({"aux_accuracy_per_class": [0.5], "aux_accuracy": 0.5},
         "expected aux_accuracy_per_class of 10 numbers, got [0.5]"),
        ({"aux_accuracy_per_class": [0.5] * 10}, "expected a number as aux_accuracy, got None"),
    ],
)  # fmt: skip
def test_trial_with_figures_that_no_table_can_show_is_listed_and_hides_no_other(
    changes: dict[str, Any], why: str, tmp_path: Path, undrawn: None
) -> None:
    rows = [epoch(0, "none", 0.9), epoch(0, "rotation", 0.8) | changes, epoch(1, "rotation", 0.7)]
    folder = mnist_folder(tmp_path / "a", rows, seeds=2)
    report.main([str(folder), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    source, line = table_row(text, "damaged epochs")
    assert source == f"{folder}: paper-rotation-s0"
    assert line.startswith(f"damaged epochs: {why}")
    assert table_row(text, "best test epoch", "rotation")[2:6] == [
        "1", "1", "best test epoch", "70.00",
    ]  # fmt: skip


def test_accuracies_of_classes_that_a_test_set_lacks_may_be_missing(
    tmp_path: Path, undrawn: None
) -> None:
    shares = {"aux_accuracy_per_class": [float("nan")] + [0.5] * 9, "aux_accuracy": 0.5}
    folder = mnist_folder(tmp_path / "a", [epoch(0, "rotation", 0.8) | shares], seeds=1)
    report.main([str(folder), "--out", str(tmp_path / "out")])
    assert "damaged" not in (tmp_path / "out" / "report.md").read_text()


def test_run_without_a_whole_game_has_no_score_and_says_so(tmp_path: Path, undrawn: None) -> None:
    folder = run_folder(tmp_path / "a", "env_steps,score_mean_100,wall_s\n1000,nan,5\n2000,nan,9\n")
    (row,) = report.main([str(folder), "--out", str(tmp_path / "out")])
    assert row["steps"] == 2000
    text = (tmp_path / "out" / "report.md").read_text()
    assert "seed 0 has no score: no whole game yet" in text


def test_experiment_of_mnist_becomes_its_tables_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mnist_folder(tmp_path / "a", [epoch(0, "none", 0.75)], seeds=1, dataset="digits")
    assert report.main([str(folder), "--out", str(tmp_path / "out")]) == []
    assert "page: " in capsys.readouterr().out
    text = (tmp_path / "out" / "report.md").read_text()
    assert table_row(text, "best test epoch")[:2] == ["paper", "none"]
    assert "75.00" in text
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_output_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        report.main([str(run_folder(tmp_path / "a")), "--out", str(tmp_path / "file" / "out")])
    assert stop.value.code == 2
    assert "Results cannot be written to" in capsys.readouterr().err


def test_no_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        report.main([])
    assert stop.value.code == 2
    assert "No runs given. Pass the folders of one or more runs." in capsys.readouterr().err
