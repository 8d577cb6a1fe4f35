"""deepfake.py probe and report, and attribution.py, from end to end on a toy face set."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ray.exceptions import WorkerCrashedError

from experiments import attribution, deepfake, sweep
from rayssl.backbones.images import make_image_backbone
from rayssl.cli import parse_experiment, provenance
from rayssl.data.face_videos import find_videos
from rayssl.data.faces import FaceSet
from rayssl.deepfake import TABLE_III, ProbeSettings, make_probe_run
from rayssl.files import hold
from rayssl.jobs import deepfake as deepfake_job
from rayssl.jobs import find_job
from rayssl.report import read_epochs
from tests.toy_faces import add_tiny_backbone, write_toy_faces

ROOT = Path(__file__).parent.parent
Refuse = Callable[..., str]
ONE_MAP = ("--samples", "1", "--shown", "1", "--scored", "2")  # two fakes are scored


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> FaceSet:
    return write_toy_faces(tmp_path_factory.mktemp("toy") / "faces", families=6, frames=2)


# Mistakes


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refuse:
    """A function that runs main, expects exit code 2 and no trace, and returns stderr."""

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("Expected the mistake to be found before Ray starts.")

    for name in ("start_ray", "run_probes", "extract_features"):
        monkeypatch.setattr(deepfake, name, started)
    monkeypatch.chdir(tmp_path)  # where the default results/local would be made
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-weights"))
    monkeypatch.setattr("rayssl.backbones.weights.download", no_network)

    def run(*words: str, main: Callable[..., object] = deepfake.main) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            main(words)
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run


def no_network(url: str, path: Path) -> Path:
    raise OSError("no network in tests")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--backbone", "vgg"], "Unknown backbone 'vgg'. Available: alexnet-imagenet"),
        (["--backbone"], "--backbone needs at least one value, got none."),
        (["--seeds", "0"], "--seeds must be 1 or more, got 0."),
        (["--num-gpus", "nan"], "--num-gpus must be 0 or more, got nan."),
        (
            ["--layer", "conv5"],
            "No backbone has a layer 'conv5'. They have resnet50-random: layer1",
        ),
        (["--c", "-1"], "c is logistic regression's and above 0, got -1.0."),
        (["--test-share", "1"], "test_share must be in (0, 1), got 1.0."),
        (["--classifier", "sgd", "--epochs", "0"], "1 or more, got 0."),
        (["--classifier", "adam"], "must be one of logistic, sgd, knn, got 'adam'."),
        (
            ["--epochs", "3"],
            "--epochs acts on --classifier sgd and --protocol paper-code: no trial",
        ),
        (["--classifier", "knn", "--c", "1"], "--c acts on --classifier logistic under --protocol"),
        (["--protocol", "paper-code", "--c", "1"], "--c acts on --classifier logistic"),
        (
            ["--protocol", "paper-code", "--classifier", "knn"],
            "--classifier acts on --protocol strict; paper-code has its own head: no trial of this",
        ),
        (
            ["--protocol", "paper-code", "--validation-share", "0.3"],
            "--validation-share acts on --protocol strict; paper-code has no validation part",
        ),
        (["--split", "part"], "A part split cannot be made"),
        (["--name", "a/b"], "--name must be a plain folder name, got 'a/b'."),
        (["--name", ".."], "--name must be a plain folder name, got '..'."),
        (["--weights", "x.pth"], "Expected --weights BACKBONE=PATH of a --backbone, got 'x.pth'."),
        (["--resume", "gone"], "gone is not the folder of an experiment: no settings.json."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_value_is_one_line_that_says_what_to_do(
    words: list[str], text: str, refused: Refuse, faces: FaceSet
) -> None:
    backbone = [] if "--backbone" in words else ["--backbone", "resnet50-random"]
    assert text in refused("probe", str(faces.folder), *backbone, *words)


def test_folder_without_faces_is_refused(refused: Refuse, tmp_path: Path) -> None:
    assert "holds no prepared faces: faces.json is missing" in refused("probe", str(tmp_path))
    assert "No faces given." in refused("probe")


def test_folder_of_another_experiment_is_refused(
    refused: Refuse, tmp_path: Path, faces: FaceSet
) -> None:
    folder = tmp_path / "results" / "local" / "deepfake"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")
    err = refused("probe", str(faces.folder), "--backbone", "resnet50-random")
    assert "results/local/deepfake holds an experiment already. Go on with --resume" in err


def test_experiment_that_is_under_way_is_left_alone(
    refused: Refuse, tmp_path: Path, faces: FaceSet
) -> None:
    write_settings(tmp_path, faces.fingerprint, faces=str(faces.folder), split=["family"],
                   backbone=["resnet50-random"])  # fmt: skip
    with hold(tmp_path):
        err = refused("probe", "--resume", str(tmp_path))
    assert f"Another process is at work in {tmp_path}." in err


def write_settings(folder: Path, fingerprint: str, **settings: object) -> None:
    saved = {"settings": settings, "faces": {"fingerprint": fingerprint, "dataset": "d"}}
    (folder / "settings.json").write_text(json.dumps(saved))


def test_resumed_experiment_keeps_its_settings_and_faces(
    refused: Refuse, tmp_path: Path, faces: FaceSet
) -> None:
    write_settings(tmp_path, faces.fingerprint, faces=str(faces.folder), classifier=["knn"],
                   backbone=["resnet50-random"])  # fmt: skip
    err = refused("probe", "--resume", str(tmp_path), "--classifier", "sgd")
    assert "was started with classifier ('knn',), got ('sgd',)." in err
    write_settings(tmp_path, "another", faces=str(faces.folder), backbone=["resnet50-random"])
    assert "Results of two face sets do not mix" in refused("probe", "--resume", str(tmp_path))


def resumed(*words: str) -> deepfake.Probe:
    return parse_experiment(deepfake.Probe, words, deepfake.MAY_DIFFER)


def test_resumed_experiment_takes_a_default_that_the_command_line_names(tmp_path: Path) -> None:
    write_settings(tmp_path, "0", faces="faces", num_gpus=1.0, num_cpus=4, seeds=3)
    run = resumed("--resume", str(tmp_path), "--num-gpus", "0")
    assert (run.num_gpus, run.num_cpus, run.seeds, run.faces) == (0.0, 4, 3, Path("faces"))
    words = ["--resume", str(tmp_path), "--num-cpus", "1", "--seeds", "1"]
    run = resumed(*words)
    assert (run.num_gpus, run.num_cpus, run.seeds, run.resume) == (1.0, 1, 1, tmp_path)
    write_settings(tmp_path, "0", classifier=["knn"])
    with pytest.raises(ValueError, match="was started with classifier .*knn.*, got .*logistic"):
        resumed(*words, "--classifier", "logistic")


def test_damaged_scores_of_a_finished_trial_are_one_line_that_says_what_to_do(
    refused: Refuse, tmp_path: Path, faces: FaceSet
) -> None:
    write_settings(tmp_path, faces.fingerprint, faces=str(faces.folder), split=["family"],
                   backbone=["resnet50-random"])  # fmt: skip
    name = "strict-resnet50-random-avgpool-family-logistic-s0"
    (tmp_path / "epochs.jsonl").write_text(
        json.dumps({"trial": name, "epoch": 1, "done": True}) + "\n"
    )
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / f"{name}.npz").write_bytes(b"PK no archive")
    err = refused("probe", "--resume", str(tmp_path))
    assert f"{name}.npz is damaged" in err
    assert "Delete it and resume the experiment." in err


@pytest.mark.parametrize(
    ("logged", "refusal"), [("random-0", False), (None, False), ("id-of-a-file", True)]
)
def test_resumed_experiment_goes_on_over_the_weights_of_its_rows_only(
    logged: str | None, refusal: bool, tmp_path: Path, faces: FaceSet,
    monkeypatch: pytest.MonkeyPatch, refused: Refuse,
) -> None:  # fmt: skip
    row = {"trial": "a", "epoch": 1, "backbone": "resnet50-random", "done": True}
    row |= {} if logged is None else {"weights_id": logged}  # rows of before have none
    (tmp_path / "epochs.jsonl").write_text(json.dumps(row) + "\n")
    write_settings(tmp_path, faces.fingerprint, faces=str(faces.folder), split=["family"],
                   backbone=["resnet50-random"])  # fmt: skip
    if refusal:
        err = refused("probe", "--resume", str(tmp_path))
        assert "Expected resnet50-random over weights id-of-a-file, as in the rows of a, got" in err
        assert "Pass the weights of then" in err
        return
    with pytest.raises(AssertionError, match="before Ray starts"):  # nothing was refused
        deepfake.main(["probe", "--resume", str(tmp_path)])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": {}, "faces": 7}'])
def test_damaged_settings_are_refused(text: str, refused: Refuse, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    assert "settings.json as deepfake.py probe writes it" in refused(
        "probe", "--resume", str(tmp_path)
    )
    assert "settings.json as deepfake.py probe writes it" in refused("report", str(tmp_path))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["gone.pt"], "No checkpoint at gone.pt. Pass a file in heads/"),
        (["damaged.pt"], "Expected damaged.pt to be a probe that deepfake.py probe wrote, got"),
        (["text.pt"], "Expected text.pt to be a probe that deepfake.py probe wrote, got"),
        (["other.pt"], "other.pt is of kind 'gan'. Available: deepfake-probe."),
        (["probe.pt"], "to name the face set, got FileNotFoundError. Pass --faces."),
        (["probe.pt", "--shown", "0"], "--shown must be 1 or more, got 0."),
    ],
)
def test_checkpoint_that_cannot_be_explained_is_refused(
    words: list[str], text: str, refused: Refuse, tmp_path: Path
) -> None:
    (tmp_path / "damaged.pt").write_bytes(b"PK no archive")
    (tmp_path / "text.pt").write_text("the weights of the head are elsewhere")
    torch.save({"kind": "gan"}, tmp_path / "other.pt")
    torch.save({"kind": "deepfake-probe"}, tmp_path / "probe.pt")
    assert text in refused(*words, main=attribution.main)


def test_head_of_other_faces_is_refused(refused: Refuse, tmp_path: Path, faces: FaceSet) -> None:
    torch.save({"kind": "deepfake-probe", "faces": "another"}, tmp_path / "probe.pt")
    err = refused("probe.pt", "--faces", str(faces.folder), main=attribution.main)
    assert (
        f"Expected the faces another that the probe was fitted on, got {faces.fingerprint}" in err
    )
    assert "Pass their folder with --faces." in err


def test_map_of_zeros_is_one_line_and_leaves_nothing_behind(
    refused: Refuse, tmp_path: Path, faces: FaceSet, monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    add_tiny_backbone(tmp_path_factory.mktemp("backbones"), monkeypatch)
    run = make_probe_run(ProbeSettings(backbone="tiny"), faces, tmp_path_factory.mktemp("features"))
    run.run_epoch()
    assert run.head is not None
    torch.save(run.head | {"weight": torch.zeros_like(run.head["weight"])}, tmp_path / "dead.pt")
    err = refused("dead.pt", "--faces", str(faces.folder), *ONE_MAP, main=attribution.main)
    assert "The maps 'smoothgrad_sq, as trained' cannot be scored: Expected maps with a" in err


def test_logits_are_explained_before_a_relu_that_is_dead(
    tmp_path: Path, faces: FaceSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_tiny_backbone(tmp_path, monkeypatch)
    run = make_probe_run(ProbeSettings(backbone="tiny"), faces, tmp_path / "features")
    run.run_epoch()
    assert run.head is not None
    # Less 1000 each, the margin stays the same, and behind a ReLU nothing is left of it.
    dead = run.head | {"bias": run.head["bias"] - 1000, "relu_logits": True}
    found = {}
    for name, head in (("plain", run.head), ("dead", dead)):
        torch.save(head, tmp_path / f"{name}.pt")
        words = [str(tmp_path / f"{name}.pt"), "--faces", str(faces.folder), *ONE_MAP]
        found[name] = attribution.main([*words, "--out", str(tmp_path / name)])
    assert "before the head's ReLU" in found["dead"]["what"]
    assert "ReLU" not in found["plain"]["what"]
    assert all("p(fake) 0.50" in text for text in found["dead"]["inputs"])  # the whole head's
    energies = [found[name]["rows"][0]["energy inside"][0] for name in ("plain", "dead")]
    assert energies[0] == pytest.approx(energies[1], rel=1e-3)


@pytest.mark.parametrize("masked", ["some", "none"])
def test_fakes_without_a_mask_are_left_out_of_the_scores_and_counted(
    masked: str, tmp_path: Path, faces: FaceSet, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    add_tiny_backbone(tmp_path, monkeypatch)
    settings = ProbeSettings(backbone="tiny", test_share=0.33)
    run = make_probe_run(settings, faces, tmp_path / "features")
    run.run_epoch()
    torch.save(run.head, tmp_path / "probe.pt")
    videos = faces.videos.copy()
    fakes = set(faces.column("video")[run.test.rows[run.test.labels == 1]])
    assert len(fakes) == 2
    bare = fakes if masked == "none" else {max(fakes)}  # as FaceShifter beside Deepfakes
    videos.loc[videos["video"].isin(bare), "has_masks"] = False
    monkeypatch.setattr(
        attribution, "load_face_set", lambda folder: dataclasses.replace(faces, videos=videos)
    )
    words = [str(tmp_path / "probe.pt"), "--faces", "any", *ONE_MAP, "--out", str(tmp_path / "a")]
    file = tmp_path / "a" / "attribution.md"
    file.parent.mkdir()
    file.write_text("of an earlier run")
    found = attribution.main(words)
    out = capsys.readouterr().out
    if masked == "none":
        note = "Maps are not scored, 2 of 2 fakes: no mask in their crop of what was changed."
        assert "rows" not in found
        assert not file.exists()
    else:
        note = "Left out of the scores, 1 of 2 fakes: no mask in their crop of what was changed."
        assert [row["images"] for row in found["rows"]] == [1, 1, 1]
        assert file.read_text().endswith(f"\n\n{note}\n")
    assert f"{note}\n" in out
    assert found["left_out"] == note


def test_maps_follow_a_weight_file_that_has_moved_and_take_no_other(
    refused: Refuse, tmp_path: Path, faces: FaceSet, monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    add_tiny_backbone(tmp_path_factory.mktemp("backbones"), monkeypatch)
    network = make_image_backbone("tiny").network
    here, there, other = (tmp_path / name for name in ("here.pth", "there.pth", "other.pth"))
    torch.save(network.state_dict(), here)
    settings = ProbeSettings(backbone="tiny-file", weights=str(here))
    run = make_probe_run(settings, faces, tmp_path_factory.mktemp("features"))
    run.run_epoch()
    torch.save(run.head, tmp_path / "probe.pt")
    here.rename(there)
    torch.save({k: v + 1 for k, v in network.state_dict().items()}, other)
    words = ["probe.pt", "--faces", str(faces.folder), *ONE_MAP]
    err = refused(*words, main=attribution.main)
    assert f"Weight file missing: {here}." in err
    assert "If it has moved, pass its path with --weights." in err
    err = refused(*words, "--weights", str(other), main=attribution.main)
    assert "Pass the file that the probe was fitted over with --weights." in err
    found = attribution.main([*words, "--weights", str(there)])
    assert found["rows"][0]["images"] == 2


def test_experiment_finds_its_faces_again_from_any_working_directory(
    tmp_path: Path, faces: FaceSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("start_ray", "check_resources", "extract_features", "stop_on_signals"):
        monkeypatch.setattr(deepfake, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(deepfake, "run_probes", lambda *args, **kwargs: [])
    monkeypatch.chdir(faces.folder.parent)
    words = ["--backbone", "resnet50-random", "--split", "family", "--results-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        deepfake.main(["probe", faces.folder.name, *words])
    assert stop.value.code == deepfake.UNFINISHED
    monkeypatch.chdir("/")
    folder = tmp_path / "deepfake"
    saved = json.loads((folder / "settings.json").read_text())["settings"]
    assert saved["faces"] == str(faces.folder.resolve())
    head = attribution.Settings(folder / "heads" / "a.pt")
    assert attribution.faces_folder(head) == faces.folder.resolve()
    with pytest.raises(SystemExit) as stop:
        deepfake.main(["probe", "--resume", str(folder)])
    assert stop.value.code == deepfake.UNFINISHED


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("start_ray", "check_resources", "extract_features", "stop_on_signals"):
        monkeypatch.setattr(deepfake, name, lambda *args, **kwargs: None)
    add_tiny_backbone(tmp_path, monkeypatch)


def test_backbone_whose_features_fail_is_named_and_keeps_no_other_from_running(
    no_ray: None,
    faces: FaceSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def extract(probes: list[ProbeSettings], *args: Any, **kwargs: Any) -> None:
        if any(p.backbone == "tiny" for p in probes):
            raise WorkerCrashedError

    ran: list[str] = []

    def run_probes(configs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> list[str]:
        ran.extend(f"{c['probe']['protocol']} {c['probe']['backbone']}" for c in configs)
        return []

    monkeypatch.setattr(deepfake, "extract_features", extract)
    monkeypatch.setattr(deepfake, "run_probes", run_probes)
    words = ["--backbone", "tiny", "tiny-inference", "--protocol", "strict", "paper-code",
             "--split", "family", "--results-dir", str(tmp_path)]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        deepfake.main(["probe", str(faces.folder), *words])
    assert stop.value.code == 1
    assert ran == ["strict tiny-inference", "paper-code tiny", "paper-code tiny-inference"]
    assert "error: tiny: The worker died unexpectedly" in capsys.readouterr().err


def test_experiment_without_any_weights_is_an_error_that_can_be_gone_on_with(
    no_ray: None, faces: FaceSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--backbone", "tiny-file", "--weights", f"tiny-file={tmp_path / 'no.pth'}"]
    with pytest.raises(SystemExit) as stop:
        deepfake.main(["probe", str(faces.folder), *words, "--results-dir", str(tmp_path)])
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert "tiny-file: not run: Weight file missing: " in out
    assert f"go on with --resume {tmp_path / 'deepfake'}" in err
    assert list(deepfake.read_settings(tmp_path / "deepfake")["missing"]) == ["tiny-file"]


# Which trials there are


def names(faces: FaceSet, **changes: Any) -> list[str]:
    run = dataclasses.replace(deepfake.Probe(faces.folder), **changes)
    return sorted(settings.name for settings in deepfake.trials_of(run, faces))


def test_plain_command_has_a_random_and_a_hard_split_for_each_row_of_table_iii(
    faces: FaceSet,
) -> None:
    found = names(faces)
    assert len(found) == 2 * len(TABLE_III)
    assert "strict-alexnet-rotnet-fc_block-family-logistic-s0" in found


def test_paper_code_splits_by_the_first_actor_where_there_are_actors(faces: FaceSet) -> None:
    words: dict[str, Any] = {"protocol": ("paper-code",), "backbone": ("resnet50-random",)}
    assert names(faces, **words) == [
        "paper-code-resnet50-random-avgpool-first-actor-adam-s0",
        "paper-code-resnet50-random-avgpool-random-adam-s0",
    ]
    nobody = dataclasses.replace(faces, videos=faces.videos.assign(actor=None))
    assert names(nobody, **words)[1] == "paper-code-resnet50-random-avgpool-video-adam-s0"


def preview(root: Path, **left_out: None) -> FaceSet:
    """DFDC's preview as it is published, without originals: 12 people, each real and put in."""
    about: dict[str, Any] = {}
    for person in range(12):
        part = {"set": "test" if person > 8 else "train"}
        about[f"original_videos/{person}/a.mp4"] = (
            part | {"label": "real", "target_id": person, "swapped_id": None} | left_out
        )
        about[f"method_A/{person}/b.mp4"] = (
            part | {"label": "fake", "target_id": person, "swapped_id": person ^ 1} | left_out
        )
    for name in about:
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    (root / "dataset.json").write_text(json.dumps(about))
    videos = find_videos(root).videos
    frames = pd.DataFrame({"video": np.repeat(videos["video"].to_numpy(), 2)})
    return FaceSet(root, videos, frames, {"size": 8}, "0")


