"""Encoders beside the same graph in TensorFlow: converted weights give TensorFlow's features.

Skipped where TensorFlow is not installed; the module is drawn (bigbigan_module), not DeepMind's.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import convert_bigbigan
from rayssl.backbones import images
from rayssl.backbones.bigbigan import BigBiGANEncoder
from rayssl.backbones.images import image_backbone_spec, make_image_backbone
from rayssl.backbones.resnet50v2 import ResNet50V2
from rayssl.backbones.revnet import RevNet50

pytest.importorskip("tensorflow", reason="needs TensorFlow: experiments/convert_bigbigan.py")
pytest.importorskip("tensorflow_hub", reason="needs tensorflow_hub and setuptools below 81")

UNITS, HIDDEN = (2, 1, 2, 1), 6


def tiny(architecture: str) -> BigBiGANEncoder:
    trunk = ResNet50V2 if architecture == "resnet50" else RevNet50
    return BigBiGANEncoder(trunk(1, UNITS), hidden=HIDDEN)


@pytest.fixture(params=["resnet50", "revnet50x4"])
def architecture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture that the registry knows in a small size."""
    name = f"bigbigan-{request.param}"
    features = tiny(request.param).trunk.out_features
    small = replace(
        image_backbone_spec(name), build=lambda: tiny(request.param),
        layers={"avepool_feat": features, "bn_crelu_feat": 2 * features, "z_mean": 120},
    )  # fmt: skip
    monkeypatch.setattr(images, "_constructors", lambda: {name: lambda: small})
    found: str = request.param
    return found


def exported(folder: Path, architecture: str) -> Path:
    from tests.bigbigan_module import export  # imports TensorFlow

    export(folder, architecture, units=UNITS, factor=1, hidden=HIDDEN)
    return folder


def test_converted_module_gives_tensorflows_features(architecture: str, tmp_path: Path) -> None:
    module, out = exported(tmp_path / "module", architecture), tmp_path / "encoder.npz"
    words = ["--architecture", architecture, "--module", str(module), "--out", str(out)]
    assert convert_bigbigan.main(words) == out  # compared to 0.001 of the features' length
    for layer in ("avepool_feat", "bn_crelu_feat", "z_mean"):
        make_image_backbone(f"bigbigan-{architecture}", layer=layer, weights=out)


def test_module_of_another_epsilon_is_refused(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, out = exported(tmp_path / "module", architecture), tmp_path / "encoder.npz"
    words = ["--architecture", architecture, "--module", str(module), "--out", str(out)]
    with pytest.raises(SystemExit):
        convert_bigbigan.main([*words, "--epsilon", "0.1"])
    assert "of the golden images differs from the module's own" in capsys.readouterr().err
    assert not out.exists()
