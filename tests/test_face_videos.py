"""Layouts of video data sets: every video found or listed with the reason, none dropped."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rayssl.data.face_videos import FoundVideos, draw_videos, find_videos

Files = dict[str, Any]


def make_tree(root: Path, files: Files) -> Path:
    """Writes these files: dictionaries as JSON, text as it is."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


REAL: dict[str, Any] = {"label": "REAL", "split": "train"}
FAKE = {"label": "FAKE", "split": "train", "original": "a.mp4"}


def part(folder: str, metadata: dict[str, Any], missing: tuple[str, ...] = ()) -> Files:
    """The files of a DFDC part; the videos are empty, as finding them does not open them."""
    videos = {f"{folder}/{name}": "" for name in metadata if name not in missing}
    return {f"{folder}/metadata.json": metadata, **videos}


def problems(found: FoundVideos) -> dict[str, str]:
    return {p.video: p.problem for p in found.problems}


def row(found: FoundVideos, video: str) -> dict[str, Any]:
    """A video's row, without what is missing."""
    values = found.videos.set_index("video").loc[video].dropna()
    return dict(values)


def test_parts_of_dfdc_are_found_nested_once_more_or_not(tmp_path: Path) -> None:
    flat = part("dfdc_train_part_0", {"a.mp4": REAL, "b.mp4": FAKE})
    nested = part("dfdc_train_part_01/dfdc_train_part_1", {"c.mp4": REAL | {"original": None}})
    found = find_videos(make_tree(tmp_path, flat | nested))
    assert found.problems == []
    assert row(found, "dfdc_train_part_0/b") == {
        "path": "dfdc_train_part_0/b.mp4", "family": "a", "part": "dfdc_train_part_0", "label": 1,
        "method": "fake",
    }  # fmt: skip
    assert row(found, "dfdc_train_part_01/dfdc_train_part_1/c") == {
        "path": "dfdc_train_part_01/dfdc_train_part_1/c.mp4", "family": "c",
        "part": "dfdc_train_part_1", "label": 0, "method": "original",
    }  # fmt: skip


def test_sample_set_at_the_root_itself_is_found(tmp_path: Path) -> None:
    found = find_videos(make_tree(tmp_path, part(".", {"a.mp4": REAL, "b.mp4": FAKE})))
    assert list(found.videos["video"]) == ["a", "b"]


