"""Both protocols of Table III: what is frozen, what chooses, and what the authors' code does."""

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayssl import deepfake
from rayssl.backbones.images import available_image_backbones
from rayssl.data.face_splits import leakage_report, split_faces
from rayssl.data.faces import FaceSet
from rayssl.deepfake import (
    TABLE_III,
    CropScores,
    PaperCodeProbe,
    ProbeSettings,
    Row,
    StrictProbe,
    as_batch,
    dataset_of,
    load_probe,
    make_probe_run,
    split_of,
)
from rayssl.deepfake_trainables import epoch_row
from rayssl.features import changed_tensors, tensor_hashes
from tests.toy_faces import add_tiny_backbone, write_toy_faces

STRICT = ProbeSettings(backbone="tiny")
PAPER_CODE = ProbeSettings(
    "paper-code", backbone="tiny", classifier="adam", split="random", epochs=3
)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> FaceSet:
    return write_toy_faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture(autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_backbone(tmp_path_factory.mktemp("backbones"), monkeypatch)
    inference = Row("tiny", math.nan, math.nan, training_mode=False, relu_logits=True)
    monkeypatch.setitem(TABLE_III, "tiny-inference", inference)


def modes() -> list[tuple[bool, int]]:
    found: list[tuple[bool, int]] = importlib.import_module("rayssl.backbones.tiny_probe_net").MODES
    return found


def epoch(run: Any) -> dict[str, Any]:
    """Runs one epoch and returns its metrics without the time it took."""
    return {k: v for k, v in run.run_epoch().items() if k != "seconds"}


def finished(settings: ProbeSettings, faces: FaceSet, features: Path) -> Any:
    run = make_probe_run(settings, faces, features)
    while not run.done:
        run.run_epoch()
    return run


# The table


def test_table_iii_has_a_row_for_every_backbone_in_the_papers_order() -> None:
    names = [name for name in TABLE_III if not name.startswith("tiny")]
    assert sorted(names) == [n for n in available_image_backbones() if not n.startswith("tiny")]
    assert [TABLE_III[name].random_split for name in names] == [56.7, 96.1, 81.5, 75.8, 92.3, 96.5]
    assert [TABLE_III[name].hard_split for name in names] == [56.2, 91.1, 73.5, 71.1, 70.8, 92.7]


def test_paper_code_has_the_authors_settings_for_each_backbone() -> None:
    found = {
        name: (row.lr, row.epochs, row.training_mode, row.relu_logits)
        for name, row in TABLE_III.items()
        if not name.startswith("tiny")
    }
    assert found == {
        "resnet50-random": (1e-4, 10, True, False),
        "resnet50-imagenet": (1e-4, 10, True, False),
        "alexnet-imagenet": (5e-4, 5, True, False),
        "alexnet-rotnet": (1e-4, 10, True, False),
        "bigbigan-resnet50": (1e-4, 10, False, True),
        "bigbigan-revnet50x4": (1e-4, 10, False, True),
    }


def test_paper_code_sees_other_pixels_than_strict() -> None:
    assert STRICT.make_backbone().preprocessing != PAPER_CODE.make_backbone().preprocessing


# strict


@pytest.mark.parametrize("classifier", ["logistic", "sgd", "knn"])
def test_strict_leaves_every_parameter_and_statistic_as_it_was(
    classifier: Any, faces: FaceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = STRICT.make_backbone()
    before = tensor_hashes(backbone)
    monkeypatch.setattr(ProbeSettings, "make_backbone", lambda self: backbone)
    modes().clear()
    settings = dataclasses.replace(STRICT, classifier=classifier)
    metrics = StrictProbe(settings, faces, tmp_path).run_epoch()
    assert changed_tensors(before, backbone) == []
    assert {training for training, _ in modes()} == {False}
    assert metrics["changed_parameters"] == metrics["changed_statistics"] == []


def test_strict_that_moves_a_statistic_is_an_error(
    faces: FaceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = STRICT.make_backbone()
    monkeypatch.setattr(ProbeSettings, "make_backbone", lambda self: backbone)
    monkeypatch.setattr(backbone.network, "eval", lambda: None)
    monkeypatch.setattr(backbone, "eval", lambda: backbone.train())
    with pytest.raises(RuntimeError, match="network.bn.running_mean"):
        StrictProbe(STRICT, faces, tmp_path).run_epoch()
    assert list(tmp_path.rglob("*.npy")) == []  # nor are its features kept


@pytest.mark.parametrize("classifier", ["logistic", "sgd", "knn"])
def test_poisoned_test_labels_and_images_change_no_choice_of_strict(
    classifier: Any, faces: FaceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(STRICT, classifier=classifier)
    split = split_of(settings, faces)
    monkeypatch.setattr(deepfake, "split_of", lambda settings, faces: split)
    clean = StrictProbe(settings, faces, tmp_path)
    found = clean.run_epoch()

    test_videos = set(faces.frames["video"].to_numpy()[split.test])
    videos = faces.videos.copy()
    flipped = videos["video"].isin(test_videos)
    videos.loc[flipped, "label"] = 1 - videos.loc[flipped, "label"]
    trap = dataclasses.replace(faces, videos=videos)
    real_crops = FaceSet.crops

    def poisoned(self: FaceSet, rows: Any) -> Any:
        crops = real_crops(self, rows)
        crops[np.isin(rows, split.test)] = 0
        return crops

    monkeypatch.setattr(FaceSet, "crops", poisoned)
    trapped = StrictProbe(settings, trap, tmp_path / "other")
    again = trapped.run_epoch()
    for key in ("chosen", "tried", "validation_log_loss"):
        assert again[key] == found[key]
    if clean.head is not None and trapped.head is not None:
        assert torch.equal(clean.head["weight"], trapped.head["weight"])
    assert not np.array_equal(clean.test.scores, trapped.test.scores)


def test_strict_tells_fakes_it_has_not_seen_and_reads_features_once(
    faces: FaceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = epoch(StrictProbe(STRICT, faces, tmp_path))
    assert first["frame_auc"][0] > 0.9
    assert first["frame_auc"][1] <= first["frame_auc"][0] <= first["frame_auc"][2]
    assert first["leakage"]["shared"]["family"] == 0
    modes().clear()
    assert epoch(StrictProbe(STRICT, faces, tmp_path)) == first
    assert modes() == []
    other = dataclasses.replace(STRICT, seed=1)
    assert epoch(StrictProbe(other, faces, tmp_path)) != first


def test_c_that_is_given_is_not_chosen(faces: FaceSet, tmp_path: Path) -> None:
    metrics = StrictProbe(dataclasses.replace(STRICT, c=0.5), faces, tmp_path).run_epoch()
    assert metrics["chosen"] == {"C": 0.5}
    assert [row["C"] for row in metrics["tried"]] == [0.5]


def test_self_blended_training_is_shown_no_fake_of_the_data(
    faces: FaceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(STRICT, training_fakes="self-blended")
    split = split_of(settings, faces)
    monkeypatch.setattr(deepfake, "split_of", lambda settings, faces: split)
    run = StrictProbe(settings, faces, tmp_path)
    found = run.run_epoch()
    seen = np.concatenate([split.train, split.validation])
    fakes = seen[faces.labels[seen] == 1]
    real_crops = FaceSet.crops

    def poisoned(self: FaceSet, rows: Any) -> Any:
        crops = real_crops(self, rows)
        crops[np.isin(rows, fakes)] = 255
        return crops

    monkeypatch.setattr(FaceSet, "crops", poisoned)
    again = StrictProbe(settings, faces, tmp_path / "other")
    assert again.run_epoch()["tried"] == found["tried"]
    assert np.array_equal(again.test.scores, run.test.scores)
    assert sorted(set(run.test.labels)) == [0, 1]  # the test part keeps the data's fakes
    assert settings.name == "strict-tiny-map-family-logistic-self-blended-s0"


def test_blends_depend_on_seed_and_row_alone(faces: FaceSet, tmp_path: Path) -> None:
    def features(seed: int, folder: str) -> Any:
        settings = dataclasses.replace(STRICT, training_fakes="self-blended", seed=seed)
        backbone = STRICT.make_backbone()
        source = deepfake.feature_sources(settings, backbone, faces, tmp_path / folder)["blends"]
        return source.compute(np.arange(4)), source.compute(np.array([3]))

    first, last = features(0, "a")
    assert np.allclose(first[3], last[0], atol=1e-5)
    assert np.array_equal(features(0, "b")[0], first)
    assert not np.allclose(features(1, "c")[0], first)


# paper-code


def test_paper_code_takes_as_many_fake_crops_as_there_are_real_ones(faces: FaceSet) -> None:
    real = faces.labels == 0
    rare = faces.frames[~real | (faces.frames["frame"] == 0)].reset_index(drop=True)
    many = dataclasses.replace(faces, frames=rare)
    assert (many.labels == 1).sum() == 3 * (many.labels == 0).sum()
    for seed in (0, 1):
        settings = dataclasses.replace(PAPER_CODE, split="video", seed=seed)
        split, whole = split_of(settings, many), split_faces(many, "video", seed=seed)
        assert len(split.validation) == 0
        for rows, all_rows in ((split.train, whole.train), (split.test, whole.test)):
            assert (many.labels[rows] == 1).sum() == (many.labels[rows] == 0).sum() > 0
            assert set(all_rows[many.labels[all_rows] == 0]) < set(rows) < set(all_rows)
            assert (np.diff(rows) > 0).all()
        kept = len(split.train) + len(split.test)
        assert split.leakage.surplus == len(many.labels) - kept
        assert split.leakage.left_out == 0
        assert f"left out: {split.leakage.surplus} fake crops more than" in leakage_report(split)
        rows = np.concatenate([split.train, split.test])
        assert split.leakage.total["video"] == len(set(many.column("video")[split.test]))
        assert len(set(rows)) == kept
        assert np.array_equal(split_of(settings, many).train, split.train)
    strict = split_of(dataclasses.replace(STRICT, split="video"), many)
    assert sum(map(len, strict[:3])) == len(many.labels)


def test_paper_code_moves_batchnorm_statistics_only_and_names_them(
    faces: FaceSet, tmp_path: Path
) -> None:
    run = make_probe_run(PAPER_CODE, faces, tmp_path)
    modes().clear()
    rows = []
    while not run.done:
        rows.append(run.run_epoch())
    assert rows[-1]["changed_parameters"] == []
    assert rows[-1]["changed_statistics"] == [
        "network.bn.num_batches_tracked", "network.bn.running_mean", "network.bn.running_var",
    ]  # fmt: skip
    # 48 training crops in batches of 32 in training mode, then 12 test crops in evaluation mode.
    assert modes() == [(True, 32), (True, 16), (False, 12)] * 3
    accuracies = [row["test_accuracy"] for row in rows]
    best = int(np.argmax(accuracies))
    assert rows[-1]["selected_epoch"] == best + 1  # the best *test* epoch, by name
    assert rows[-1]["frame_accuracy"][0] == accuracies[best]


@pytest.mark.parametrize(("crops", "batches"), [(33, [33]), (34, [32, 2]), (65, [32, 33])])
def test_crop_left_over_alone_joins_the_batch_before_it(
    crops: int, batches: list[int], faces: FaceSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # BatchNorm over one number a channel, as in alexnet-rotnet's fc_block, has no variance.
    split = split_of(PAPER_CODE, faces)
    rows = np.resize(split.train, crops)
    monkeypatch.setattr(deepfake, "split_of", lambda *_: split._replace(train=rows))
    run = PaperCodeProbe(PAPER_CODE, faces)
    modes().clear()
    run.run_epoch()
    assert [size for training, size in modes() if training] == batches


def test_paper_code_over_bigbigan_is_inference_with_a_relu_on_the_logits(
    faces: FaceSet, tmp_path: Path
) -> None:
    settings = dataclasses.replace(PAPER_CODE, backbone="tiny-inference")
    run = PaperCodeProbe(settings, faces)
    modes().clear()
    while not run.done:
        metrics = run.run_epoch()
    assert metrics["changed_statistics"] == []
    assert {training for training, _ in modes()} == {False}
    assert run.head is not None
    assert run.head["relu_logits"]


def test_resumed_paper_code_is_the_uninterrupted_one(faces: FaceSet, tmp_path: Path) -> None:
    whole = make_probe_run(PAPER_CODE, faces, tmp_path)
    first, second, third = epoch(whole), epoch(whole), epoch(whole)
    cut = make_probe_run(PAPER_CODE, faces, tmp_path)
    assert epoch(cut) == first
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    resumed = make_probe_run(PAPER_CODE, faces, tmp_path)
    torch.manual_seed(99)  # global randomness is nobody's business
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert epoch(resumed) == second
    assert epoch(resumed) == third
    with pytest.raises(ValueError, match="Expected the state of a probe"):
        make_probe_run(dataclasses.replace(PAPER_CODE, seed=5), faces, tmp_path).load_state_dict(
            cut.state_dict()
        )


def test_probe_restored_after_its_last_epoch_tells_of_it_again_and_trains_no_more(
    faces: FaceSet, tmp_path: Path
) -> None:
    whole = make_probe_run(PAPER_CODE, faces, tmp_path)
    last = [epoch(whole) for _ in range(3)][-1]
    restored = make_probe_run(PAPER_CODE, faces, tmp_path)
    restored.load_state_dict(whole.state_dict())
    modes().clear()
    assert epoch(restored) == last
    assert modes() == [(False, 12)]
    assert np.array_equal(restored.test.scores, whole.test.scores)
    assert restored.head is not None
    assert whole.head is not None
    assert torch.equal(restored.head["weight"], whole.head["weight"])


def test_state_of_other_faces_is_refused_and_one_of_before_has_none_to_compare(
    faces: FaceSet, tmp_path: Path
) -> None:
    cut = make_probe_run(PAPER_CODE, faces, tmp_path)
    first, state = epoch(cut), cut.state_dict()
    other = dataclasses.replace(faces, fingerprint="0123456789abcdef")
    with pytest.raises(
        ValueError, match=f"{faces.fingerprint} that the state is of, got 0123456789"
    ):
        make_probe_run(PAPER_CODE, other, tmp_path).load_state_dict(state)
    assert state.pop("faces") == faces.fingerprint
    resumed = make_probe_run(PAPER_CODE, faces, tmp_path)
    resumed.load_state_dict(state)
    assert epoch(resumed)["epoch"] == first["epoch"] + 1


@pytest.mark.parametrize("settings", [STRICT, PAPER_CODE], ids=lambda s: s.protocol)
def test_every_row_names_the_weights(
    settings: ProbeSettings, faces: FaceSet, tmp_path: Path
) -> None:
    found = make_probe_run(settings, faces, tmp_path).run_epoch()
    assert epoch_row(settings, found)["weights_id"] == "random-0"


def with_file(
    settings: ProbeSettings, path: str, weights_id: str, monkeypatch: pytest.MonkeyPatch
) -> ProbeSettings:
    """The settings with a weight file, whose backbone is drawn and says it was read from there."""
    made = ProbeSettings.make_backbone

    def make(self: ProbeSettings) -> Any:
        backbone = made(dataclasses.replace(self, weights=None))
        backbone.weights_id = weights_id
        return backbone

    monkeypatch.setattr(ProbeSettings, "make_backbone", make)
    return dataclasses.replace(settings, weights=path)


def test_state_goes_on_over_a_moved_weight_file_and_not_over_another(
    faces: FaceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = with_file(PAPER_CODE, "/here/a.pth", "id-a", monkeypatch)
    whole = make_probe_run(here, faces, tmp_path)
    first, state = epoch(whole), whole.state_dict()
    second = epoch(whole)
    moved = make_probe_run(dataclasses.replace(here, weights="/there/a.pth"), faces, tmp_path)
    moved.load_state_dict(state)
    assert epoch(moved) == second != first
    other = with_file(PAPER_CODE, "/here/a.pth", "id-b", monkeypatch)
    with pytest.raises(ValueError, match="over weights id-a, got id-b of /here/a.pth"):
        make_probe_run(other, faces, tmp_path).load_state_dict(state)


def test_state_of_before_that_names_no_weights_is_compared_by_their_path(
    faces: FaceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = with_file(PAPER_CODE, "/here/a.pth", "id-a", monkeypatch)
    cut = make_probe_run(here, faces, tmp_path)
    cut.run_epoch()
    state = cut.state_dict()
    del state["weights_id"]
    make_probe_run(here, faces, tmp_path).load_state_dict(state)
    moved = dataclasses.replace(here, weights="/there/a.pth")
    with pytest.raises(ValueError, match="Expected the state of a probe"):
        make_probe_run(moved, faces, tmp_path).load_state_dict(state)


def test_probes_leave_global_randomness_alone(faces: FaceSet, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    make_probe_run(PAPER_CODE, faces, tmp_path).run_epoch()
    make_probe_run(dataclasses.replace(STRICT, classifier="sgd"), faces, tmp_path).run_epoch()
    assert torch.equal(torch.get_rng_state(), state)


# What stays


@pytest.mark.parametrize(
    "settings",
    [STRICT, dataclasses.replace(STRICT, classifier="sgd"), PAPER_CODE,
     dataclasses.replace(PAPER_CODE, backbone="tiny-inference")],
    ids=lambda s: f"{s.protocol}-{s.classifier}-{s.backbone}",
)  # fmt: skip
def test_probe_that_is_loaded_again_gives_the_reported_scores(
    settings: ProbeSettings, faces: FaceSet, tmp_path: Path
) -> None:
    run = finished(settings, faces, tmp_path)
    torch.save(run.head, tmp_path / "head.pt")
    backbone, head = load_probe(torch.load(tmp_path / "head.pt", weights_only=True))
    x = backbone.preprocess(as_batch(faces.crops(run.test.rows)))
    with torch.no_grad():
        scores = torch.softmax(head(backbone(x)).double(), 1)[:, 1].numpy()
    assert scores == pytest.approx(run.test.scores, abs=1e-4)


def test_head_over_other_weights_is_refused(faces: FaceSet, tmp_path: Path) -> None:
    head = finished(STRICT, faces, tmp_path).head
    with pytest.raises(ValueError, match="Pass the file that the probe was fitted over"):
        load_probe(head | {"weights_id": "random-7"})


@pytest.mark.parametrize("settings", [STRICT, PAPER_CODE], ids=lambda s: s.protocol)
def test_head_names_its_faces_and_one_of_before_that_names_none_is_loaded(
    settings: ProbeSettings, faces: FaceSet, tmp_path: Path
) -> None:
    head = finished(settings, faces, tmp_path).head
    assert head.pop("faces") == faces.fingerprint
    assert load_probe(head)[0].name == "tiny"


def test_nearest_neighbours_leave_no_head(faces: FaceSet, tmp_path: Path) -> None:
    assert finished(dataclasses.replace(STRICT, classifier="knn"), faces, tmp_path).head is None


def test_scores_know_the_video_and_label_of_each_crop(faces: FaceSet, tmp_path: Path) -> None:
    test: CropScores = finished(STRICT, faces, tmp_path).test
    names = faces.videos["video"].to_numpy()[test.videos]
    assert names.tolist() == faces.frames["video"].to_numpy()[test.rows].tolist()
    assert test.labels.tolist() == [int(name.endswith("b")) for name in names]


def test_drawn_faces_are_called_drawn_faces(faces: FaceSet) -> None:
    assert dataset_of(faces) == "stand-in of drawn faces"
    videos = faces.videos.assign(part="dfdc_train_part_0")
    assert dataset_of(dataclasses.replace(faces, videos=videos)) == faces.folder.name


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"protocol": "loose"}, "protocol of tiny under loose must be one of strict, paper-code"),
        ({"backbone": "vgg"}, "Unknown backbone 'vgg'"),
        ({"layer": "conv9"}, "must be one of None, map, got 'conv9'"),
        ({"split": "sex"}, "must be one of random, video"),
        ({"classifier": "adam"}, "must be one of logistic, sgd, knn, got 'adam'"),
        ({"protocol": "paper-code"}, "must be one of adam, got 'logistic'"),
        ({"test_share": 1.0}, "test_share must be in"),
        ({"validation_share": 0.0}, "validation_share must be in"),
        ({"c": 0.0}, "c is logistic regression's and above 0"),
        ({"classifier": "knn", "c": 1.0}, "c is logistic regression's"),
        ({"epochs": 3}, "epochs are those of sgd and adam"),
        ({"classifier": "sgd", "epochs": 0}, "1 or more, got 0"),
        ({"training_fakes": "mine"}, "training_fakes of tiny under strict must be one of data"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_settings_that_no_probe_can_have_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(STRICT, **change).check()
