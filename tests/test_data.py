"""Data sets: digits and IDX files as they are, and every damaged file refused by its name."""

import gzip
import hashlib
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from rayssl._torchvision import torchvision
from rayssl.data import ImageSplits, available_datasets, load_dataset
from rayssl.data.mnist import FILES
from rayssl.data.splits import split_validation

TRAIN_X, TRAIN_Y, TEST_X, TEST_Y = FILES
Damage = Callable[[bytes], bytes]


def write_idx(path: Path, values: Tensor) -> None:
    """Writes unsigned bytes as an IDX file: two zeros, 8, dimensions, sizes big-endian, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    body = values.to(torch.uint8).numpy().tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes((0, 0, 8, values.dim())) + sizes + body)


def small_set() -> dict[str, Tensor]:
    """Images and labels of six training and four test images; pixel (0, 1) tells the image."""
    train, test = torch.zeros(6, 28, 28), torch.zeros(4, 28, 28)
    train[:, 0, 1], test[:, 0, 1] = torch.arange(6) * 10, torch.arange(4) + 100
    return {
        TRAIN_X: train,
        TRAIN_Y: torch.tensor([3, 1, 4, 1, 5, 9]),
        TEST_X: test,
        TEST_Y: torch.tensor([2, 7, 1, 8]),
    }


def write_set(folder: Path, changed: dict[str, Tensor] | None = None) -> Path:
    """Writes the four files, some with other values, and returns their folder."""
    for name, values in (small_set() | (changed or {})).items():
        write_idx(folder / name, values)
    return folder


def pack(folder: Path) -> None:
    """Replaces each file by its .gz, as they are published."""
    for name in FILES:
        raw = folder / name
        (folder / f"{name}.gz").write_bytes(gzip.compress(raw.read_bytes()))
        raw.unlink()


def load(folder: Path | None, name: str = "mnist") -> ImageSplits:
    return load_dataset(name, folder, verify=False)


def splits(train_x: Tensor) -> ImageSplits:
    """A data set of these training images; labels and test images do not matter."""
    labels = torch.zeros(len(train_x), dtype=torch.int64)
    return ImageSplits("made", train_x, labels, train_x[:1], labels[:1], 10)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every download fails as it does without a network; returns the addresses that were tried."""
    tried: list[str] = []

    def fail(url: str, *args: object, **kwargs: object) -> None:
        tried.append(url)
        raise URLError("no network here")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", fail)
    return tried


# Digits


def test_digits_are_1797_grey_images_of_28x28_with_ten_labels() -> None:
    data = load_dataset("digits")
    assert data.name == "digits"
    assert data.train_x.shape == (1437, 1, 28, 28)
    assert data.test_x.shape == (360, 1, 28, 28)
    assert (data.train_x.dtype, data.test_x.dtype) == (torch.uint8, torch.uint8)
    assert (data.train_y.dtype, data.test_y.dtype) == (torch.int64, torch.int64)
    assert sorted(set(data.train_y.tolist())) == list(range(10)) == list(range(data.num_classes))


def test_digits_pixels_are_tripled_within_a_border_of_two_and_16_becomes_255() -> None:
    data, found = load_dataset("digits"), load_digits()
    x = torch.cat([data.train_x, data.test_x])
    assert not x[:, :, :2].any()
    assert not x[:, :, -2:].any()
    assert not x[:, :, :, :2].any()
    assert not x[:, :, :, -2:].any()
    assert x.max() == 255
    small = x[:, 0, 3:26:3, 3:26:3]  # the middle of each block of 3x3
    assert torch.equal(small.repeat_interleave(3, 1).repeat_interleave(3, 2), x[:, 0, 2:26, 2:26])
    by_hand = sorted(np.rint(image * 15.9375).astype(int).tolist() for image in found.images)
    assert sorted(small.tolist()) == by_hand  # all the images, none twice