@pytest.mark.parametrize("root", [".", "deep/..", "../linked"])
def test_part_that_is_the_root_itself_keeps_its_folders_name(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tree(tmp_path / "dfdc_train_part_7", part(".", {"a.mp4": REAL, "b.mp4": FAKE}))
    (folder / "deep").mkdir()
    (tmp_path / "linked").symlink_to(folder)
    monkeypatch.chdir(folder)
    found = find_videos(Path(root))
    assert set(found.videos["part"]) == {"dfdc_train_part_7"}
    assert list(found.videos["path"]) == ["a.mp4", "b.mp4"]


def test_fake_keeps_its_family_if_the_original_is_not_there(tmp_path: Path) -> None:
    files = part("p", {"b.mp4": FAKE | {"original": "elsewhere.mp4"}})
    assert row(find_videos(make_tree(tmp_path, files)), "p/b")["family"] == "elsewhere"


def test_test_set_takes_labels_from_its_csv_and_leaves_families_of_fakes_unknown(
    tmp_path: Path,
) -> None:
    files = {"test/labels.csv": "filename,label\na.mp4,0\nb.mp4,1\nc.mp4,2\n"}
    files |= {"test/a.mp4": "", "test/b.mp4": "", "test/c.mp4": "", "test/metadata.json": "{}"}
    found = find_videos(make_tree(tmp_path, files))
    assert list(found.videos["label"]) == [0, 1]
    assert "family" not in row(found, "test/b")
    assert row(found, "test/a")["family"] == "a"
    assert problems(found) == {"test/c": "unknown label"}


def test_preview_is_read_from_its_dataset_json(tmp_path: Path) -> None:
    real, fake = "original_videos/12/12_A_001.mp4", "method_A/12/12_A/34_12_A_001.mp4"
    about = {
        real: {"label": "real", "set": "train", "target_id": 12, "swapped_id": None},
        fake: {"label": "fake", "set": "test", "target_id": 12, "swapped_id": 34},
    }
    found = find_videos(make_tree(tmp_path, {"dataset.json": about, real: "", fake: ""}))
    assert row(found, fake[:-4]) == {
        "path": fake, "actor": "12", "other_actor": "34", "part": "test", "label": 1,
        "method": "method_A",
    }  # fmt: skip
    assert row(found, real[:-4])["family"] == "12_A_001"


FF = {
    "original_sequences/youtube/c23/videos/000.mp4": "",
    "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4": "",
    "manipulated_sequences/Face2Face/c23/videos/000_003.mp4": "",
    "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4": "",
    "original_sequences/actors/c23/videos/03__hugging_happy.mp4": "",
    "manipulated_sequences/DeepFakeDetection/c23/videos/03_12__hugging_happy__ABCDEFGH.mp4": "",
}


def test_faceforensics_and_dfd_give_families_actors_methods_and_masks(tmp_path: Path) -> None:
    found = find_videos(make_tree(tmp_path, FF))
    assert found.problems == []
    assert len(found.videos) == 5  # the mask is none
    fake = row(found, "manipulated_sequences/Deepfakes/c23/videos/000_003")
    assert fake == {
        "path": "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4",
        "mask": "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4",
        "family": "000", "actor": "youtube-000", "other_actor": "youtube-003", "part": "youtube",
        "label": 1, "method": "Deepfakes",
    }  # fmt: skip
    dfd = "manipulated_sequences/DeepFakeDetection/c23/videos/03_12__hugging_happy__ABCDEFGH"
    original = row(found, "original_sequences/actors/c23/videos/03__hugging_happy")
    assert row(found, dfd)["family"] == original["family"] == "03__hugging_happy"
    assert row(found, dfd)["other_actor"] == "actor-12"


def test_faceforensics_of_two_compressions_asks_which(tmp_path: Path) -> None:
    root = make_tree(tmp_path, FF | {"original_sequences/youtube/raw/videos/000.mp4": ""})
    with pytest.raises(ValueError, match="compressions raw, c23. Choose with --compression"):
        find_videos(root)
    assert len(find_videos(root, "raw").videos) == 1
    with pytest.raises(ValueError, match="no videos of compression c40. There: raw, c23"):
        find_videos(root, "c40")


@pytest.mark.parametrize("name", ["p/metadata.json", "dataset.json", "q/labels.csv"])
def test_compression_of_another_layout_is_refused(name: str, tmp_path: Path) -> None:
    root = make_tree(tmp_path, {name: {}})
    text = r"--compression is of FaceForensics\+\+ and DFD: expected original_.* c40, got neither"
    with pytest.raises(ValueError, match=text):
        find_videos(root, "c40")


TWICE = '{"b.mp4": {"label": "REAL"}, "b.mp4": {"label": "FAKE"}}'


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (part("p", {"b.mp4": FAKE}, missing=("b.mp4",)), {"p/b": "missing file"}),
        (part("p", {"b.mp4": {"label": "FAKEE"}}), {"p/b": "unknown label"}),
        (part("p", {"b.mp4": {}}), {"p/b": "unknown label"}),
        (part("p", {"b.mp4": "FAKE"}), {"p/b": "damaged list"}),
        (
            {"p/metadata.json": "{", "p/b.mp4": ""},
            {"p/metadata.json": "damaged list", "p/b": "no label"},
        ),
        ({"p/metadata.json": "[1]"}, {"p/metadata.json": "damaged list"}),
        ({"p/metadata.json": b"\xff".decode("latin1")}, {"p/metadata.json": "damaged list"}),
        ({"p/labels.csv": "name\nb.mp4\n"}, {"p/labels.csv": "damaged list"}),
        ({**part("p", {}), "p/b.mp4": ""}, {"p/b": "no label"}),
        (part("p", {"b.mp4": FAKE | {"original": 5}}), {"p/b": "damaged list"}),
        (part("p", {"b.mp4": FAKE | {"original": ["a.mp4"]}}), {"p/b": "damaged list"}),
        (part("p", {"b.mp4": FAKE | {"original": {"a": 1}}}), {"p/b": "damaged list"}),
        (part("p", {"b.mp4": FAKE | {"actor": [1]}}), {"p/b": "damaged list"}),
        ({"p/metadata.json": {"/b.mp4": FAKE}}, {"p/metadata.json": "damaged list"}),
        ({"p/metadata.json": {"": FAKE}}, {"p/metadata.json": "damaged list"}),
        ({"p/metadata.json": {"b\0.mp4": FAKE}}, {"p/metadata.json": "damaged list"}),
        ({"p/metadata.json": {"b\ud800.mp4": FAKE}}, {"p/metadata.json": "damaged list"}),
        ({"p/metadata.json": {"x" * 300: FAKE}}, {"p/" + "x" * 300: "missing file"}),
        ({"p/metadata.json": "[" * 100_000}, {"p/metadata.json": "damaged list"}),
        (
            {"p/metadata.json": {"../q/b.mp4": REAL}, "q/b.mp4": ""},
            {"p/metadata.json": "damaged list", "q/b": "no label"},
        ),
        ({"p/labels.csv": "x,label,filename\n1,0\n"}, {"p/labels.csv": "damaged list"}),
        (part("p", {"b.mp4": REAL, "b.avi": FAKE}), {"p/b": "duplicate name"}),
        ({"p/b.mp4": "", "p/deep/C.AVI": ""}, {"p/b": "no label", "p/deep/C": "no label"}),
        ({"masks/a_part/a.mp4": "", "masks/b.mp4": ""}, {"masks/b": "no label"}),
        (part("p", {"a.mp4": REAL}), {"p/a": "duplicate name"}),
        ({"p/metadata.json": TWICE, "p/b.mp4": ""}, {"p/b": "duplicate name"}),
    ],
)  # fmt: skip
def test_what_is_not_in_order_is_listed_and_the_rest_is_found(
    tmp_path: Path, files: Files, expected: dict[str, str]
) -> None:
    found = find_videos(make_tree(tmp_path, part("a_part", {"a.mp4": REAL}) | files))
    assert problems(found) == expected
    assert "a_part/a" in set(found.videos["video"])