@pytest.mark.parametrize(
    ("left_out", "split", "reason"),
    [
        ({}, "actor", "(not family: the data give no family of 12 of 24 videos)."),
        ({"target_id": None}, "video", "; not actor: the data give no actor of 24 of 24 videos; "),
    ],
)
def test_strict_takes_the_next_hard_split_where_the_data_name_no_originals_and_says_so(
    left_out: dict[str, None], split: str, reason: str, tmp_path: Path
) -> None:
    faces = preview(tmp_path, **left_out)
    found = names(faces, backbone=("resnet50-random",), seeds=2)
    assert f"strict-resnet50-random-avgpool-{split}-logistic-s1" in found
    assert len(found) == 4
    (note,) = deepfake.split_notes(deepfake.Probe(tmp_path), faces)
    assert note.startswith(f"Hard split of strict: {split} (not family: ")
    assert reason in note


def test_faces_that_allow_a_familys_split_have_no_note(faces: FaceSet) -> None:
    assert deepfake.split_notes(deepfake.Probe(faces.folder), faces) == []


def test_faces_that_allow_no_hard_split_are_refused_with_every_reason(faces: FaceSet) -> None:
    videos = faces.videos.head(2)
    frames = faces.frames[faces.frames["video"].isin(videos["video"])]
    two = dataclasses.replace(faces, videos=videos, frames=frames.reset_index(drop=True))
    text = r"allow no hard split \(not family: .*; not actor: .*; not part: .*; not video: .*\)\."
    with pytest.raises(ValueError, match=text):
        names(two)