def test_digits_test_split_is_fixed_disjoint_and_stratified() -> None:
    first, again = load_dataset("digits"), load_dataset("digits")
    assert torch.equal(first.train_x, again.train_x)
    assert torch.equal(first.test_y, again.test_y)
    train = {image.numpy().tobytes() for image in first.train_x}
    assert not any(image.numpy().tobytes() in train for image in first.test_x)
    per_class = torch.bincount(torch.cat([first.train_y, first.test_y]), minlength=10)
    share = torch.bincount(first.test_y, minlength=10) / per_class
    assert ((share - 0.2).abs() * per_class <= 1).all()  # to one image


# Normalization


def test_normalization_is_mean_and_deviation_of_all_training_pixels_in_0_to_1() -> None:
    x = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    x[0] = 255  # 4 of 16 pixels: mean 1/4, variance 1/4 - 1/16 = 3/16
    mean, std = splits(x).normalization()
    assert mean == pytest.approx(1 / 4)
    assert std == pytest.approx(math.sqrt(3 / 16))


def test_normalization_does_not_look_at_the_test_images() -> None:
    x = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(4, 1, 1, 1)
    bright = splits(x)._replace(test_x=torch.full((9, 1, 1, 1), 255, dtype=torch.uint8))
    assert bright.normalization() == splits(x).normalization()
    assert bright.normalization()[0] == pytest.approx((0 + 0.2 + 0.4 + 1) / 4)


# The validation split


def test_validation_split_is_disjoint_complete_and_sorted() -> None:
    labels = torch.arange(120) % 10
    train, validation = split_validation(labels, 1 / 12, seed=0)
    assert (len(train), len(validation)) == (110, 10)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(120))
    assert train.tolist() == sorted(train.tolist())
    assert validation.tolist() == sorted(validation.tolist())


def test_validation_split_takes_the_same_share_of_every_class() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    _, validation = split_validation(labels, 0.1, seed=5)
    assert torch.bincount(labels[validation]).tolist() == [6, 3, 1]


def test_validation_split_repeats_for_the_same_seed_only() -> None:
    labels = torch.arange(200) % 10
    one, again, other = (split_validation(labels, 0.2, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


# IDX files


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_read_byte_by_byte(name: str, tmp_path: Path) -> None:
    data, expected = load(write_set(tmp_path), name), small_set()
    assert data.name == name
    assert data.num_classes == 10
    assert torch.equal(data.train_x, expected[TRAIN_X][:, None].to(torch.uint8))
    assert torch.equal(data.test_x, expected[TEST_X][:, None].to(torch.uint8))
    assert data.train_y.tolist() == [3, 1, 4, 1, 5, 9]
    assert data.test_y.tolist() == [2, 7, 1, 8]
    assert data.train_y.dtype == torch.int64
    # not turned on the way: row 0, column 1
    assert data.train_x[:, 0, 0, 1].tolist() == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "."),
        ("mnist", "MNIST/raw"),  # where torchvision puts them
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_files_are_found_packed_or_not_directly_or_where_torchvision_puts_them(
    name: str, folder: str, packed: bool, tmp_path: Path, offline: list[str]
) -> None:
    write_set(tmp_path / folder)
    if packed:
        pack(tmp_path / folder)
    assert load(tmp_path, name).test_y.tolist() == [2, 7, 1, 8]
    assert offline == []


def test_without_a_folder_the_environment_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "env")
    write_set(tmp_path / "given", {TEST_Y: torch.tensor([0, 0, 0, 0])})
    monkeypatch.setenv("RAYSSL_DATA", str(tmp_path / "env"))
    assert load(None).test_y.tolist() == [2, 7, 1, 8]
    assert load(tmp_path / "given").test_y.tolist() == [0, 0, 0, 0]


