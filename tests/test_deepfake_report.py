"""Table III's report: rows that cannot run, seeds, intervals, and what the faces are called."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.deepfake import TABLE_III, CropScores
from rayssl.deepfake_report import Finished, deepfake_report, load_scores, plot_deepfake
from rayssl.deepfake_trainables import finished_trials, save_scores

DATASET = "stand-in of drawn faces"


def scores(hits: float, seed: int = 0) -> CropScores:
    """20 videos of 5 frames; this share of the videos is on the right side."""
    videos = np.repeat(np.arange(20), 5)
    labels = videos % 2
    right = videos < round(20 * hits)
    p = np.where(right == (labels == 1), 0.9, 0.1)
    return CropScores(np.arange(100) + seed, labels, videos, p)


def trial(
    backbone: str = "resnet50-random", split: str = "random", hits: float = 0.8, **changes: Any
) -> Finished:
    row: dict[str, Any] = {
        "protocol": "strict", "backbone": backbone, "layer": "avgpool", "classifier": "logistic",
        "c": None, "training_fakes": "data", "split": split, "seed": 0, "chosen": {"C": 0.1},
        "changed_parameters": [],
        "changed_statistics": [], "sizes": {"train": 60, "validation": 20, "test": 100},
        "leakage": {"shared": {"video": 20, "actor": None}, "total": {"video": 20, "actor": None},
                    "left_out": 0},
    }  # fmt: skip
    return Finished(row | changes, scores(hits, (row | changes)["seed"]))


def cells(report: str, heading: str, start: str) -> list[str]:
    """The cells of the row that starts so, in the table below a heading."""
    table = report.split(heading)[1].split("\n\n", 1)[1]
    line = next(line for line in table.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_all_six_rows_are_there_with_the_papers_numbers_and_why_some_were_not_run() -> None:
    missing = {name: f"Weight file missing: {name}.pth" for name in list(TABLE_III)[1:]}
    report = deepfake_report(
        [trial(), trial(split="family", hits=0.6)], dataset=DATASET, missing=missing
    )
    for name, row in TABLE_III.items():
        found = cells(report, "### Table III under `strict`", row.name)
        assert found[-2:] == [f"{row.random_split:.1f}", f"{row.hard_split:.1f}"]
        assert (found[5] == "not run") == (name in missing)
        if name in missing:
            assert f"- {row.name}: not run: Weight file missing: {name}.pth" in report
    found = cells(report, "### Table III under `strict`", TABLE_III["resnet50-random"].name)
    assert found[5].startswith("80.0 (")
    assert found[6].startswith("60.0 (")


def test_every_heading_of_numbers_says_what_the_faces_are() -> None:
    trials = [trial(), trial("alexnet-imagenet"), trial(protocol="paper-code", classifier="adam")]
    report = deepfake_report(trials, dataset=DATASET, missing={})
    numbers = [h for h in report.splitlines() if h.startswith("###") and (
        "Table III" in h or "metrics" in h or "Difference" in h)]  # fmt: skip
    assert len(numbers) == 5
    assert all(DATASET in heading for heading in numbers)
    assert "DFDC" not in report


def test_each_protocol_has_its_own_table_and_says_what_chose() -> None:
    report = deepfake_report(
        [trial(), trial(protocol="paper-code", classifier="adam", chosen={"epoch": 3.0},
                        changed_statistics=["bn.num_batches_tracked", "bn.running_mean"])],
        dataset=DATASET, missing={},
    )  # fmt: skip
    assert "Reported: the best on validation crops, test read once." in report
    assert "Reported: the best epoch on the test crops, as the authors did." in report
    moved = cells(report, "### What the backbone's tensors did", "paper-code")
    assert moved[4:] == ["epoch 3", "0", "2", "bn.running_mean"]


def test_seeds_are_averaged_and_counted() -> None:
    trials = [trial(hits=0.6, seed=0), trial(hits=0.8, seed=1)]
    report = deepfake_report(trials, dataset=DATASET, missing={})
    found = cells(report, "### Table III under `strict`", "ResNet-50 (Random")
    assert found[4] == "2"
    assert found[5].startswith("70.0 (")


def test_difference_is_paired_over_the_seeds_that_both_have() -> None:
    trials = [
        trial(hits=0.6), trial("alexnet-imagenet", hits=0.8),
        trial("alexnet-imagenet", hits=1.0, seed=1),
    ]  # fmt: skip
    report = deepfake_report(trials, dataset=DATASET, missing={})
    found = cells(report, "### Difference to the first row's features", "strict")
    assert found[3:6] == ["alexnet-imagenet avgpool", "resnet50-random avgpool", "1"]
    # Four of 20 videos, +20 points; nothing got worse in any resample.
    assert found[6].startswith("+20.0 (+")


def test_one_row_alone_has_no_difference() -> None:
    assert "Difference" not in deepfake_report([trial()], dataset=DATASET, missing={})


def test_report_before_the_first_trials_end_names_what_cannot_run() -> None:
    report = deepfake_report([], dataset=DATASET, missing={"alexnet-imagenet": "no file"})
    assert "AlexNet (ImageNet pre-trained): not run: no file" in report
    assert report.endswith("No trial has finished yet.")


def test_one_label_in_the_test_part_leaves_metrics_that_need_both_open() -> None:
    one = trial()
    only = one.scores._replace(labels=np.ones(100, np.int64))
    report = deepfake_report([Finished(one.row, only)], dataset=DATASET, missing={})
    assert cells(report, "### All metrics per frame", "strict")[7] == "-"


@pytest.mark.parametrize("trials", [[], [trial(), trial(split="family", hits=0.5)]])
def test_figure_is_a_picture(trials: list[Finished], tmp_path: Path) -> None:
    path = plot_deepfake(trials, tmp_path / "table3.png", dataset=DATASET)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_figure_of_faces_told_apart_without_an_error(tmp_path: Path) -> None:
    # 24 of each: 24 widths of 1/24 sum to 0.9999999999999999, which is below the interval's low.
    videos = np.arange(48)
    perfect = CropScores(videos, videos % 2, videos, (videos % 2 + videos / 48) / 2)
    path = plot_deepfake([Finished(trial().row, perfect)], tmp_path / "t.png", dataset=DATASET)
    assert path.is_file()


def test_scores_come_back_as_they_were_saved_and_damage_is_refused(tmp_path: Path) -> None:
    saved = scores(0.7)
    save_scores(tmp_path, "a", saved)
    path = tmp_path / "scores" / "a.npz"
    for name, values in load_scores(path)._asdict().items():
        assert np.array_equal(values, getattr(saved, name))
    rows: list[dict[str, Any]] = [
        {"trial": "a", "done": True},
        {"trial": "b", "done": True},
        {"trial": "c"},
    ]
    assert finished_trials(tmp_path, rows) == {"a"}  # b's scores are gone, c is under way
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is damaged"):
        load_scores(path)


def test_missing_paper_number_is_no_number() -> None:
    found = cells(
        deepfake_report([trial("mine")], dataset=DATASET, missing={}), "### Table III", "mine"
    )
    assert found[-2:] == ["-", "-"]


def test_missing_weights_make_no_table_of_a_protocol_that_was_not_asked_for() -> None:
    only = [trial(protocol="paper-code", classifier="adam")]
    for trials in (only, []):
        report = deepfake_report(
            trials, dataset=DATASET, missing={"alexnet-imagenet": "no file"},
            protocols=("paper-code",),
        )  # fmt: skip
        headings = [line for line in report.splitlines() if line.startswith("### Table III under")]
        assert len(headings) == 1
        assert "`paper-code`" in headings[0]
        assert cells(report, headings[0], TABLE_III["alexnet-imagenet"].name)[5] == "not run"


def test_backbone_whose_weights_went_away_stands_in_the_table_once() -> None:
    report = deepfake_report(
        [trial("alexnet-imagenet")], dataset=DATASET, missing={"alexnet-imagenet": "no file"},
        protocols=("strict",),
    )  # fmt: skip
    name = TABLE_III["alexnet-imagenet"].name
    assert report.count(f"| {name}") == 1
    assert f"- {name}: not run further: no file" in report


@pytest.mark.parametrize(
    ("backbone", "weights_id", "words"),
    [
        ("resnet50-random", "random-0", "drawn"),
        ("resnet50-imagenet", "0676ba61b6795bbe", "published"),  # torchvision's own name of it
        ("resnet50-imagenet", "11ad3fa6b4a3d7c1", "file 11ad3fa6b4a3d7c1"),
        ("alexnet-rotnet", "0676ba61b6795bbe", "file 0676ba61b6795bbe"),  # no hash is published
        ("mine", "0676ba61b6795bbe", "file 0676ba61b6795bbe"),
        ("resnet50-random", None, "-"),
    ],
)
def test_table_says_whether_weights_are_the_published_ones(
    backbone: str, weights_id: str | None, words: str
) -> None:
    report = deepfake_report([trial(backbone, weights_id=weights_id)], dataset=DATASET, missing={})
    name = TABLE_III[backbone].name if backbone in TABLE_III else backbone
    assert cells(report, "### Table III under `strict`", name)[3] == words


def test_parts_that_a_family_split_leaves_out_are_named_beside_their_crops() -> None:
    leaks: dict[str, Any] = {"shared": {"family": 0}, "total": {"family": 4}, "left_out": 75}
    rows = [trial(), trial(split="family", leakage=leaks | {"left_out_parts": ["test"]})]
    report = deepfake_report(rows, dataset=DATASET, missing={})
    heading = "### What training and test crops share, first seed"
    assert {"75", "test"} <= set(cells(report, heading, "strict   | family"))