def test_report_says_which_hard_split_was_taken(tmp_path: Path) -> None:
    write_settings(tmp_path, "0")
    saved = json.loads((tmp_path / "settings.json").read_text())
    note = "Hard split of strict: actor (not family: the data give none)."
    (tmp_path / "settings.json").write_text(json.dumps(saved | {"notes": [note]}))
    assert note in deepfake.main(["report", str(tmp_path), "--out", str(tmp_path / "report")])
    assert note in (tmp_path / "report" / "report.md").read_text()


def test_layers_classifiers_c_and_seeds_are_crossed(faces: FaceSet) -> None:
    found = names(
        faces, backbone=("resnet50-random",), layer=("layer1", "avgpool"), split=("family",),
        classifier=("logistic", "knn"), c=(0.1, 1.0), seeds=2,
    )  # fmt: skip
    assert len(found) == 2 * 2 * (2 + 1)
    assert "strict-resnet50-random-layer1-family-logistic-C0.1-s1" in found


def test_backbone_without_a_layer_that_was_asked_for_gives_the_authors(faces: FaceSet) -> None:
    found = names(
        faces, backbone=("resnet50-random", "alexnet-imagenet"), layer=("layer1",),
        split=("family",),
    )  # fmt: skip
    assert found == [
        "strict-alexnet-imagenet-fc7-family-logistic-s0",
        "strict-resnet50-random-layer1-family-logistic-s0",
    ]


