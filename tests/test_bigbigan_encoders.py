"""BigBiGAN's encoders: their outputs, the golden vector, and the way from TensorFlow's names."""

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from experiments import convert_bigbigan
from rayssl.backbones import images
from rayssl.backbones.bigbigan import BigBiGANEncoder, golden_images
from rayssl.backbones.bigbigan_variables import Source, map_variables
from rayssl.backbones.images import image_backbone_spec, make_image_backbone
from rayssl.backbones.resnet50v2 import ResNet50V2
from rayssl.backbones.revnet import RevNet50

Arrays = dict[str, npt.NDArray[Any]]


def tiny(kind: str) -> BigBiGANEncoder:
    """An encoder of the real structure with few channels and blocks."""
    trunk = ResNet50V2(1, (2, 1, 2, 1)) if kind == "resnet50" else RevNet50(1, (2, 1, 2, 1))
    return BigBiGANEncoder(trunk, hidden=6)


def fake_module(encoder: BigBiGANEncoder, scope: str = "module/Encoder") -> Arrays:
    """Variables as TensorFlow would name those of an encoder, shuffled, among others."""
    counts = {"conv2d": 0, "batch_normalization": 0, "dense": 0}
    arrays: Arrays = {}

    def folder(kind: str) -> str:
        number = counts[kind]
        counts[kind] += 1
        return f"{scope}/{kind}" + (f"_{number}" if number else "")

    for module in encoder.modules():
        values = {name: value.numpy() for name, value in module.state_dict().items()}
        if isinstance(module, nn.Conv2d):
            arrays[folder("conv2d") + "/kernel:0"] = values["weight"].transpose(2, 3, 1, 0)
        elif isinstance(module, nn.Linear):
            name = folder("dense")
            arrays |= {f"{name}/kernel:0": values["weight"].T, f"{name}/bias:0": values["bias"]}
        elif isinstance(module, nn.BatchNorm2d):
            name = folder("batch_normalization")
            arrays |= {
                f"{name}/gamma:0": values["weight"], f"{name}/beta:0": values["bias"],
                f"{name}/moving_mean:0": values["running_mean"],
                f"{name}/moving_variance:0": values["running_var"],
            }  # fmt: skip
        elif isinstance(module, nn.BatchNorm1d):
            arrays[f"{scope}/crelu/accumulated_mean:0"] = values["running_mean"]
            arrays[f"{scope}/crelu/accumulated_var:0"] = values["running_var"]
            arrays[f"{scope}/crelu/accumulation_counter:0"] = np.zeros(())
    arrays["module/Generator/GBlock_0/conv0/w:0"] = np.zeros((3, 3, 8, 8))
    arrays["module/Discriminator/conv/w/u0:0"] = np.zeros((1, 8))
    names = list(arrays)
    random.Random(1).shuffle(names)
    return {name: arrays[name] for name in names}


def shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in arrays.items()}


def randomize(encoder: BigBiGANEncoder, generator: torch.Generator) -> BigBiGANEncoder:
    for name, value in encoder.state_dict().items():
        if value.dtype == torch.float32:
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            else:
                value.normal_(0, 0.3, generator=generator)
    return encoder.eval()


@pytest.mark.parametrize("kind", ["resnet50", "revnet50x4"])
def test_every_weight_is_found_in_a_shuffled_list_of_tensorflows_names(
    kind: str, generator: torch.Generator
) -> None:
    encoder = randomize(tiny(kind), generator)
    arrays = fake_module(encoder)
    found = map_variables(shapes(arrays), encoder)
    state = {k: v for k, v in encoder.state_dict().items() if "num_batches" not in k}
    assert found.keys() == state.keys()
    for name, (variable, axes) in found.items():
        assert np.array_equal(arrays[variable].transpose(axes), state[name].numpy()), name
    assert not {s.variable for s in found.values()} & {
        "module/Generator/GBlock_0/conv0/w:0",
        "module/Encoder/crelu/accumulation_counter:0",
    }


def test_more_than_ten_layers_are_counted_not_spelled() -> None:
    encoder = tiny("resnet50")
    found = map_variables(shapes(fake_module(encoder)), encoder)
    convolutions = [s.variable for s in found.values() if s.variable.endswith("kernel:0")]
    order = [name.split("/")[2] for name in convolutions if "conv2d" in name]
    assert order == ["conv2d", *[f"conv2d_{i}" for i in range(1, len(order))]]
    assert len(order) > 11