def test_lists_that_begin_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    files = {"p/metadata.json": "\ufeff" + json.dumps({"a.mp4": REAL}), "p/a.mp4": ""}
    files |= {"q/labels.csv": "\ufefffilename,label\nb.mp4,1\n", "q/b.mp4": ""}
    found = find_videos(make_tree(tmp_path, files))
    assert list(found.videos["video"]) == ["p/a", "q/b"]
    assert found.problems == []


def test_odd_entry_of_the_preview_is_listed_and_the_rest_is_found(tmp_path: Path) -> None:
    about = {
        "original_videos/1/a.mp4": {"label": "real", "set": None, "target_id": 1},
        "method_A/1/b.mp4": {"label": "fake", "swapped_id": [2]},
        "/method_A/1/c.mp4": {"label": "fake"},
    }
    files = {"dataset.json": about, "original_videos/1/a.mp4": "", "method_A/1/b.mp4": ""}
    found = find_videos(make_tree(tmp_path, files))
    assert "part" not in row(found, "original_videos/1/a")
    assert problems(found) == {"method_A/1/b": "damaged list", "dataset.json": "damaged list"}
    assert found.problems[0].detail == "expected text as swapped_id, got [2]"


def test_file_whose_name_is_no_utf8_is_listed_in_signs_that_a_table_can_hold(
    tmp_path: Path,
) -> None:
    make_tree(tmp_path, part("p", {"a.mp4": REAL}))
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/p/\xff.mp4")).touch()
    except OSError:
        pytest.skip("this disk takes no such names")
    assert problems(find_videos(tmp_path)) == {"p/\\udcff": "no label"}