def test_job_of_a_sweep_checks_and_judges_by_validation(faces: FaceSet) -> None:
    job = find_job("deepfake")
    settings = job.from_json({"faces": str(faces.folder), "layer": "layer1", "seed": 3})
    job.check(settings)
    assert settings.probe() == ProbeSettings(layer="layer1", seed=3)
    assert (job.planned(settings), job.metric) == (1, "test_accuracy")
    assert job.objective({"validation_log_loss": 0.5, "test_accuracy": 1.0}, settings) == -0.5
    paper = dataclasses.replace(settings, protocol="paper-code", classifier="adam")
    assert job.planned(paper) == 10
    rows = [{"epoch": 1, "selected_epoch": 1, "test_accuracy": 0.9},
            {"epoch": 2, "selected_epoch": 1, "test_accuracy": 0.6}]  # fmt: skip
    assert job.reported(rows, paper) == 0.9
    with pytest.raises(ValueError, match="layer of resnet50-random"):
        job.check(dataclasses.replace(settings, layer="conv1"))


@pytest.mark.parametrize(
    ("settings", "acting"),
    [
        ({"classifier": "knn", "c": 0.1, "epochs": 3}, {"classifier": "knn"}),
        ({"classifier": "sgd", "c": 0.1, "epochs": 3}, {"classifier": "sgd", "epochs": 3}),
        ({"c": 0.1}, {"c": 0.1}),
        (
            {"protocol": "paper-code", "classifier": "knn", "c": 0.1, "epochs": 3},
            {"protocol": "paper-code", "classifier": "adam", "epochs": 3},
        ),
        (
            {"protocol": "paper-code", "validation_share": 0.3},
            {"protocol": "paper-code", "classifier": "adam"},
        ),
    ],
)
def test_sweep_over_classifiers_and_protocols_leaves_out_what_does_not_act(
    settings: dict[str, Any], acting: dict[str, Any], faces: FaceSet
) -> None:
    job = find_job("deepfake")
    found = job.plain(job.from_json({"faces": str(faces.folder), **settings}))
    job.check(found)
    assert found.probe() == ProbeSettings(**acting)