def test_names_in_the_generators_manner_and_averaged_copies_are_understood() -> None:
    encoder = tiny("revnet50x4")
    renamed: Arrays = {}
    for name, value in fake_module(encoder).items():
        name = name.replace("/kernel:0", "/w:0").replace("/bias:0", "/b:0")
        name = name.replace("/moving_mean", "/accumulated_mean")
        name = name.replace("/moving_variance", "/accumulated_var")
        renamed[name] = value
        if name.endswith("/w:0"):
            renamed[name.replace("/w:0", "/w/ema_b999900:0")] = value
    found = map_variables(shapes(renamed), encoder)
    assert found["trunk.stem.weight"] == Source(
        "module/Encoder/conv2d/w/ema_b999900:0", (3, 2, 0, 1)
    )
    plain = map_variables(shapes(renamed), encoder, averaged=False)
    assert plain["trunk.stem.weight"].variable == "module/Encoder/conv2d/w:0"
    assert plain.keys() == found.keys()


def without(end: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {k: v for k, v in arrays.items() if not k.endswith(end)}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda a: a | {"module/Encoder/attention/theta:0": np.zeros(3)},
            "These variables of the encoder find no place: module/Encoder/attention/theta. Their",
        ),
        (
            lambda a: a | {"module/Encoder/odd/kernel:0": np.zeros((3, 3, 3))},
            "find no place: module/Encoder/odd/kernel",
        ),
        (
            without("batch_normalization_3/beta:0"),
            "find no place: module/Encoder/batch_normalization_3/gamma, .*moving_mean",
        ),
        (without("Encoder/conv2d_5/kernel:0"), r"Expected \d+ layers of kind conv, got \d+: modul"),
        (
            lambda a: a | {"module/Encoder/conv2d/kernel:0": np.zeros((7, 7, 3, 32))},
            r"Expected \(16, 3, 7, 7\) for trunk.stem.weight, got \(32, 3, 7, 7\) from module/Enco",
        ),
        (
            lambda a: {k.replace("Encoder", "E"): v for k, v in a.items()},
            "No variable has 'encoder' in its name; there are .*module/E, module/Generator. Choose",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_that_lists_it(
    change: Callable[[Arrays], Arrays], text: str
) -> None:
    encoder = tiny("resnet50")
    with pytest.raises(ValueError, match=text):
        map_variables(shapes(change(fake_module(encoder))), encoder)


def test_dense_layers_are_left_out_without_a_latent_head() -> None:
    encoder = tiny("resnet50")
    arrays = fake_module(encoder)
    encoder.latent = None
    assert not any("dense" in s.variable for s in map_variables(shapes(arrays), encoder).values())


def test_bn_crelu_is_both_signs_of_the_normalized_average(generator: torch.Generator) -> None:
    encoder = randomize(tiny("resnet50"), generator)
    x = torch.randn(3, 3, 64, 64, generator=generator)
    with torch.no_grad():
        a, crelu = encoder(x, "avepool_feat"), encoder(x, "bn_crelu_feat")
        norm = encoder.crelu_norm
        mean, var = (t for n, t in norm.named_buffers() if n != "num_batches_tracked")
        z = (a - mean) / (var + 1e-3).sqrt()
    assert crelu.shape == (3, 2 * a.shape[1])
    plus, minus = crelu.chunk(2, dim=1)
    assert torch.allclose(plus - minus, z, atol=1e-6)
    assert (plus * minus).abs().max() == 0
    assert crelu.min() == 0


# Conversion, from a module's variables to a backbone


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> BigBiGANEncoder:
    """What the fake module computes with; the registry knows networks of the same small size."""
    encoder = randomize(tiny("resnet50"), generator)
    features = encoder.trunk.out_features
    real = image_backbone_spec("bigbigan-resnet50")
    small = replace(
        real, build=lambda: tiny("resnet50"),
        layers={"avepool_feat": features, "bn_crelu_feat": 2 * features, "z_mean": 120},
    )  # fmt: skip
    monkeypatch.setattr(images, "_constructors", lambda: {"bigbigan-resnet50": lambda: small})

    def encode(given: npt.NDArray[np.float32]) -> Arrays:
        assert given.shape == (2, 256, 256, 3)
        x = torch.from_numpy(given).permute(0, 3, 1, 2)
        with torch.no_grad():
            layers = {layer: encoder(x, layer).numpy() for layer in small.layers}
        return layers | {"z_sample": np.zeros((2, 120), np.float32)}

    def load_module(address: str) -> tuple[Arrays, Any]:
        assert address == "https://tfhub.dev/deepmind/bigbigan-resnet50/1"
        return fake_module(encoder), encode

    monkeypatch.setattr(convert_bigbigan, "load_module", load_module)
    return encoder


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_converted_file_gives_the_modules_features(
    module: BigBiGANEncoder, tmp_path: Path, suffix: str, generator: torch.Generator
) -> None:
    out = tmp_path / f"encoder{suffix}"
    assert convert_bigbigan.main(["--architecture", "resnet50", "--out", str(out)]) == out
    assert list(tmp_path.iterdir()) == [out]
    x = torch.randn(2, 3, 256, 256, generator=generator)
    for layer in ("avepool_feat", "bn_crelu_feat", "z_mean"):
        backbone = make_image_backbone("bigbigan-resnet50", layer=layer, weights=out)
        with torch.no_grad():
            assert torch.allclose(backbone(x), module(x, layer), atol=1e-6)


def test_file_without_the_latent_head_gives_features_but_no_z_mean(
    module: BigBiGANEncoder, tmp_path: Path
) -> None:
    out = tmp_path / "encoder.npz"
    convert_bigbigan.main(["--architecture", "resnet50", "--out", str(out), "--no-latent"])
    backbone = make_image_backbone("bigbigan-resnet50", weights=out)
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, backbone.out_features)
    backbone = make_image_backbone("bigbigan-resnet50", layer="z_mean", weights=out)
    with pytest.raises(ValueError, match="holds no latent head, so there is no z_mean. Use avepoo"):
        backbone(torch.zeros(1, 3, 64, 64))


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    with np.load(path) as arrays:
        state: dict[str, Any] = dict(arrays)
    change(state)
    new = path.with_name("changed.npz")
    np.savez(new, **state)
    return new