def test_part_on_another_disk_is_found_through_its_link(tmp_path: Path) -> None:
    root, disk = tmp_path / "dfdc", tmp_path / "disk"
    make_tree(root, part("dfdc_train_part_0", {"a.mp4": REAL}))
    make_tree(disk, part("dfdc_train_part_1", {"c.mp4": REAL}))
    (root / "linked").symlink_to(disk / "dfdc_train_part_1")
    (root / "dfdc_train_part_0" / "circle").symlink_to(root)
    found = find_videos(root)
    assert list(found.videos["video"]) == ["dfdc_train_part_0/a", "linked/c"]
    assert found.problems == []


def test_folder_linked_twice_gives_its_videos_once_and_names_the_others(tmp_path: Path) -> None:
    make_tree(tmp_path, part("p", {"a.mp4": REAL}))
    (tmp_path / "q").symlink_to(tmp_path / "p")
    found = find_videos(tmp_path)
    assert list(found.videos["video"]) == ["p/a"]
    assert problems(found) == {"q/a": "duplicate name"}


def test_folder_that_cannot_be_read_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path, part("p", {"a.mp4": REAL}) | part("q", {"b.mp4": REAL}))
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("q"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find_videos(tmp_path)
    assert list(found.videos["video"]) == ["p/a"]
    assert found.problems == [("q", "unreadable folder", "Permission denied")]


def test_preview_lists_videos_that_its_dataset_json_does_not_name(tmp_path: Path) -> None:
    about = {"original_videos/1/a.mp4": {"label": "real"}}
    files = {"dataset.json": about, "original_videos/1/a.mp4": "", "method_A/1/b.mp4": ""}
    assert problems(find_videos(make_tree(tmp_path, files))) == {"method_A/1/b": "no label"}


def test_videos_of_faceforensics_are_found_by_any_suffix_and_listed_in_any_other_place(
    tmp_path: Path,
) -> None:
    folder = "original_sequences/youtube"
    files = FF | {f"{folder}/c23/videos/{name}": "" for name in ("001.MP4", "002.avi")}
    files |= {f"{folder}/c23/003.mp4": "", "004.mp4": "", f"{folder}/c23/videos/000.avi": ""}
    found = find_videos(make_tree(tmp_path, files))
    assert row(found, f"{folder}/c23/videos/002")["family"] == "002"
    assert row(found, f"{folder}/c23/videos/001")["path"].endswith("001.MP4")
    assert problems(found) == {
        f"{folder}/c23/003": "no label", "004": "no label",
        f"{folder}/c23/videos/000": "duplicate name",
    }  # fmt: skip


def test_name_of_no_layout_in_faceforensics_is_listed(tmp_path: Path) -> None:
    odd = "manipulated_sequences/Deepfakes/c23/videos/copy of 000.mp4"
    found = find_videos(make_tree(tmp_path, FF | {odd: ""}))
    assert problems(found) == {odd[:-4]: "unknown name"}


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda root: root / "nowhere", FileNotFoundError, "No folder"),
        (lambda root: root, ValueError, "holds no usable video. Expected DFDC"),
        (
            lambda root: make_tree(root, part("p", {"a.mp4": REAL}, missing=("a.mp4",))),
            ValueError,
            "e.g. p/a: p/a.mp4 is not there",
        ),
    ],
)
def test_folder_without_videos_is_refused_with_what_was_expected(
    tmp_path: Path, make: Callable[[Path], Path], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        find_videos(make(tmp_path))


def many(real: int, fake: int) -> pd.DataFrame:
    names = [f"v{i}" for i in range(real + fake)]
    return pd.DataFrame({"video": names, "label": [0] * real + [1] * fake})


def test_drawn_videos_have_the_numbers_asked_for_and_follow_the_seed() -> None:
    videos = many(500, 3000)
    drawn = draw_videos(videos, real=368, fake=400, seed=0)
    assert list(drawn["label"].value_counts().sort_index()) == [368, 400]
    assert drawn["video"].is_unique
    assert drawn.equals(draw_videos(videos, real=368, fake=400, seed=0))
    assert not drawn.equals(draw_videos(videos, real=368, fake=400, seed=1))
    assert draw_videos(videos, real=None, fake=None, seed=0).equals(videos)


def test_more_videos_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="Expected --fake of 0 to 3, .* got 400"):
        draw_videos(many(5, 3), real=None, fake=400, seed=0)