def test_without_folder_and_environment_it_is_data_in_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "data")
    monkeypatch.delenv("RAYSSL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert load(None).test_y.tolist() == [2, 7, 1, 8]


# Damaged files


def flipped(raw: bytes) -> bytes:
    """One bit of the last byte is another."""
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda raw: raw[:-1], r"its header promises ([\d,]+) bytes, it has [\d,]+\."),
        (lambda raw: raw + b"\0", r"its header promises ([\d,]+) bytes, it has [\d,]+\."),
        (lambda raw: raw[:7], r"expected an IDX file of bytes in [13] dimension\(s\)\."),
        (lambda raw: b"", r"expected an IDX file of bytes in [13] dimension\(s\)\."),
        (lambda raw: b"<html>" + raw, r"expected an IDX file of bytes in [13] dimension\(s\)\."),
        # type 13: floats
        (lambda raw: b"\0\0\x0d" + raw[3:], r"expected an IDX file of bytes in [13] dim"),
    ],
    ids=["cut short", "too long", "header cut", "empty", "a web page", "floats"],
)
def test_damaged_file_is_refused_by_its_name(
    name: str, damage: Damage, text: str, tmp_path: Path, offline: list[str]
) -> None:
    path = write_set(tmp_path) / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name} is damaged: {text}.*Delete it and copy or"):
        load(tmp_path)
    assert offline == []  # nothing is loaded in its place


def test_images_in_the_place_of_labels_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    shutil.copy(tmp_path / TRAIN_X, tmp_path / TRAIN_Y)
    with pytest.raises(ValueError, match=rf"{TRAIN_Y} is damaged: expected .* in 1 dimension"):
        load(tmp_path)


def test_sizes_are_counted_as_the_header_says(tmp_path: Path) -> None:
    path = write_set(tmp_path) / TRAIN_X
    path.write_bytes(path.read_bytes()[:-784])  # one image less: 16 + 5 * 784
    with pytest.raises(ValueError, match=r"promises 4,720 bytes, it has 3,936\. Delete it"):
        load(tmp_path)


def test_file_that_is_not_the_published_one_is_refused_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    write_set(tmp_path)
    with pytest.raises(
        ValueError,
        match=rf"{TRAIN_X} is damaged: expected MD5 6bbc9ace898e44ae57da46a324031adb, got "
        r"[0-9a-f]{32}\. Delete it .* For a data set of your own in this format pass --no-verify\.",
    ):
        load_dataset("mnist", tmp_path)
    assert len(load_dataset("mnist", tmp_path, verify=False).train_x) == 6


@pytest.mark.parametrize("packed", [False, True])
def test_mnists_files_are_not_taken_for_fashion_mnist(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayssl.data import mnist

    write_set(tmp_path)  # in the root, where both data sets look, under the names that both have
    md5 = tuple(hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in FILES)
    monkeypatch.setattr(mnist, "MNIST", mnist.IdxDataset("mnist", "MNIST", md5))
    if packed:
        pack(tmp_path)
    text = r" is MNIST's, expected that of fashion-mnist\. Put the four files of fashion-mnist into"
    with pytest.raises(ValueError, match=text):
        load_dataset("fashion-mnist", tmp_path)
    own = write_set(tmp_path / "FashionMNIST" / "raw", {TRAIN_X: torch.ones(6, 28, 28)})
    for name in (TRAIN_Y, TEST_X, TEST_Y):
        write_idx(own / name, torch.ones_like(small_set()[name]))
    assert load_dataset("fashion-mnist", tmp_path).train_y.unique().tolist() == [1]


def test_one_flipped_bit_is_found_by_the_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayssl.data import mnist

    write_set(tmp_path)
    md5 = tuple(hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in FILES)
    own = mnist.IdxDataset("own", "MNIST", md5)
    assert len(mnist.load_idx(own, tmp_path).train_x) == 6
    for name, expected in zip(FILES, md5, strict=True):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(flipped(whole))
        with pytest.raises(ValueError, match=rf"{name} is damaged: expected MD5 {expected}"):
            mnist.load_idx(own, tmp_path)
        (tmp_path / name).write_bytes(whole)
    pack(tmp_path)  # the checksum is that of what is in the .gz
    assert len(mnist.load_idx(own, tmp_path).train_x) == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-9],  # a download that broke off
        lambda raw: raw[:5],
        lambda raw: b"<html>404</html>",
        lambda raw: raw[:14] + bytes(255 - byte for byte in raw[14:40]) + raw[40:],
        lambda raw: raw[:-6] + bytes([raw[-6] ^ 255]) + raw[-5:],  # gzip's own checksum
    ],
    ids=["cut short", "header only", "a web page", "bytes flipped", "checksum flipped"],
)
@pytest.mark.parametrize("name", FILES)
def test_damaged_gz_is_refused_by_its_name(name: str, damage: Damage, tmp_path: Path) -> None:
    write_set(tmp_path)
    pack(tmp_path)
    path = tmp_path / f"{name}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=rf"{name}\.gz is damaged: it cannot be unpacked \(.+\)\. Delete it and"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {TRAIN_Y: torch.tensor([1, 2, 3])},
            r"expected as many train images as labels, got 6 and 3\. Copy the four files of one",
        ),
        (
            {TEST_X: torch.zeros(5, 28, 28)},
            r"expected as many t10k images as labels, got 5 and 4\. Copy the four files of one",
        ),
        (
            {TEST_X: torch.zeros(0, 28, 28), TEST_Y: torch.zeros(0)},
            r"expected as many t10k images as labels, got 0 and 0\.",
        ),
        (
            {TEST_X: torch.zeros(4, 28, 32)},
            r"expected t10k images of 28x28, got 28x32\. Copy the four files of MNIST or Fashion-",
        ),
        (
            {TRAIN_Y: torch.tensor([0, 1, 2, 10, 4, 5])},
            r"expected train labels from 0 to 9, got 10\. The file is damaged or of another data",
        ),
    ],
    ids=["labels miss", "images too many", "no image", "wrong size", "label 10"],
)
def test_files_that_do_not_fit_together_are_refused(
    changed: dict[str, Tensor], text: str, tmp_path: Path
) -> None:
    write_set(tmp_path, changed)
    with pytest.raises(ValueError, match=text):
        load(tmp_path)