def test_loader_refuses_weights_that_miss_the_golden_vector(
    module: BigBiGANEncoder, tmp_path: Path
) -> None:
    out = tmp_path / "encoder.npz"
    convert_bigbigan.main(["--architecture", "resnet50", "--out", str(out)])

    def swap(state: dict[str, Any]) -> None:
        first, second = (f"trunk.stages.0.{i}.norm3.weight" for i in (0, 1))
        state[first], state[second] = state[second], state[first]

    def forget(state: dict[str, Any]) -> None:
        del state["golden.avepool_feat"]

    def forget_latent(state: dict[str, Any]) -> None:
        del state["golden.z_mean"]

    def cut(state: dict[str, Any]) -> None:
        del state["trunk.norm.running_mean"]

    for change, text in (
        (swap, "avepool_feat of the golden images differs from the module's own by"),
        (forget, r"npz holds no golden vector \(missing: golden.avepool_feat\), got "),
        (forget_latent, r"golden vector \(missing: golden.z_mean\), got .* Convert the"),
        (cut, r"does not fit this network \(missing: trunk.norm.running_mean\)"),
    ):
        with pytest.raises(ValueError, match=text):
            make_image_backbone("bigbigan-resnet50", weights=rewritten(out, change))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        convert_bigbigan.main(["--architecture", "resnet50", *words])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert (err.count("\n"), err[:7]) == (1, "error: ")
    return err


def test_conversion_that_misses_the_modules_features_writes_nothing(
    module: BigBiGANEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder.npz"
    err = refused(capsys, "--out", str(out), "--epsilon", "0.5")
    assert "avepool_feat of the golden images differs from the module's own" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--out", "encoder.pth"], "--out must end in .npz or .safetensors, got encoder.pth."),
        (["--out", "gone/e.npz"], "--out: the folder of gone/e.npz is not there."),
        (["--out", "there.npz"], "there.npz is there already. Choose another --out"),
        (["--seed", "-1"], "--seed must be 0 or more, got -1."),
        (["--epsilon", "0"], "--epsilon must lie between 0 and 1, got 0.0."),
        (["--scope", "Enkoder"], "No variable has 'Enkoder' in its name"),
    ],
)
def test_wrong_value_is_one_line(
    words: list[str], text: str, module: BigBiGANEncoder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npz").write_text("mine")
    assert text in refused(capsys, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]
    assert (tmp_path / "there.npz").read_text() == "mine"


def test_without_tensorflow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    err = refused(capsys, "--out", str(tmp_path / "e.npz"))
    assert "TensorFlow is needed to read a module" in err
    assert "pip install tensorflow tensorflow_hub" in err


def test_variables_can_be_listed_alone(
    module: BigBiGANEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert_bigbigan.main(["--architecture", "resnet50", "--list-variables"]) is None
    lines = capsys.readouterr().out.splitlines()
    assert "module/Encoder/conv2d/kernel:0 (7, 7, 3, 16)" in lines
    assert len(lines) == len(fake_module(module))


def test_golden_images_are_the_same_on_every_machine() -> None:
    x = golden_images(0)
    assert x.shape == (2, 3, 256, 256)
    # numpy's PCG64 stream of seed 0 begins 0.63696169, 0.26978671, 0.04097352 on [0, 1).
    expected = Tensor([2 * 0.63696169 - 1, 2 * 0.26978671 - 1, 2 * 0.04097352 - 1])
    assert torch.allclose(x[0, :, 0, 0], expected, atol=1e-6)
    assert torch.equal(x[0, :, 31, 31], x[0, :, 0, 0]), "a tile is 32 pixels wide"
    assert len(x[0, 0].unique()) == 64
