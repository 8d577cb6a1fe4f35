"""Supervised and rotation pretraining: the loss by hand, resume, two processes, the weights."""

import dataclasses
import json
import os
import runpy
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

import rayssl.pretraining
from rayssl import pretraining_job
from rayssl._torchvision import torchvision
from rayssl.backbones.images import image_backbone_spec, make_image_backbone
from rayssl.backbones.weights import load_strictly, load_weights
from rayssl.data.class_folders import ClassFolders, random_part
from rayssl.jobs import find_job
from rayssl.jobs.pretrain import EpochPretraining, PretrainTrial
from rayssl.pretraining import BACKBONES, Arch, Pretraining, PretrainSettings, normalized
from rayssl.pretraining_job import PretrainJob
from rayssl.sweeps.axes import grid_points, parse_axis, trials_of_points
from rayssl.trainables import newest_state

WORKER = Path(__file__).parent / "pretraining_worker.py"
NAMES = runpy.run_path(str(WORKER))
EACH_UPDATE: PretrainSettings = NAMES["SETTINGS"]  # a row after every update
SETTINGS = replace(EACH_UPDATE, checkpoint_every=500)


def draw_images(root: Path, per_class: int, side: int = 40) -> Path:
    """Triangles and houses that stand upright, in two folders: their rotation can be told."""
    rng = np.random.default_rng(0)
    for name in ("house", "triangle"):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            grey, light = (int(v) for v in (rng.integers(0, 60), rng.integers(150, 256)))
            image = Image.new("RGB", (side, side), (grey, grey, grey))
            draw, r = ImageDraw.Draw(image), side // 3
            x, y = (int(v) + side // 2 for v in rng.integers(-side // 12, side // 12 + 1, 2))
            if name == "house":
                draw.rectangle([x - r, y, x + r, y + r], fill=(light, light, light))
                draw.polygon([(x - r, y), (x + r, y), (x, y - r)], fill=(200, 30, 30))
            else:
                draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=(30, light, 30))
            image.save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images") / "drawn", 19)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The architecture resnet50 is a tiny network for one test."""
    monkeypatch.setitem(BACKBONES, "resnet50", ("tiny", "last."))
    monkeypatch.setattr(rayssl.pretraining, "image_backbone_spec", lambda name: NAMES["SPEC"])


def make(folder: Path, settings: PretrainSettings = SETTINGS, **options: Any) -> Pretraining:
    return Pretraining(settings, ClassFolders(folder, 32, settings.seed), **options)