def test_trial_of_a_sweep_names_its_faces_and_others_are_refused(faces: FaceSet) -> None:
    job = find_job("deepfake")
    settings = job.plain(job.from_json({"faces": str(faces.folder)}))
    assert settings.faces_fingerprint == settings.place().fingerprint == faces.fingerprint
    job.check(settings)
    with pytest.raises(ValueError, match=f"Expected the faces another .* got {faces.fingerprint}"):
        job.check(dataclasses.replace(settings, faces_fingerprint="another"))
    nowhere = job.from_json({"faces": str(faces.folder / "nowhere")})
    assert job.plain(nowhere) == nowhere  # check tells what is wrong


@pytest.mark.parametrize("named", [True, False])
def test_sweep_is_not_resumed_over_faces_that_were_prepared_anew(
    named: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "faces"
    write_toy_faces(folder, families=6, frames=2)
    run = sweep.SweepRun(job="deepfake", set=(f"faces={folder}",), results_dir=tmp_path)
    planned = sweep.prepare(run, None)
    planned.folder.write_sweep(provenance(run), planned.axes)
    path = planned.folder.path / "sweep.json"
    if not named:  # a sweep of before
        saved = json.loads(path.read_text())
        for trial in saved["trials"]:
            del trial["settings"]["faces_fingerprint"]
        path.write_text(json.dumps(saved))
    words = ["--resume", str(planned.folder.path)]
    assert len(sweep.prepare(*sweep.parse(words)).waiting) == 1
    write_toy_faces(folder, families=7, frames=2)
    deepfake_job._load.cache_clear()  # as a new process
    if named:
        with pytest.raises(
            ValueError, match="s0 cannot go on: Expected the faces .* start another"
        ):
            sweep.prepare(*sweep.parse(words))
    else:
        assert len(sweep.prepare(*sweep.parse(words)).waiting) == 1


def test_sweep_is_not_resumed_over_other_weights(faces: FaceSet, tmp_path: Path) -> None:
    job = find_job("deepfake")
    settings = job.plain(job.from_json({"faces": str(faces.folder)}))
    job.check_resumed(settings, tmp_path)  # it has no row yet
    row = {"trial": "s0", "epoch": 1, "backbone": "resnet50-random"}
    for same in ({}, {"weights_id": "random-0"}):  # rows of before name no weights
        (tmp_path / "epochs.jsonl").write_text(json.dumps(row | same) + "\n")
        job.check_resumed(settings, tmp_path)
    (tmp_path / "epochs.jsonl").write_text(json.dumps(row | {"weights_id": "another"}) + "\n")
    with pytest.raises(
        ValueError, match="over weights another, as in the rows of s0, got random-0"
    ):
        job.check_resumed(settings, tmp_path)


# The whole way


def run_script(script: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "experiments" / script), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def experiment(faces: FaceSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table III's first two rows, the second without weights, under both protocols."""
    base = tmp_path_factory.mktemp("results")
    missing = base / "no.pth"
    done = run_script(
        "deepfake.py", "probe", str(faces.folder), "--results-dir", str(base), "--name", "toy",
        "--backbone", "resnet50-random", "resnet50-imagenet",
        "--weights", f"resnet50-imagenet={missing}", "--layer", "layer1", "--epochs", "1",
        "--protocol", "strict", "paper-code", "--split", "family",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (base / "printed").write_text(done.stdout)
    return base / "toy"


@pytest.mark.slow
def test_table_iii_from_a_face_set_to_the_printed_tables(experiment: Path) -> None:
    printed = (experiment.parent / "printed").read_text()
    report = (experiment / "report.md").read_text()
    assert "stand-in of drawn faces: 2 of 2 trials to run" in printed
    assert "### Table III under `strict`, stand-in of drawn faces" in report
    assert "ResNet-50 (ImageNet pre-trained): not run: Weight file missing: " in report
    rows = {row["protocol"]: row for row in read_epochs(experiment)}
    assert rows["strict"]["changed_statistics"] == []
    assert "network.bn1.running_mean" in rows["paper-code"]["changed_statistics"]
    assert (experiment / "table3.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((experiment / "settings.json").read_text())
    assert list(saved["missing"]) == ["resnet50-imagenet"]
    for name in (row["trial"] for row in rows.values()):
        assert (experiment / "heads" / f"{name}.pt").is_file()
        assert list((experiment / "tb" / name).glob("events.*"))


@pytest.mark.slow
def test_resumed_experiment_runs_nothing_twice_and_takes_more_seeds_from_the_cache(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deepfake, "start_ray", lambda address: pytest.fail("nothing is left"))
    before = (experiment / "report.md").read_bytes()
    report = deepfake.main(["probe", "--resume", str(experiment)])
    assert (experiment / "report.md").read_bytes() == before
    assert report in capsys.readouterr().out
    out = experiment.parent / "again"
    assert deepfake.main(["report", str(experiment), "--out", str(out)]) == report
    assert (out / "table3.png").is_file()


@pytest.mark.slow
def test_attribution_of_a_probe_draws_panels_and_marks_the_maps(
    experiment: Path, tmp_path: Path
) -> None:
    head = experiment / "heads" / "strict-resnet50-random-layer1-family-logistic-s0.pt"
    words = [str(head), "--samples", "2", "--shown", "2", "--scored", "2"]
    found = attribution.main([*words, "--out", str(tmp_path / "a")])
    own, fresh, chance = found["rows"]
    # A quarter of each side, and of 256 pixels the middle 224 are seen.
    assert chance["energy inside"][0] == pytest.approx((256 / 224) ** 2 / 16, abs=0.005)
    assert own["energy inside"][0] > 2 * chance["energy inside"][0]
    assert own["energy inside"] != fresh["energy inside"]
    for name in ("panel.png", "redrawn.png"):
        assert (tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG")
    again = attribution.main([*words, "--out", str(tmp_path / "b"), "--batch-size", "1"])
    for row, other in zip(found["rows"], again["rows"], strict=True):
        assert np.allclose(row["energy inside"], other["energy inside"], rtol=1e-3)


def test_job_of_a_sweep_reads_its_faces_from_any_working_directory(
    faces: FaceSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(faces.folder.parent)
    trial = find_job("deepfake").settings(faces=Path(faces.folder.name))
    monkeypatch.chdir("/")
    assert trial.place().faces == str(faces.folder.resolve())