# Missing files


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_missing_files_offline_are_named_with_a_way_out(
    name: str, folder: str, tmp_path: Path, offline: list[str]
) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load(tmp_path, name)
    text = str(error.value)
    assert text.startswith(f"{name} file missing: {tmp_path / folder / 'raw' / TRAIN_X}, and the ")
    assert "no network here" in text
    for file in FILES:
        assert file in text
    assert text.endswith("or pass --data-dir, or use --dataset digits, which needs no files.")
    assert "\n" not in text
    assert offline  # a download was tried


def test_one_missing_file_is_the_one_that_is_named(tmp_path: Path, offline: list[str]) -> None:
    folder = write_set(tmp_path / "MNIST" / "raw")
    (folder / TEST_Y).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^mnist file missing: {folder / TEST_Y}, and"):
        load(tmp_path)


def test_digits_need_no_folder_and_no_network(tmp_path: Path, offline: list[str]) -> None:
    assert len(load_dataset("digits", tmp_path / "not there").train_x) == 1437
    assert offline == []


def test_unknown_data_set_is_refused_with_the_known_ones() -> None:
    assert available_datasets() == ("digits", "fashion-mnist", "mnist")
    with pytest.raises(
        ValueError,
        match=r"^Unknown data set 'cifar'\. Available: digits, fashion-mnist, mnist\.$",
    ):
        load_dataset("cifar")


# The real one


@pytest.fixture
def real_mnist() -> ImageSplits:
    """MNIST where this machine has it; never downloaded."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "mnist"
    named = os.environ.get("RAYSSL_DATA")
    for folder in ([Path(named)] if named else []) + [beside]:
        if (folder / "MNIST" / "raw" / TRAIN_X).is_file() or (folder / TRAIN_X).is_file():
            return load_dataset("mnist", folder)
    pytest.skip(f"MNIST's files are neither in RAYSSL_DATA ({named}) nor in ../shared/data/mnist")


def test_mnist_is_the_papers(real_mnist: ImageSplits) -> None:
    # section V-A: "a train/test split of 60K/10K images. Each example is a 28x28 grayscale image"
    assert real_mnist.train_x.shape == (60_000, 1, 28, 28)
    assert real_mnist.test_x.shape == (10_000, 1, 28, 28)
    assert real_mnist.num_classes == 10
    mean, std = real_mnist.normalization()
    assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)  # those of the authors' code
    assert real_mnist.train_y[:5].tolist() == [5, 0, 4, 1, 9]
    assert torch.bincount(real_mnist.test_y).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip
