"""The six rows of Table III: every registered backbone, its preprocessing, and single networks."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import rayssl.backbones
from rayssl._torchvision import torchvision, v2
from rayssl.backbones import alexnet, images
from rayssl.backbones.alexnet import AlexNet
from rayssl.backbones.images import (
    BackboneSpec,
    MissingWeights,
    Preprocessing,
    available_image_backbones,
    image_backbone_spec,
    make_image_backbone,
    random_crop_and_flip,
)
from rayssl.backbones.resnet50 import ResNet50
from rayssl.backbones.rotnet import RotNetAlexNet
from rayssl.backbones.weights import WeightsFile, file_sha256, load_strictly

TABLE_III = (
    "alexnet-imagenet", "alexnet-rotnet", "bigbigan-resnet50", "bigbigan-revnet50x4",
    "resnet50-imagenet", "resnet50-random",
)  # fmt: skip
EVERY_BACKBONE = pytest.mark.parametrize("name", TABLE_III)


def crops(batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Smooth colour images, as photographs are: uint8 `[batch, 3, side, side]`."""
    coarse = torch.rand(batch, 3, 7, 7, generator=generator) * 255
    return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


def test_six_rows_of_table_iii_are_there() -> None:
    assert available_image_backbones() == TABLE_III


@EVERY_BACKBONE
def test_every_layer_gives_as_many_features_as_it_says(
    name: str, generator: torch.Generator
) -> None:
    spec = image_backbone_spec(name)
    assert spec.layer in spec.layers
    network = spec.build().eval()
    # RotNet's dense layers need 224; the other networks take smaller images, which are faster.
    side = 224 if name == "alexnet-rotnet" else 64
    x = torch.randn(1, 3, side, side, generator=generator)
    with torch.no_grad():
        sizes = {layer: tuple(network(x, layer).shape) for layer in spec.layers}
    assert sizes == {layer: (1, features) for layer, features in spec.layers.items()}


@EVERY_BACKBONE
def test_both_preprocessings_give_what_the_network_takes_and_have_ids_of_their_own(
    name: str, generator: torch.Generator
) -> None:
    spec = image_backbone_spec(name)
    assert set(spec.preprocessings) == {"standard", "paper-code"}
    assert len({p.id for p in spec.preprocessings.values()}) == 2
    side = 256 if name.startswith("bigbigan") else 224
    for preprocessing in spec.preprocessings.values():
        for train in (False, True):
            x = preprocessing(crops(2, 60, generator), train=train, generator=generator)
            assert (x.shape, x.dtype) == ((2, 3, side, side), torch.float32)


@EVERY_BACKBONE
def test_backbone_without_its_file_is_one_line_that_says_where_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = image_backbone_spec(name)
    if spec.weights is None:
        pytest.skip(f"{name} needs no file")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(url: str, target: Path) -> Path:
        raise OSError("no network")

    monkeypatch.setattr("rayssl.backbones.weights.download", offline)
    with pytest.raises(MissingWeights) as missing:
        make_image_backbone(name)
    text = str(missing.value)
    assert spec.weights.name in text
    assert "\n" not in text
    assert text.endswith(spec.weights.where)


def test_resnet50_is_torchvisions_up_to_the_average_pooling(generator: torch.Generator) -> None:
    theirs = torchvision.models.resnet50(weights=None).eval()
    ours = ResNet50().eval()
    load_strictly(ours, theirs.state_dict(), source="torchvision", head=("fc.",))
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64, generator=generator)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_alexnet_is_torchvisions_up_to_fc7_and_its_maps_are_pooled(
    generator: torch.Generator,
) -> None:
    theirs = torchvision.models.alexnet(weights=None).eval()
    ours = AlexNet().eval()
    load_strictly(ours, theirs.state_dict(), source="torchvision", head=("classifier.6.",))
    x = torch.randn(2, 3, 224, 224, generator=generator)
    with torch.no_grad():
        conv2 = theirs.features[:5](x)
        assert torch.equal(ours(x, "conv2"), F.adaptive_max_pool2d(conv2, 7).flatten(1))
        conv5 = theirs.features[:12](x)  # 13x13, which the pooling to 6x6 cuts as pool5 does
        assert conv5.shape == (2, 256, 13, 13)
        theirs.classifier[6] = nn.Identity()
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_rotnets_names_and_shapes_are_those_of_the_published_architecture() -> None:
    shapes = {name: tuple(value.shape) for name, value in RotNetAlexNet().state_dict().items()}
    weights = {name: shape for name, shape in shapes.items() if name.endswith("0.weight")}
    assert weights == {
        "_feature_blocks.0.0.weight": (64, 3, 11, 11),
        "_feature_blocks.2.0.weight": (192, 64, 5, 5),
        "_feature_blocks.4.0.weight": (384, 192, 3, 3),
        "_feature_blocks.5.0.weight": (256, 384, 3, 3),
        "_feature_blocks.6.0.weight": (256, 256, 3, 3),
    }
    # Flatten, Linear, BatchNorm, ReLU, Linear, BatchNorm, ReLU, linear layers without a bias
    assert shapes["_feature_blocks.8.1.weight"] == (4096, 9216)
    assert shapes["_feature_blocks.8.4.weight"] == (4096, 4096)
    assert shapes["_feature_blocks.8.5.running_mean"] == (4096,)
    assert "_feature_blocks.8.1.bias" not in shapes
    assert len(shapes) == 5 * 7 + 2 * 6


def test_rotnets_checkpoint_loads_from_the_authors_format(
    tmp_path: Path, generator: torch.Generator
) -> None:
    network = RotNetAlexNet().eval()
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}  # torch 0.2
    head = {"_feature_blocks.9.0.weight": torch.zeros(4, 4096), "_feature_blocks.9.0.bias":
            torch.zeros(4)}  # fmt: skip
    path = tmp_path / "model_net_epoch50"
    torch.save({"epoch": 50, "network": state | head}, path, _use_new_zipfile_serialization=False)
    backbone = make_image_backbone("alexnet-rotnet", weights=path)
    assert (backbone.layer, backbone.out_features) == ("fc_block", 4096)
    assert backbone.weights_id == file_sha256(path)[:16]
    x = torch.randn(1, 3, 224, 224, generator=generator)
    with torch.no_grad():
        assert torch.equal(backbone(x), network(x, "fc_block"))


def test_random_backbone_follows_its_seed_and_leaves_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    made = [make_image_backbone("resnet50-random", seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (next(b.parameters()) for b in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [b.weights_id for b in made] == ["random-1", "random-1", "random-2"]
    assert not any(module.training for module in made[0].modules())


class Tiny(nn.Module):
    """The mean of each colour, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor, layer: str) -> Tensor:
        return x.mean((2, 3)) * self.scale


def tiny_spec() -> BackboneSpec:
    return BackboneSpec(
        build=Tiny,
        layers={"mean": 3},
        layer="mean",
        preprocessings={"standard": Preprocessing(8, 6), "paper-code": Preprocessing(9, 6)},
        weights=WeightsFile("tiny.pth", None, "Write one."),
    )


@pytest.fixture
def extra_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that counts as part of rayssl/backbones/ for one test."""
    path = [*rayssl.backbones.__path__, str(tmp_path)]
    monkeypatch.setattr(rayssl.backbones, "__path__", path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("rayssl.backbones."):
            del sys.modules[name]
            delattr(rayssl.backbones, name.rpartition(".")[2])
    importlib.invalidate_caches()


def test_new_file_in_the_folder_is_a_new_backbone(extra_folder: Path) -> None:
    (extra_folder / "tiny.py").write_text(
        "from rayssl.backbones.resnet50 import _random\nIMAGE_BACKBONES = {'tiny': _random}\n"
    )
    assert available_image_backbones() == (*TABLE_III, "tiny")
    assert image_backbone_spec("tiny").layer == "avgpool"


def test_name_that_two_files_define_is_refused(extra_folder: Path) -> None:
    (extra_folder / "tiny.py").write_text("IMAGE_BACKBONES = {'resnet50-random': None}\n")
    with pytest.raises(ValueError, match=r"got 'resnet50-random' again in .*tiny\.py\. Rename one"):
        available_image_backbones()


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("resnet50", {}, "Unknown backbone 'resnet50'. Available: alexnet-imagenet, .* Did you m"),
        ("resnet50-random", {"layer": "fc7"}, "Unknown layer 'fc7' of resnet50-random. Available:"),
        ("resnet50-random", {"preprocessing": "x"}, "Unknown preprocessing 'x' of resnet50-ran"),
        ("resnet50-random", {"weights": Path("a.pth")}, "keeps its random weights, got the file a"),
    ],
)
def test_wrong_value_is_named_with_what_there_is(
    name: str, options: dict[str, object], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        make_image_backbone(name, **options)  # type: ignore[arg-type]


def test_weights_of_another_architecture_are_refused_with_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_constructors", lambda: {"tiny": tiny_spec})
    path = tmp_path / "w.pth"
    torch.save({"scale": torch.zeros(4)}, path)
    text = r"w\.pth does not fit this network \(of another shape: scale \(4,\) instead of \(3,\)\)"
    with pytest.raises(ValueError, match=text):
        make_image_backbone("tiny", weights=path)
    torch.save({"scale": torch.tensor([1.0, 2.0, 3.0])}, path)
    backbone = make_image_backbone("tiny", weights=path)
    found = backbone(torch.ones(1, 3, 2, 2))
    assert found.tolist() == [[1.0, 2.0, 3.0]]
    assert (backbone.layers, backbone.out_features) == (("mean",), 3)


def test_standard_preprocessing_is_torchvisions_evaluation_transform(
    generator: torch.Generator,
) -> None:
    standard = image_backbone_spec("alexnet-imagenet").preprocessings["standard"]
    theirs = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()
    x = crops(2, 300, generator)
    ours = standard(x)
    for i in range(2):
        image = Image.fromarray(x[i].permute(1, 2, 0).numpy())
        # One grey level of 255, divided by the smallest std: torchvision rounds as Pillow does.
        assert (ours[i] - theirs(image)).abs().max() <= 1.01 / 255 / 0.224


def test_paper_code_resizes_to_257_and_cuts_224(generator: torch.Generator) -> None:
    paper_code = image_backbone_spec("alexnet-rotnet").preprocessings["paper-code"]
    transform = v2.Compose(
        [v2.Resize(257), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
         v2.Normalize(images.IMAGENET_MEAN, images.IMAGENET_STD)]
    )  # fmt: skip
    x = crops(1, 300, generator)
    expected = transform(Image.fromarray(x[0].permute(1, 2, 0).numpy()))
    assert (paper_code(x)[0] - expected).abs().max() <= 1.01 / 255 / 0.224


def test_bigbigan_sees_values_from_minus_one_to_one_of_the_whole_crop() -> None:
    x = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    x[..., 255] = 255
    for preprocessing in image_backbone_spec("bigbigan-resnet50").preprocessings.values():
        found = preprocessing(x)
        assert (float(found.min()), float(found.max())) == (-1, 1)
        assert torch.equal(found == 1, x == 255)


def test_bigbigans_paper_code_scales_as_opencv_does(generator: torch.Generator) -> None:
    cv2 = pytest.importorskip("cv2")
    paper_code = image_backbone_spec("bigbigan-resnet50").preprocessings["paper-code"]
    x = crops(1, 311, generator)
    expected = cv2.resize(x[0].permute(1, 2, 0).numpy(), (256, 256)) / 255.0 * 2.0 - 1.0
    found = paper_code(x)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 1.01 / 127.5


def test_training_crops_at_random_and_mirrors_half_but_bigbigan_does_not(
    generator: torch.Generator,
) -> None:
    x = crops(1, 256, generator).repeat(64, 1, 1, 1)
    standard = image_backbone_spec("resnet50-random").preprocessings["standard"]
    found = standard(x, train=True, generator=generator)
    assert len(found.flatten(1).unique(dim=0)) > 60
    assert len(standard(x).flatten(1).unique(dim=0)) == 1
    bigbigan = image_backbone_spec("bigbigan-resnet50").preprocessings["paper-code"]
    assert torch.equal(bigbigan(x[:1], train=True), bigbigan(x[:1]))
    with pytest.raises(ValueError, match="Training needs a generator for random crops, got none"):
        standard(x, train=True)


def test_random_crop_reaches_every_place_and_both_orientations(generator: torch.Generator) -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4).repeat(2_000, 1, 1, 1)
    parts = random_crop_and_flip(x, 3, generator=generator)
    corners, counts = parts[:, 0, 0, 0].unique(return_counts=True)
    # Upper left corners 0, 1, 4, 5, or where mirrored 2, 3, 6, 7.
    assert corners.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert ((counts - 250).abs() < 5 * 250**0.5).all(), counts


@pytest.mark.parametrize(
    "x",
    [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8).byte(), torch.zeros(1, 3, 8, 9).byte()],
    ids=["float", "grey", "oblong"],
)
def test_crops_that_are_no_square_colour_bytes_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected uint8 crops \[B, 3, S, S\], got .* Cut out sq"):
        Preprocessing(8, 8)(x)


def test_ids_differ_wherever_pixels_differ() -> None:
    first = Preprocessing(256, 224)
    others = [
        first, replace(first, resize=257), replace(first, crop=223),
        replace(first, normalization="pm1"), replace(first, interpolation="bicubic"),
        replace(first, antialias=False),
    ]  # fmt: skip
    assert len({p.id for p in others}) == len(others)


def test_published_files_carry_torchvisions_own_names() -> None:
    enums = torchvision.models.AlexNet_Weights, torchvision.models.ResNet50_Weights
    urls = [enum.IMAGENET1K_V1.url for enum in enums]
    ours = [alexnet.V1.url, image_backbone_spec("resnet50-imagenet").weights]
    assert urls[0] == ours[0]
    assert isinstance(ours[1], WeightsFile)
    assert urls[1] == ours[1].url