def assert_equal_networks(first: Pretraining, second: Pretraining) -> None:
    states = first.network.state_dict(), second.network.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def assert_equal_rows(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    without_speed = [[row | {"images_per_s": 0} for row in rows] for rows in (first, second)]
    assert without_speed[0] == without_speed[1]


# Training


def test_both_accuracies_rise_above_chance(folder: Path, tiny: None) -> None:
    settings = replace(SETTINGS, epochs=12, lr=0.05, lr_steps=())
    training = make(folder, settings, validation=ClassFolders(folder, 32))
    rows = list(training.progress())
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    first, last = rows[0], rows[-1]
    assert last["validation_accuracy"] > 0.9, "chance is 1/2"
    assert last["validation_aux_accuracy"] > 0.7, "chance is 1/4"
    assert last["aux_accuracy"] > first["aux_accuracy"] + 0.2
    assert last["loss"] < first["loss"]
    assert last["loss"] == pytest.approx(last["class_loss"] + last["aux_loss"])


@pytest.mark.parametrize("aux_weight", [0.0, 0.5])
def test_first_update_is_that_of_a_loop_by_hand(
    folder: Path, tiny: None, aux_weight: float
) -> None:
    settings = replace(SETTINGS, aux_weight=aux_weight, epochs=1, checkpoint_every=1)
    training, by_hand = make(folder, settings), make(folder, settings)
    row = next(training.progress())
    order = torch.randperm(38, generator=torch.Generator().manual_seed(3 * 1_000_003))
    data = ClassFolders(folder, 32, 3)
    pairs = [data[0, index] for index in order[:12].tolist()]
    x, y = torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])
    network = by_hand.network.train()
    loss = torch.zeros(())
    if aux_weight:  # the four copies of one crop, then f once for all, as BatchNorm sees them
        copies = torch.cat([torch.rot90(x, k, (2, 3)) for k in range(4)])
        features = network.backbone(normalized(copies))
        for i in range(48):
            logits = network.heads["aux"](features[i : i + 1])
            loss = loss - aux_weight * F.log_softmax(logits, 1)[0, i // 12] / 48
    else:
        features = network.backbone(normalized(x))
        assert list(network.heads) == ["class"]
    for i in range(12):
        loss = loss - F.log_softmax(network.heads["class"](features[i : i + 1]), 1)[0, y[i]] / 12
    loss.backward()
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    after = dict(training.network.named_parameters())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        step = parameter.grad + settings.weight_decay * parameter.detach()
        expected = parameter.detach() - settings.lr * (1 + settings.momentum) * step  # Nesterov
        assert torch.allclose(after[name], expected, atol=1e-6), name


def test_without_labels_the_pretext_head_alone_is_trained_and_saved(
    folder: Path, tiny: None
) -> None:
    training = make(folder, replace(SETTINGS, labels=False, epochs=1))
    row = next(training.progress())
    assert list(training.network.heads) == ["aux"]
    assert {"aux_loss", "aux_accuracy"} <= row.keys()
    assert not {"class_loss", "accuracy"} & row.keys()
    assert row["loss"] == pytest.approx(row["aux_loss"])
    assert training.weights()["last.weight"].shape == (4, 24)


def test_plain_training_has_no_figures_of_a_task(folder: Path, tiny: None) -> None:
    training = make(
        folder, replace(SETTINGS, aux_weight=0.0, epochs=1), validation=ClassFolders(folder, 32)
    )
    row = next(training.progress())
    assert row.keys() == {
        "epoch", "update", "updates", "lr", "loss", "class_loss", "accuracy", "images_per_s",
        "epoch_done", "validation_accuracy",
    }  # fmt: skip


def test_arms_of_one_seed_start_from_the_same_backbone(folder: Path, tiny: None) -> None:
    arms = [
        make(folder, replace(SETTINGS, **change))
        for change in ({}, {"aux_weight": 0.0}, {"labels": False}, {"seed": 4})
    ]
    first, plain, rotation, other = (arm.network.backbone.state_dict() for arm in arms)
    name = "layers.0.weight"
    assert torch.equal(first[name], plain[name])
    assert torch.equal(first[name], rotation[name])
    assert not torch.equal(first[name], other[name])


def test_learning_rate_is_divided_by_ten_after_each_of_its_steps(folder: Path, tiny: None) -> None:
    settings = replace(SETTINGS, epochs=4, lr=0.01, lr_steps=(1, 3), batch_size=38)
    rates = [row["lr"] for row in make(folder, settings).progress()]
    assert rates == pytest.approx([0.01, 0.001, 0.001, 0.0001])


def test_images_that_fill_no_batch_are_others_in_each_epoch(folder: Path, tiny: None) -> None:
    training = make(folder)
    seen = []
    for epoch in range(6):
        training.epoch = epoch
        keys = [key for batch in training._batches() for key in batch]
        assert {key[0] for key in keys} == {epoch}
        assert len({key[1] for key in keys}) == len(keys) == 36
        seen.append({key[1] for key in keys})
    assert len(set.union(*seen)) == 38


def test_training_leaves_global_random_state_alone(folder: Path, tiny: None) -> None:
    before = torch.get_rng_state()
    next(make(folder, replace(SETTINGS, checkpoint_every=1)).progress())
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_that_is_not_finite_is_an_error_that_says_what_to_do(folder: Path, tiny: None) -> None:
    training = make(folder, replace(SETTINGS, lr=1e30))
    with pytest.raises(FloatingPointError, match="The loss was nan in epoch 1. Lower lr or aux_w"):
        list(training.progress())


# Resume


def through_a_file(training: Pretraining, path: Path) -> dict[str, Any]:
    torch.save(training.state_dict(), path)
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


@pytest.mark.parametrize("rows_before", [1, 2, 3], ids=["within", "epoch's end", "second epoch"])
def test_resumed_training_equals_the_uninterrupted_one_bit_for_bit(
    folder: Path, tiny: None, tmp_path: Path, rows_before: int
) -> None:
    settings = replace(SETTINGS, checkpoint_every=2)  # of three updates
    whole = make(folder, settings, validation=ClassFolders(folder, 32))
    rows = list(whole.progress())
    assert len(rows) == 4
    first = make(folder, settings, validation=ClassFolders(folder, 32))
    progress = first.progress()
    before = [next(progress) for _ in range(rows_before)]
    second = make(folder, settings, validation=ClassFolders(folder, 32))
    second.load_state_dict(through_a_file(first, tmp_path / "state.pt"))
    assert_equal_rows(before + list(second.progress()), rows)
    assert_equal_networks(second, whole)


def test_stopped_training_ends_after_the_update_and_goes_on_from_there(
    folder: Path, tiny: None, tmp_path: Path
) -> None:
    whole = make(folder)
    rows = list(whole.progress())
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 2

    first = make(folder, stop=stop)
    stopped = list(first.progress())
    assert [(row["epoch"], row["update"]) for row in stopped] == [(1, 2)]
    second = make(folder)
    second.load_state_dict(through_a_file(first, tmp_path / "state.pt"))
    assert_equal_rows(list(second.progress()), rows)
    assert_equal_networks(second, whole)


def test_state_of_other_settings_or_images_is_refused(
    folder: Path, tiny: None, tmp_path: Path
) -> None:
    state = make(folder).state_dict()
    with pytest.raises(ValueError, match=r"a pretraining with lr 0\.5, got 0\.02\. Resume with"):
        make(folder, replace(SETTINGS, lr=0.5)).load_state_dict(state)
    fewer = draw_images(tmp_path / "fewer", 18)
    with pytest.raises(ValueError, match="fewer are not those that the run began with. Restore"):
        make(fewer).load_state_dict(state)


# Two processes


def test_two_processes_train_as_one_with_the_joint_batch(
    folder: Path, tiny: None, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "PYTHONPATH": str(WORKER.parent.parent), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(tmp_path)],
            env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        alone = make(folder, EACH_UPDATE, validation=ClassFolders(folder, 32))
        rows = list(alone.progress())
        for process in processes:
            _, errors = process.communicate(
                timeout=900
            )  # on a busy machine imports alone take long
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert found[0]["rows"] == found[1]["rows"]
    assert len(rows) == 6
    for i, (row, expected) in enumerate(zip(found[0]["rows"], rows, strict=True)):
        # Sums in another order, whose rounding grows from update to update.
        for key in ("loss", "class_loss", "aux_loss"):
            assert row[key] == pytest.approx(expected[key], rel=2e-3 if i else 1e-5), (i, key)
        for key in {"validation_accuracy", "validation_aux_accuracy"} & row.keys():
            assert row[key] == pytest.approx(expected[key], abs=0.02)  # 3 of 152 copies
    start, end = make(folder).network.state_dict(), alone.network.state_dict()
    for name, value in found[0]["network"].items():
        assert torch.equal(value, found[1]["network"][name]), name
        moved = float((end[name] - start[name]).abs().max())
        error = float((value - end[name]).abs().max())  # BatchNorm's averages are in it, too
        assert error <= 0.02 * moved + 2e-5, (name, error, moved)


# Weights


def test_weights_of_each_architecture_are_those_of_its_backbone(
    folder: Path, tmp_path: Path
) -> None:
    training = make(folder, replace(SETTINGS, seed=1))
    path = tmp_path / "resnet50.pth"
    torch.save({"network": training.weights(), "epoch": 1}, path)
    backbone = make_image_backbone("resnet50-imagenet", weights=path)
    trunk = training.network.backbone.state_dict()
    assert all(torch.equal(v, trunk[k]) for k, v in backbone.network.state_dict().items())
    torchvision.models.resnet50(num_classes=2).load_state_dict(training.weights())


@pytest.mark.parametrize("arch", ["alexnet", "alexnet-rotnet"])
def test_weights_of_alexnets_carry_the_names_of_published_files(arch: Arch, folder: Path) -> None:
    settings = replace(SETTINGS, arch=arch, image_size=224, labels=arch == "alexnet")
    training = Pretraining(settings, ClassFolders(folder, 224))
    weights = training.weights()
    name, last = BACKBONES[arch]
    spec = image_backbone_spec(name)
    assert last.startswith(spec.head)
    load_strictly(training.network.backbone, weights, source="", head=spec.head)
    if arch == "alexnet":
        names = torchvision.models.alexnet().state_dict().keys()
        assert weights.keys() == names
    else:  # as RotNet's own: the rotation head is the last layer
        assert weights["_feature_blocks.9.0.weight"].shape == (4, 4096)
        assert weights["_feature_blocks.9.0.bias"].shape == (4,)


# Settings


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"arch": "vgg"}, "Unknown arch 'vgg'. Available: alexnet, alexnet-rotnet, resnet50."),
        ({"task": "rotate"}, "Unknown task 'rotate'."),
        ({"task": "permutation"}, "For single images use the rotation task."),
        ({"epochs": 0}, "epochs must be 1 or more, got 0."),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0."),
        ({"checkpoint_every": 0}, "checkpoint_every must be 1 or more, got 0."),
        ({"lr": 0.0}, r"lr must be a finite number above 0, got 0\.0\."),
        ({"lr": float("nan")}, "lr must be a finite number above 0, got nan."),
        ({"aux_weight": -1.0}, r"aux_weight must be a finite number 0 or more, got -1\.0\."),
        ({"weight_decay": -1.0}, r"weight_decay must be a finite number 0 or more, got -1\.0\."),
        ({"momentum": 1.0}, r"momentum must lie between 0 and 1, got 1\.0\."),
        ({"lr_steps": (0,)}, r"lr_steps must be 1 or more each, got \(0,\)\."),
        ({"seed": -1}, "seed must be 0 or more, got -1."),
        ({"labels": False, "aux_weight": 0.0}, "Nothing is left to train on without labels"),
        ({"arch": "alexnet-rotnet"}, "alexnet-rotnet needs image_size 224, got 32."),
        ({"arch": "alexnet"}, "alexnet needs image_size 63 or more, got 32."),
        (
            {"arch": "resnet50", "aux_weight": 0.0, "batch_size": 1},
            "resnet50 normalizes over a batch: .* batch_size must be 2 or more, got 1.",
        ),
        ({"batch_size": 39}, "holds 38 images, fewer than batch_size 39. Lower it."),
    ],
    ids=str,
)
def test_wrong_setting_is_named(
    folder: Path, tiny: None, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        make(folder, replace(SETTINGS, **change))


@pytest.mark.parametrize("processes", [0, 1])
def test_job_names_an_image_that_cannot_be_read_in_one_line(
    processes: int, tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_images(tmp_path / "d", 19)
    (tmp_path / "d" / "house" / "00.png").write_bytes(b"no image")

    def train(job: PretrainJob) -> None:
        list(make(tmp_path / "d", loader_processes=processes).progress())

    monkeypatch.setattr(pretraining_job, "_train", train)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        pretraining_job._work({"job": PretrainJob(SETTINGS, tmp_path / "d", None, tmp_path)})
    error = (tmp_path / "error.txt").read_text()
    assert error.startswith(str(tmp_path / "d" / "house" / "00.png cannot be read as an image"))
    assert error.endswith(", which no run is resumed on.")
    assert "\n" not in error


# Images


def test_item_follows_from_seed_epoch_and_number_alone(folder: Path) -> None:
    data, again, other = (ClassFolders(folder, 32, seed) for seed in (1, 1, 2))
    for _ in range(2):  # and not from how many items were read before
        assert torch.equal(data[0, 5][0], again[0, 5][0])
    assert not torch.equal(data[0, 5][0], data[1, 5][0])
    assert not torch.equal(data[0, 5][0], other[0, 5][0])
    assert torch.equal(data[-1, 5][0], other[-1, 5][0]), "evaluation draws nothing"
    image, label = data[0, 20]
    assert (image.dtype, image.shape, label) == (torch.uint8, (3, 32, 32), 1)
    assert data.classes == ["house", "triangle"]


def test_random_parts_lie_in_the_image_and_follow_the_published_ranges() -> None:
    rng = np.random.default_rng(1)
    boxes = np.array([random_part(200, 100, rng) for _ in range(2_000)])
    left, top, right, bottom = boxes.T
    assert (boxes >= 0).all()
    assert ((right <= 200) & (bottom <= 100)).all()
    width, height = right - left, bottom - top
    share = width * height / 20_000
    inner = (width < 200) | (height < 100)  # not the whole image
    assert ((share > 0.075) & (share <= 1)).all()
    aspect = width[inner] / height[inner]
    assert ((aspect > 0.7) & (aspect < 1.4)).all()
    assert share.min() < 0.1
    assert len(set(left.tolist())) > 50


def test_evaluation_sees_the_middle_seven_eighths(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (128, 1))  # 256 wide, 128 high
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(ramp).save(tmp_path / name / "0.png")
    image, _ = ClassFolders(tmp_path, 112)[-1, 0]
    # The middle 112 of the width: 72 to 183.
    assert image[0, 0].tolist() == pytest.approx(list(range(72, 184)), abs=1)
    assert torch.equal(image[0], image[2]), "grey becomes colour"


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    draw_images(tmp_path / "d", 2)
    broken = tmp_path / "d" / "house" / "00.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = ClassFolders(tmp_path / "d", 32)
    with pytest.raises(ValueError, match=r"house/00\.png cannot be read as an image"):
        data[0, 0]


def test_folders_that_hold_no_classes_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Expected a folder with one folder a class, got"):
        ClassFolders(tmp_path / "gone", 32)
    with pytest.raises(ValueError, match="must hold one folder a class with images in it"):
        ClassFolders(tmp_path, 32)
    draw_images(tmp_path / "d", 1)
    (tmp_path / "d" / "house" / "00.png").unlink()
    with pytest.raises(ValueError, match="must hold one folder a class with images in it: .*house"):
        ClassFolders(tmp_path / "d", 32)
    (tmp_path / "d" / "house").rmdir()
    with pytest.raises(ValueError, match=r"must hold two classes or more, got \['triangle'\]"):
        ClassFolders(tmp_path / "d", 32)


def test_images_without_labels_need_no_folders_and_those_in_folders_keep_their_order(
    folder: Path, tmp_path: Path
) -> None:
    draw_images(tmp_path, 2)
    (tmp_path / "house" / "deep").mkdir()
    (tmp_path / "house" / "00.png").rename(tmp_path / "house" / "deep" / "0.png")
    labelled, unlabelled = (ClassFolders(tmp_path, 32, labelled=told) for told in (True, False))
    assert unlabelled.fingerprint() == labelled.fingerprint()
    assert (unlabelled.classes, set(unlabelled.labels)) == ([], {0})
    (tmp_path / "triangle" / "00.png").rename(tmp_path / "stray.png")
    assert len(ClassFolders(tmp_path, 32, labelled=False)) == 4
    assert len(ClassFolders(folder / "house", 32, labelled=False)) == 19
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty must hold images \(\.jpg, .*\), got none"):
        ClassFolders(tmp_path / "empty", 32, labelled=False)


def test_rotation_alone_trains_on_a_folder_of_images(folder: Path, tiny: None) -> None:
    images = ClassFolders(folder / "house", 32, labelled=False)
    settings = replace(SETTINGS, labels=False, epochs=1)
    (*_, last) = Pretraining(settings, images, images).progress()
    assert 0 <= last["validation_aux_accuracy"] <= 1
    assert "accuracy" not in last


def test_validation_folder_with_other_classes_is_refused(
    folder: Path, tiny: None, tmp_path: Path
) -> None:
    other = draw_images(tmp_path / "d", 1)
    (other / "house").rename(other / "hut")
    text = "must have the classes of .*, got a difference in house, hut."
    with pytest.raises(ValueError, match=text):
        make(folder, validation=ClassFolders(other, 32))


def test_batch_that_workers_cannot_share_equally_is_refused() -> None:
    text = "batch_size must be a multiple of the 5 workers, got 12. Use 10."
    with pytest.raises(ValueError, match=text):
        rayssl.pretraining.check_share(12, 5)


def test_normalization_is_the_backbones_own() -> None:
    x = torch.arange(3 * 16, dtype=torch.uint8).view(1, 3, 4, 4)
    standard = replace(image_backbone_spec("resnet50-random").preprocessings["standard"],
                       resize=4, crop=4)  # fmt: skip
    found: Tensor = normalized(x)
    assert torch.allclose(found, standard(x), atol=1e-6)


# As a job of sweeps


def make_trial(folder: Path, **values: Any) -> PretrainTrial:
    usual: dict[str, Any] = {
        "arch": "resnet50",
        "image_size": 32,
        "batch_size": 12,
        "epochs": 2,
        "lr": 0.05,
    }
    return PretrainTrial(data=folder, validation=folder, **usual | values)


def test_job_trains_by_the_epoch_what_a_pretraining_trains(tiny: None, folder: Path) -> None:
    trial = make_trial(folder)
    whole = Pretraining(trial.settings(), *trial.images())
    expected = list(whole.progress())
    first = EpochPretraining(trial.settings(), *trial.images())
    rows = [first.run_epoch()]
    again = EpochPretraining(trial.settings(), *trial.images())  # as on another node
    again.load_state_dict(first.state_dict())
    rows.append(again.run_epoch())
    assert again.done
    for row, other in zip(rows, expected, strict=True):
        figures = {"loss", "accuracy", "aux_accuracy", "validation_accuracy"}
        assert {k: row[k] for k in figures} == pytest.approx({k: other[k] for k in figures})
    for name, value in again.weights().items():
        torch.testing.assert_close(value, whole.weights()[name])


def test_finished_trial_leaves_weights_that_the_loader_takes(
    tiny: None, folder: Path, tmp_path: Path
) -> None:
    job = find_job("pretrain")
    trial = make_trial(folder, epochs=1, aux_weight=0.5)
    config = json.loads(json.dumps(dataclasses.asdict(trial), default=str))
    running = job.trainable([trial])(config | {"cpus": 1, "bundles": [{"CPU": 1}]})
    result = running.train()
    assert result["done"]
    assert job.objective(result, trial) == result["validation_accuracy"]
    running.save_checkpoint(str(tmp_path))
    (path,) = tmp_path.glob("resnet50-*.pth")
    weights = load_weights(path)
    assert weights.keys() == running.training.weights().keys()
    assert newest_state([tmp_path]) == (tmp_path, 1)
    checkpoint = tmp_path / "trial" / "checkpoint_000000"
    checkpoint.mkdir(parents=True)
    running.save_checkpoint(str(checkpoint))
    assert job.newest_checkpoint(tmp_path / "trial") is None  # its row is lost: run it again
    job.open_log(tmp_path / "trial", "a", 0)(result, trial)
    assert job.newest_checkpoint(tmp_path / "trial") == (checkpoint, 1)


def test_plain_baseline_of_a_sweep_has_no_pretext_head(folder: Path) -> None:
    job = find_job("pretrain")
    axes = dict([parse_axis(job, "aux_weight", ["0", "0.3"])])
    base = make_trial(folder)
    plain, other = trials_of_points(job, base, axes, grid_points(axes), [0])
    assert plain.settings.settings() == replace(base.settings(), aux_weight=0.0)
    assert other.settings.settings() == replace(base.settings(), aux_weight=0.3)
    assert job.objective({"aux_accuracy": 0.4}, replace(base, labels=False)) == 0.4


def test_job_refuses_what_no_trial_can_have(folder: Path, tmp_path: Path) -> None:
    job = find_job("pretrain")
    with pytest.raises(ValueError, match="--data is missing"):
        job.check(PretrainTrial())
    with pytest.raises(FileNotFoundError, match="one folder a class"):
        job.check(make_trial(tmp_path / "nowhere"))
    job.check(make_trial(folder / "house", labels=False))  # no class folders are needed
    with pytest.raises(ValueError, match="holds 38 images, fewer than batch_size 39"):
        job.check(make_trial(folder, batch_size=39))
