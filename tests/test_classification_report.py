"""Tables I and II and Figure 8 from rows made by hand, so that every number can be checked."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rayssl.classification_report import (
    PAIRS,
    classification_report,
    finished_arms,
    plot_classification,
)
from rayssl.report import read_epochs

Row = dict[str, Any]
HELPED = "### Does the pretext head help? Difference to `none`, same seeds, percentage points"
HALF_TURNS = "### Test images taken for their half turn (label -> prediction), mean count a seed"
PRETEXT = "### Accuracy of the pretext head for each class in percent"


def confusion(wrong: dict[tuple[int, int], int] | None = None) -> list[list[int]]:
    """100 test images of each digit; `wrong` of them (label, prediction) are mistaken."""
    counts = np.diag([100] * 10)
    for (label, predicted), number in (wrong or {}).items():
        counts[label, label] -= number
        counts[label, predicted] += number
    return counts.tolist()


def trial(
    accuracies: list[float | None],
    *,
    protocol: str = "paper",
    aux_task: str = "none",
    aux_weight: float = 1.0,
    seed: int = 0,
    epochs: int | None = None,
    selected: int | None = None,
    **last: Any,
) -> list[Row]:
    """The rows of a trial with these test accuracies in percent, one an epoch."""
    name = f"{protocol}-{aux_task}-w{aux_weight:g}-s{seed}"
    rows: list[Row] = []
    for epoch, percent in enumerate(accuracies, start=1):
        row = {
            "trial": name, "protocol": protocol, "aux_task": aux_task, "aux_weight": aux_weight,
            "seed": seed, "epochs": epochs or len(accuracies), "epoch": epoch,
            "selected_epoch": selected or epoch, "loss": 1.0 / epoch,
        }  # fmt: skip
        if percent is not None:
            row |= {"test_accuracy": percent / 100, "test_confusion": confusion()}
        if protocol == "strict":
            row["validation_accuracy"] = 0.5 + epoch / 100
        rows.append(row)
    rows[-1] |= last
    return rows


def tables(report: str) -> dict[str, list[dict[str, str]]]:
    """Heading -> rows of the table below it: column -> text."""
    found: dict[str, list[dict[str, str]]] = {}
    for part in report.split("\n\n### "):
        heading, _, body = part.partition("\n\n")
        lines = [line for line in body.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        heading = "### " + heading.removeprefix("### ")
        found[heading] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    return found


def table(rows: list[Row], start: str, *, dataset: str = "digits") -> list[dict[str, str]]:
    """The table whose heading starts so."""
    (found,) = [
        body
        for heading, body in tables(classification_report(rows, dataset=dataset)).items()
        if heading.startswith(start)
    ]
    return found


def arms(none: list[float], rotation: list[float], **settings: Any) -> list[Row]:
    """Trials of one epoch with these accuracies, one a seed: seeds 0, 1, ... of both arms."""
    rows: list[Row] = []
    for task, accuracies in (("none", none), ("rotation", rotation)):
        for seed, accuracy in enumerate(accuracies):
            rows += trial([accuracy], aux_task=task, seed=seed, **settings)
    return rows


# Table I


def test_table_i_is_the_mean_over_seeds_with_students_t_interval() -> None:
    none, rotation = table(arms([97, 98, 99], [94, 96, 98]), "### Test accuracy in percent (Ta")
    t = stats.t.ppf(0.975, df=2)
    assert t == pytest.approx(4.302653)
    # 98 +- t * 1 / sqrt(3), 96 +- t * 2 / sqrt(3)
    assert (none["accuracy"], none["95% interval"]) == ("98.00", "95.52 to 100.48")
    assert 98 - t / math.sqrt(3) == pytest.approx(95.52, abs=0.005)
    assert (rotation["accuracy"], rotation["95% interval"]) == ("96.00", "91.03 to 100.97")
    assert 96 - 2 * t / math.sqrt(3) == pytest.approx(91.03, abs=0.005)
    assert (none["pretext task"], rotation["pretext task"]) == ("none", "rotation, weight 1")
    assert (none["seeds"], none["epochs"]) == ("3", "1")


def test_fewer_training_images_than_all_are_said() -> None:
    rows = [*trial([90.0], train_images=12_000), *trial([91.0], seed=1, train_images=12_000)]
    heading = "### Test accuracy in percent (Table I), mnist"
    assert (
        tables(classification_report(rows, dataset="mnist"))[heading][0]["training images"]
        == "12,000"
    )
    assert "training images" not in classification_report(trial([90.0]), dataset="mnist")


@pytest.mark.parametrize(
    ("protocol", "selected", "accuracy", "reported"),
    [("paper", 2, "99.00", "best test epoch"), ("paper-code", 3, "98.00", "last epoch")],
)
def test_table_i_reports_the_epoch_that_the_protocol_selects(
    protocol: str, selected: int, accuracy: str, reported: str
) -> None:
    rows = trial([90, 99, 98], protocol=protocol, selected=selected)
    (row,) = table(rows, "### Test accuracy in percent (Table I)")
    assert (row["accuracy"], row["reported"]) == (accuracy, reported)
    assert (row["best epoch"], row["last epoch"]) == ("99.00", "98.00")


def test_best_epoch_is_the_mean_of_each_seeds_own_best() -> None:
    rows = trial([90, 99, 98], selected=2) + trial([97, 91, 96], seed=1, selected=1)
    (row,) = table(rows, "### Test accuracy in percent (Table I)")
    assert (row["accuracy"], row["best epoch"], row["last epoch"]) == ("98.00", "98.00", "97.00")


def test_strict_reports_the_last_row_which_holds_the_best_validation_epochs_figures() -> None:
    rows = trial([None, None, 97], protocol="strict", selected=1)
    (row,) = table(rows, "### Test accuracy in percent (Table I)")
    assert (row["accuracy"], row["reported"]) == ("97.00", "best validation epoch")
    assert (row["best epoch"], row["last epoch"]) == ("-", "-")  # the test set was read once


def test_one_seed_has_no_interval() -> None:
    (row,) = table(trial([97]), "### Test accuracy in percent (Table I)")
    assert (row["seeds"], row["accuracy"], row["95% interval"]) == ("1", "97.00", "-")


def test_papers_numbers_stand_beside_those_of_mnist_only() -> None:
    rows = arms([98], [97])
    beside = [row["paper"] for row in table(rows, "### Test accuracy in", dataset="mnist")]
    assert beside == ["99.19", "98.45"]
    for dataset in ("digits", "fashion-mnist"):
        found = table(rows, "### Test accuracy in percent", dataset=dataset)
        assert [row["paper"] for row in found] == ["-", "-"]
        assert "99.19" not in classification_report(rows, dataset=dataset)


def test_papers_number_stands_beside_its_own_weight_only() -> None:
    rows = trial([98], aux_task="rotation", aux_weight=0.1) + trial([98], aux_task="rotation")
    beside = [row["paper"] for row in table(rows, "### Test accuracy in", dataset="mnist")]
    assert beside == ["-", "98.45"]


# Does it help?


@pytest.mark.parametrize(
    ("none", "rotation", "difference", "interval", "verdict"),
    [
        # each seed gains 1, give or take 0.1: 1 +- 4.302653 * 0.1 / sqrt(3)
        ([90, 95, 99], [91, 96.1, 99.9], "+1.00", "+0.75 to +1.25", "helps"),
        ([91, 96.1, 99.9], [90, 95, 99], "-1.00", "-1.25 to -0.75", "hurts"),
        # 1, 2 and -3 around 0: 0 +- 4.302653 * sqrt(7) / sqrt(3)
        ([90, 95, 98], [91, 97, 95], "+0.00", "-6.57 to +6.57", "undecided"),
        # 2.0 and 2.1, one degree of freedom: 2.05 +- 12.706205 * 0.05
        ([90, 91], [92, 93.1], "+2.05", "+1.41 to +2.69", "undecided"),  # two seeds
        ([90, 95, 99], [91, 96, 100], "+1.00", "+1.00 to +1.00", "undecided"),  # no width
    ],
)
def test_verdict_is_what_the_interval_of_the_paired_differences_says(
    none: list[float], rotation: list[float], difference: str, interval: str, verdict: str
) -> None:
    (row,) = table(arms(none, rotation), HELPED)
    assert (row["difference"], row["95% interval"], row["verdict"]) == (
        difference, interval, verdict,
    )  # fmt: skip


def test_differences_are_paired_over_the_seeds_that_both_arms_have() -> None:
    rows = trial([90], seed=0) + trial([95], seed=2) + trial([50], seed=7)
    for seed, accuracy in ((2, 96.0), (0, 91.0), (5, 99.0)):
        rows += trial([accuracy], aux_task="rotation", seed=seed)
    (row,) = table(rows, HELPED)
    assert (row["seeds"], row["difference"]) == ("2", "+1.00")


def test_one_common_seed_decides_nothing() -> None:
    (row,) = table(arms([90], [99]), HELPED)
    assert (row["difference"], row["95% interval"], row["verdict"]) == ("+9.00", "-", "undecided")


def test_arms_are_compared_within_their_protocol() -> None:
    rows = arms([90, 91, 90], [92, 93.1, 92])
    rows += arms([99, 98, 99], [95, 94.1, 95], protocol="paper-code")
    assert [
        (row["protocol"], row["verdict"], row["difference"]) for row in table(rows, HELPED)
    ] == [
        ("paper", "helps", "+2.03"),
        ("paper-code", "hurts", "-3.97"),
    ]


def test_without_a_plain_arm_nothing_is_compared() -> None:
    report = classification_report(trial([90], aux_task="rotation"), dataset="digits")
    assert f"{HELPED}\n\nNeeds an arm `none`." in report


# Table II and the half turns


def test_table_ii_is_the_diagonal_of_each_seeds_confusion_in_percent() -> None:
    rows: list[Row] = []
    for seed, mistaken in enumerate((1, 2, 3)):
        rows += trial([99], seed=seed, test_confusion=confusion({(6, 9): mistaken, (2, 5): 4}))
    found = table(rows, "### Test accuracy of each class in percent (Table II)")
    assert [row["class"] for row in found] == [str(digit) for digit in range(10)]
    column = [row["paper: none"] for row in found]
    assert column[6] == "98.00 ± 2.48"  # 99, 98, 97: 4.302653 * 1 / sqrt(3)
    assert column[2] == "96.00 ± 0.00"
    assert column[0] == column[9] == "100.00 ± 0.00"


def test_table_ii_has_the_printed_columns_beside_our_own_for_mnist_only() -> None:
    own = ["class", "paper: none", "paper: rotation, weight 1"]
    rows = table(arms([98], [97]), "### Test accuracy of each class", dataset="mnist")
    assert list(rows[6].items()) == [
        ("class", "6"),
        ("paper: none", "100.00"),  # ours, in the protocol `paper`; one seed has no interval
        ("paper: rotation, weight 1", "100.00"),
        ("printed: none", "98.96"),
        ("printed: rotation", "97.70"),
    ]
    assert list(table(arms([98], [97]), "### Test accuracy of each class")[0]) == own


def test_class_that_the_test_set_does_not_have_is_unknown() -> None:
    counts = confusion()
    counts[3] = [0] * 10
    found = table(trial([99], test_confusion=counts), "### Test accuracy of each class in percent")
    assert (found[3]["paper: none"], found[4]["paper: none"]) == ("-", "100.00")


def test_half_turns_are_counted_from_label_to_prediction() -> None:
    assert PAIRS == ((2, 5), (5, 2), (6, 9), (9, 6))  # section VI-A
    rows = trial([99], test_confusion=confusion({(2, 5): 1, (6, 9): 7, (9, 6): 20, (4, 9): 50}))
    rows += trial([99], seed=1, test_confusion=confusion({(2, 5): 2, (6, 9): 7}))
    (row,) = table(rows, HALF_TURNS)
    assert [row[f"{a} -> {b}"] for a, b in PAIRS] == ["1.5", "0.0", "7.0", "10.0"]


def test_confusion_is_that_of_the_selected_epoch() -> None:
    rows = trial([99, 90], selected=1, test_confusion=confusion({(6, 9): 50}))
    (row,) = table(rows, HALF_TURNS)
    assert row["6 -> 9"] == "0.0"


def test_pretext_accuracy_of_each_class_is_the_mean_over_seeds() -> None:
    rows = trial([99])
    for seed, share in enumerate((0.5, 1.0)):
        per_class = [share] + [0.25] * 9
        rows += trial(
            [99], aux_task="rotation", seed=seed, aux_accuracy=share / 2,
            aux_accuracy_per_class=per_class,
        )  # fmt: skip
    (row,) = table(rows, PRETEXT)  # the plain arm has none
    assert (row["all"], row["0"], row["9"]) == ("37.50", "75.00", "25.00")


def test_without_a_pretext_head_its_table_is_left_out() -> None:
    assert PRETEXT not in classification_report(trial([99]), dataset="digits")


# Which trials count


def test_unfinished_trials_are_left_out() -> None:
    rows = trial([99, 98], selected=1) + trial([10, 10], seed=1, epochs=3)
    rows += trial([50], aux_task="rotation", epochs=2)
    (row,) = table(rows, "### Test accuracy in percent (Table I)")
    assert (row["pretext task"], row["seeds"], row["accuracy"]) == ("none", "1", "99.00")
    assert [(arm.name, list(arm.runs)) for arm in finished_arms(rows)] == [("none", [0])]


def test_report_of_no_finished_trial_says_so() -> None:
    rows = trial([99], epochs=2)
    assert classification_report(rows, dataset="mnist") == "No trial has finished yet."
    assert classification_report([], dataset="mnist") == "No trial has finished yet."


def test_arms_stand_in_the_order_of_protocols_with_the_plain_one_first() -> None:
    rows: list[Row] = []
    for protocol in ("strict", "paper-code", "paper"):
        for task, weight in (("rotation", 2.0), ("rotation", 0.5), ("none", 1.0)):
            rows += trial([9], protocol=protocol, aux_task=task, aux_weight=weight)
    assert [(arm.protocol, arm.name) for arm in finished_arms(rows)] == [
        (protocol, name)
        for protocol in ("paper", "paper-code", "strict")
        for name in ("none", "rotation, weight 0.5", "rotation, weight 2")
    ]


# Reading


def write_epochs(folder: Path, text: str) -> Path:
    (folder / "epochs.jsonl").write_text(text)
    return folder


def test_of_a_repeated_epoch_the_last_one_counts(tmp_path: Path) -> None:
    first, second = trial([50, 60])
    again = second | {"test_accuracy": 0.7}
    lines = [json.dumps(row) for row in (second, first, again)]
    found = read_epochs(write_epochs(tmp_path, "\n".join(lines) + "\n"))
    assert [(row["epoch"], row["test_accuracy"]) for row in found] == [(1, 0.5), (2, 0.7)]


@pytest.mark.parametrize("where", ["in the middle", "at the end"])
def test_line_that_a_kill_cut_short_is_left_out(where: str, tmp_path: Path) -> None:
    first, second = (json.dumps(row) for row in trial([50, 60]))
    text = f"{first[:-9]}\n{second}\n" if where == "in the middle" else f"{second}\n{first[:-9]}"
    found = read_epochs(write_epochs(tmp_path, text))
    assert [row["epoch"] for row in found] == [2]


def test_lines_that_are_no_epoch_are_left_out(tmp_path: Path) -> None:
    good = json.dumps(trial([50])[0])
    text = f'\n7\nnull\n"a"\n[]\n{{}}\n{{"trial": "x"}}\n{good}\n'
    assert len(read_epochs(write_epochs(tmp_path, text))) == 1


def test_folder_without_the_file_has_no_epochs(tmp_path: Path) -> None:
    assert read_epochs(tmp_path) == []


def test_trials_are_kept_apart_and_epochs_are_in_order(tmp_path: Path) -> None:
    rows = [*trial(list(range(1, 12))), *trial([5, 6], seed=1)]
    text = "".join(json.dumps(row) + "\n" for row in reversed(rows))
    assert read_epochs(write_epochs(tmp_path, text)) == rows


# Figure 8


def test_figure_8_is_written_as_a_png(tmp_path: Path) -> None:
    rows = trial([50, 60]) + trial([55, 65], seed=1) + trial([40, 50], aux_task="rotation")
    rows += trial([None, 60], protocol="strict")
    path = plot_classification(rows, tmp_path / "curves.png", title="digits")
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.stat().st_size > 10_000


def test_figure_8_shows_mean_and_range_over_seeds_by_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    savefig = Figure.savefig

    def spy(figure: Figure, *args: Any, **settings: Any) -> None:
        drawn.append(figure)
        savefig(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", spy)
    rows = trial([50, 60]) + trial([54, 70], seed=1)
    plot_classification(rows, tmp_path / "curves.png", title="digits")
    loss, accuracy = drawn[0].axes
    assert [np.asarray(line.get_xydata()).tolist() for line in loss.lines] == [[[1, 1.0], [2, 0.5]]]
    assert [np.asarray(line.get_xydata()).tolist() for line in accuracy.lines] == [
        [[1, 52], [2, 65]]
    ]
    corners = np.asarray(accuracy.collections[0].get_paths()[0].vertices).tolist()
    assert {(1, 50), (1, 54), (2, 60), (2, 70)} <= {tuple(corner) for corner in corners}


def test_figure_8_of_no_finished_trial_is_empty_and_does_not_fail(tmp_path: Path) -> None:
    path = plot_classification(trial([50], epochs=2), tmp_path / "curves.png", title="digits")
    assert path.read_bytes().startswith(b"\x89PNG")
