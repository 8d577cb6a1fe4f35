"""Probes as trials: what ends them, what they refuse, what they leave. No Ray is started."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayssl import deepfake_trainables
from rayssl.data.faces import FaceSet
from rayssl.deepfake import PaperCodeProbe, ProbeSettings
from rayssl.deepfake_trainables import DeepfakeProbe, run_probes
from rayssl.report import read_epochs
from rayssl.rllib.stopping import FAILURE, ends_with_own_errors
from tests.toy_faces import add_tiny_backbone, write_toy_faces

PAPER_CODE = ProbeSettings(
    "paper-code", backbone="tiny", classifier="adam", split="random", epochs=2
)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> FaceSet:
    return write_toy_faces(tmp_path_factory.mktemp("toy") / "faces")


@pytest.fixture(autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_backbone(tmp_path_factory.mktemp("backbones"), monkeypatch)


def config_of(settings: ProbeSettings, faces: FaceSet, folder: Path, **changes: Any) -> Any:
    place = {"faces": str(faces.folder), "features": str(folder / "features"),
             "folder": str(folder)}  # fmt: skip
    probe = dict(vars(settings))
    return {"probe": probe, "place": place, "num_cpus": 1, "restore_from": None} | changes


class OneProcessTuner:
    """In the place of Tune's: runs each trial to its end here, one after the other."""

    def __init__(self, trainable: Any, *, param_space: Any, run_config: Any, **_: Any) -> None:
        self.trainable, self.configs = trainable, param_space["trial"]["grid_search"]
        self.log = run_config.callbacks[0]

    def fit(self) -> list[Any]:
        for config in self.configs:
            trial = SimpleNamespace(config={"trial": config}, is_finished=lambda: False)
            trainable, result = self.trainable(trial.config), dict[str, Any]()
            while not result.get("done"):
                result = trainable.train()
                self.log.on_trial_result(0, [], trial, result)
        return [SimpleNamespace(error=None) for _ in self.configs]


def test_trial_planned_for_other_faces_is_refused_and_one_of_before_is_not(
    faces: FaceSet, tmp_path: Path
) -> None:
    config = config_of(PAPER_CODE, faces, tmp_path)
    DeepfakeProbe(config)  # as trials were planned before faces were named
    config["place"]["fingerprint"] = faces.fingerprint
    DeepfakeProbe(config)
    config["place"]["fingerprint"] = "another"
    with pytest.raises(ValueError, match="Expected the faces another that the trial was planned"):
        DeepfakeProbe(config)


def test_trial_that_fails_by_itself_is_run_once_and_told_in_one_line(
    faces: FaceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def fail(self: PaperCodeProbe) -> Any:
        calls.append(1)
        raise ValueError("The crops are damaged.")

    monkeypatch.setattr(deepfake_trainables.tune, "Tuner", OneProcessTuner)
    monkeypatch.setattr(PaperCodeProbe, "run_epoch", fail)
    configs = [config_of(PAPER_CODE, faces, tmp_path)]
    assert run_probes(configs, tmp_path, num_cpus=1, num_gpus=0) == [
        f"{PAPER_CODE.name} failed: ValueError: The crops are damaged."
    ]
    assert len(calls) == 1
    assert read_epochs(tmp_path) == []  # so that a resumed experiment runs it again


def test_trial_after_a_failed_one_in_the_same_process_keeps_its_checkpoints() -> None:
    class Odd:
        fails: Callable[[int], bool] = staticmethod(lambda step: step == 1)
        steps = 0

        def step(self) -> dict[str, Any]:
            self.steps += 1
            if self.fails(self.steps):
                raise ValueError("once")
            return {"done": False}

        def save_checkpoint(self, checkpoint_dir: str) -> str:
            return checkpoint_dir

    trial = ends_with_own_errors(Odd)()
    assert FAILURE in trial.step()
    assert trial.save_checkpoint("a") is None
    assert trial.step() == {"done": False}
    assert trial.save_checkpoint("a") == "a"
