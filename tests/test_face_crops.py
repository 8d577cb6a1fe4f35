"""Videos to crops: the right frames, upright, squares around faces; damage named, not raised."""

import json
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rayssl.data.drawn_faces import draw_portrait, film
from rayssl.data.face_crops import (
    CropSettings,
    Square,
    choose_boxes,
    crop_video,
    cut,
    sample_frames,
    square_around,
)
from rayssl.data.face_detectors import Box, make_detector
from rayssl.data.face_preparation import (
    PreparationSettings,
    contact_sheet,
    finish_preparation,
    plan_preparation,
    start_preparation,
)
from rayssl.data.face_videos import Problem
from rayssl.data.faces import FaceSet, crops_path, load_face_set, write_face_set
from rayssl.data.self_blending import self_blend
from rayssl.video import write_mp4
from tests.toy_faces import write_toy_faces

SETTINGS = CropSettings(frames=3, size=48, min_face=0.3)


def write_numbers(path: Path, count: int, size: tuple[int, int] = (32, 48)) -> Path:
    """A video whose frame i is grey of 10 i, its upper left corner white."""
    frames = np.repeat(np.arange(count), 3 * size[0] * size[1]).reshape(count, *size, 3) * 10
    frames[:, :8, :8] = 255
    write_mp4(path, frames.astype(np.uint8), 12, codec="mpeg4")
    return path


def sampled(path: Path, count: int) -> dict[int, np.ndarray]:
    return dict(sample_frames(path, count))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DFDC part: a real and a fake of a drawn face with a mask, and one of each named fault."""
    root = tmp_path_factory.mktemp("videos")
    part = root / "part_0"
    frames = film(draw_portrait(0, 0), 0, 0, 0, num_frames=4).frames
    write_mp4(part / "real.mp4", frames, 12, codec="mpeg4")
    write_mp4(part / "fake.mp4", frames, 12, codec="mpeg4")
    mask = np.zeros_like(frames)
    mask[:, 100:160, 100:160] = 255
    write_mp4(root / "masks/part_0/fake.mp4", mask, 12, codec="mpeg4")
    write_mp4(part / "short.mp4", frames, 12, codec="mpeg4")
    write_mp4(root / "masks/part_0/short.mp4", mask[:2], 12, codec="mpeg4")
    whole = (part / "real.mp4").read_bytes()
    (part / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    (part / "text.mp4").write_text("no video")
    (part / "empty.mp4").write_bytes(b"")
    write_numbers(part / "wall.mp4", 4, (128, 128))
    labels: dict[str, Any] = {name: {"label": "REAL"} for name in ("real", "cut", "text", "empty")}
    labels |= {
        name: {"label": "FAKE", "original": "real.mp4"} for name in ("fake", "short", "wall")
    }
    labels["odd"] = {"label": "MAYBE"}
    metadata = {f"{name}.mp4": about for name, about in labels.items()}
    (part / "metadata.json").write_text(json.dumps(metadata))
    return root


def prepared(root: Path, out: Path, settings: CropSettings = SETTINGS) -> FaceSet:
    """The whole preparation without Ray."""
    preparation = PreparationSettings(root, settings)
    plan = plan_preparation(preparation, out)
    start_preparation(preparation, out)
    results = [(row, crop_video(root, out, row, settings, None)) for row in plan.rows()]
    return finish_preparation(preparation, out, plan, results, {})


@pytest.fixture(scope="module")
def faces(root: Path, tmp_path_factory: pytest.TempPathFactory) -> FaceSet:
    return prepared(root, tmp_path_factory.mktemp("faces"))


# Frames


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (4, [0, 3, 5, 8]), (99, list(range(9)))],
)
def test_sampled_frames_are_spread_evenly_over_the_whole_video(
    tmp_path: Path, count: int, expected: list[int]
) -> None:
    found = sampled(write_numbers(tmp_path / "v.mp4", 9), count)
    assert list(found) == expected
    for index, image in found.items():
        assert abs(int(image[-1, -1].mean()) - 10 * index) <= 3


def test_rotated_video_comes_out_upright(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "v.mp4", 2)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2, version 0
    quarter_turn_clockwise = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    for i, value in enumerate(quarter_turn_clockwise):
        data[matrix + 4 * i : matrix + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    image = sampled(path, 1)[0]
    assert image.shape == (48, 32, 3)
    assert image[:6, -6:].min() > 200  # the corner that was at the upper left
    assert image[:6, :6].max() < 60


# Squares


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Box(40, 30, 20, 10), (35, 20, 30)),  # 1.5 x 20, around (50, 35)
        (Box(0, 0, 20, 20), (0, 0, 30)),  # moved in, not shrunk
        (Box(85, 60, 20, 20), (70, 50, 30)),
        (Box(20, 0, 70, 70), (15, 0, 80)),  # 1.5 x 70 is higher than the frame
    ],
)
def test_square_is_the_box_times_margin_moved_into_the_frame(
    box: Box, expected: tuple[float, float, float]
) -> None:
    assert square_around(box, (80, 100), 1.5) == expected


def test_cut_takes_just_the_square_and_smooths_what_it_reduces() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[8:24, 30:46] = (10, 20, 30)
    image[8:24:2, 30:46] += 100
    small = cut(image, Square(30, 8, 16, True), 8)
    assert np.abs(small[1:-1, 1:-1].astype(int) - (60, 70, 80)).max() <= 1
    assert cut(image, Square(0, 8, 16, True), 8).max() == 0


def test_policies_for_several_faces_choose_the_largest_the_first_or_all() -> None:
    boxes = [Box(0, 0, 10, 10), Box(50, 0, 20, 20), Box(80, 0, 5, 5)]
    assert choose_boxes(boxes, "largest") == [boxes[1]]
    assert choose_boxes(boxes, "first") == [boxes[0]]
    assert choose_boxes(boxes, "all") == boxes
    assert choose_boxes([], "largest") == []


class Scripted:
    """A detector that answers with these boxes, one list a frame."""

    def __init__(self, *answers: list[Box]) -> None:
        self.answers = iter(answers)

    def __call__(self, image: np.ndarray) -> list[Box]:
        return next(self.answers)


@pytest.mark.parametrize(
    ("no_face", "expected"),
    [
        ("skip", [(1, True, 10)]),
        ("previous", [(1, True, 10), (2, False, 10)]),
        ("centre", [(0, False, 32), (1, True, 10), (2, False, 32)]),
    ],
)
def test_frames_without_a_face_follow_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_face: Any, expected: list[Any]
) -> None:
    write_numbers(tmp_path / "v.mp4", 3)
    scripted = Scripted([], [Box(4, 4, 10, 10)], [])
    monkeypatch.setattr("rayssl.data.face_crops._detector", lambda *which: scripted)
    settings = CropSettings(size=16, margin=1.0, no_face=no_face)
    row = {"video": "v", "path": "v.mp4", "mask": None}
    result = crop_video(tmp_path, tmp_path / "out", row, settings, None)
    assert isinstance(result, dict)
    assert [(c["frame"], c["found"], c["side"]) for c in result["crops"]] == expected
    assert (result["num_sampled"], result["num_without_face"]) == (3, 2)


# A data set with faults


def test_damaged_and_odd_videos_are_listed_with_the_reason_and_the_rest_prepared(
    faces: FaceSet,
) -> None:
    assert list(faces.videos["video"]) == ["part_0/fake", "part_0/real", "part_0/short"]
    table = pd.read_csv(faces.folder / "problems.csv").set_index("video")
    assert dict(table["problem"]) == {
        "part_0/cut": "damaged video",
        "part_0/text": "damaged video",
        "part_0/empty": "damaged video",
        "part_0/wall": "no face",
        "part_0/odd": "unknown label",
        "part_0/short": "damaged mask",
    }
    assert "frame 2 is missing" in table["detail"]["part_0/short"]
    report = (faces.folder / "report.md").read_text()
    assert "| videos found | 4 | 3 |" in report
    assert "| videos prepared | 1 | 2 |" in report
    assert "3 damaged video, 1 no face, 1 unknown label" in report


def test_face_set_holds_the_faces_with_labels_families_and_boxes(faces: FaceSet) -> None:
    crops = faces.crops(range(len(faces.frames)))
    assert crops.shape == (len(faces.frames), 48, 48, 3)
    assert crops.dtype == np.uint8
    assert set(faces.column("family")) == {"real"}
    assert list(faces.labels) == [int(v != "part_0/real") for v in faces.frames["video"]]
    rows = np.flatnonzero(faces.frames["video"] == "part_0/real")
    # The same row read by hand from the video.
    crop = faces.frames.iloc[rows[-1]]
    image = sampled_frame(faces, crop)
    square = Square(crop["left"], crop["top"], crop["side"], True)
    assert np.array_equal(crops[rows[-1]], cut(image, square, 48))
    assert np.array_equal(faces.crops(rows[::-1]), crops[rows][::-1])


def sampled_frame(faces: FaceSet, crop: Any) -> np.ndarray:
    plan = json.loads((faces.folder / "preparation.json").read_text())
    return sampled(Path(plan["root"]) / f"{crop['video']}.mp4", 99)[int(crop["frame"])]


def test_masks_are_cut_at_the_place_of_the_crop(faces: FaceSet) -> None:
    row = int(np.flatnonzero(faces.frames["video"] == "part_0/fake")[0])
    mask, crop = faces.masks([row])[0], faces.frames.iloc[row]
    y, x = np.nonzero(mask)
    scale = crop["side"] / 48
    assert abs(crop["left"] + x.min() * scale - 100) < 2 * scale
    assert abs(crop["top"] + (y.max() + 1) * scale - 160) < 2 * scale
    assert set(np.unique(mask)) == {0, 255}


def test_mask_of_another_size_is_a_problem_and_not_cut_elsewhere(
    root: Path, tmp_path: Path
) -> None:
    write_mp4(tmp_path / "half.mp4", np.zeros((4, 128, 128, 3), np.uint8), 12, codec="mpeg4")
    row = {"video": "v", "path": str(root / "part_0/fake.mp4"), "mask": str(tmp_path / "half.mp4")}
    found = crop_video(root, tmp_path, row, SETTINGS, None)
    assert isinstance(found, dict)
    assert not found["has_masks"]
    assert found["mask_problem"].endswith(": its frames are 128x128, the video's 256x256")


def test_masks_of_real_videos_are_empty_and_missing_ones_are_refused(faces: FaceSet) -> None:
    rows = np.flatnonzero(faces.frames["video"] == "part_0/real")
    assert faces.masks(rows).max() == 0
    with pytest.raises(ValueError, match="part_0/short has no mask video"):
        faces.masks(np.flatnonzero(faces.frames["video"] == "part_0/short"))


def test_second_run_leaves_finished_videos_untouched_and_does_the_missing_one(
    root: Path, faces: FaceSet
) -> None:
    real, fake = (crops_path(faces.folder, f"part_0/{name}") for name in ("real", "fake"))
    before = real.stat().st_mtime_ns, fake.read_bytes()
    fake.unlink()  # as if killed between the two
    (faces.folder / "faces.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"faces.json is missing.*the same command"):
        load_face_set(faces.folder)
    again = prepared(root, faces.folder)
    assert (real.stat().st_mtime_ns, fake.read_bytes()) == before
    assert again.fingerprint == faces.fingerprint
    assert load_face_set(faces.folder).frames.equals(faces.frames)


def test_crops_of_other_settings_in_the_same_place_are_not_taken(
    root: Path, tmp_path: Path
) -> None:
    row = {"video": "part_0/real", "path": "part_0/real.mp4", "mask": None}
    for size in (16, 24):
        crop_video(root, tmp_path, row, CropSettings(1, size, min_face=0.3), None)
    with zipfile.ZipFile(crops_path(tmp_path, "part_0/real")) as file:
        name = next(n for n in file.namelist() if n.endswith("face.png"))
        assert Image.open(file.open(name)).size == (24, 24)


@pytest.mark.parametrize(("letters", "is_problem"), [(250, False), (252, True)])
def test_video_with_a_long_name_is_cropped_or_a_problem_of_its_own(
    letters: int, is_problem: bool, root: Path, tmp_path: Path
) -> None:
    # 255 bytes are the most: 251 and .zip.
    row = {"video": "v" * letters, "path": "part_0/real.mp4", "mask": None}
    found = crop_video(root, tmp_path, row, SETTINGS, None)
    if is_problem:
        assert isinstance(found, Problem)
        assert found.problem == "name too long"
    else:
        assert crops_path(tmp_path, "v" * letters).is_file()
        assert not list(tmp_path.rglob("*.part"))


def test_another_setting_in_the_same_folder_is_refused(root: Path, faces: FaceSet) -> None:
    other = CropSettings(frames=3, size=64, min_face=0.3)
    with pytest.raises(FileExistsError, match="was started with size 48, got 64"):
        plan_preparation(PreparationSettings(root, other), faces.folder)


def test_folder_of_something_else_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="not empty, and holds no preparation"):
        plan_preparation(PreparationSettings(root, SETTINGS), tmp_path)


def test_fingerprint_changes_with_settings_boxes_and_pixels(faces: FaceSet, tmp_path: Path) -> None:
    def fingerprint(**change: Any) -> str:
        parts = {"videos": faces.videos, "frames": faces.frames, "settings": faces.settings}
        return write_face_set(tmp_path, **{**parts, **change}, about={}).fingerprint

    found = {
        fingerprint(),
        fingerprint(settings={**faces.settings, "margin": 1.5}),
        fingerprint(frames=faces.frames.assign(top=0)),
        fingerprint(videos=faces.videos.assign(sha256="0")),
    }
    assert len(found) == 4
    assert fingerprint() == faces.fingerprint


def test_table_changed_by_hand_is_refused(faces: FaceSet, tmp_path: Path) -> None:
    write_face_set(tmp_path, faces.videos, faces.frames, faces.settings, {})
    path = tmp_path / "videos.csv"
    path.write_text(path.read_text().replace(",1,fake", ",0,fake"))
    with pytest.raises(ValueError, match="expected fingerprint"):
        load_face_set(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:100] + bytes(50) + data[150:],
        lambda data: data.replace(b"000001-0-face", b"000009-0-face"),
    ],
    ids=["truncated", "empty", "overwritten", "without the crop"],
)
def test_damaged_file_of_crops_is_refused_by_name(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    faces = write_toy_faces(tmp_path, families=1, frames=2)
    path = crops_path(tmp_path, faces.videos["video"][0])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path} is damaged \(.*\)\. Delete it and run the same"):
        faces.crops(range(4))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"Crops missing: {path}. Run the same prepare"):
        faces.crops(range(4))


def test_preparation_without_any_face_is_refused_with_an_example(tmp_path: Path) -> None:
    part = tmp_path / "videos"
    write_numbers(part / "a.mp4", 2, (64, 64))
    (part / "metadata.json").write_text('{"a.mp4": {"label": "REAL"}}')
    with pytest.raises(ValueError, match="None of 1 videos gave a face.*a: no face"):
        prepared(part, tmp_path / "out")
    assert "no face" in (tmp_path / "out/problems.csv").read_text()


def test_contact_sheet_shows_originals_above_their_fakes_and_masks(faces: FaceSet) -> None:
    assert contact_sheet(faces).size == (48, 3 * 48)  # one family: original, fake, mask


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (CropSettings(frames=0), "--frames must be 1 or more, got 0"),
        (CropSettings(size=4), "--size must be 8 or more"),
        (CropSettings(margin=float("nan")), "--margin must be"),
        (CropSettings(min_face=0), "--min-face must be over 0"),
        (CropSettings(no_face="guess"), "--no-face must be one of skip, previous, centre"),  # type: ignore[arg-type]
    ],
)
def test_wrong_crop_settings_are_refused(settings: CropSettings, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        settings.check()


# Detectors


def test_yunet_without_its_file_says_where_it_is_from(tmp_path: Path) -> None:
    for weights in (None, tmp_path / "none.onnx"):
        with pytest.raises(FileNotFoundError, match=r"weights are missing.*opencv_zoo"):
            make_detector("yunet", weights)


def test_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "a.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"a\.onnx holds no network"):
        make_detector("yunet", tmp_path / "a.onnx")


def test_yunet_gives_boxes_of_the_picture_in_its_own_colours(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("onnx", reason="draws a stand-in for YuNet's file: pip install onnx")
    from tests.drawn_yunet import save

    detect = make_detector("yunet", save(tmp_path / "drawn.onnx"))
    image = np.full((256, 320, 3), 60, np.uint8)
    assert detect(image) == []
    image[96:128, 160:192] = (250, 40, 40)  # red first
    assert detect(image) == [Box(144, 80, 64, 64)]  # two cells of 32 around its middle
    assert detect(image[..., ::-1].copy()) == []


def test_mtcnn_beside_a_torchvision_without_operators_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torchvision

    import rayssl._torchvision  # noqa: F401

    def missing(*args: object) -> None:
        raise RuntimeError("Couldn't load custom C++ ops.")

    monkeypatch.setitem(sys.modules, "facenet_pytorch", types.ModuleType("facenet_pytorch"))
    monkeypatch.setattr(torchvision.ops, "nms", missing)
    with pytest.raises(
        ValueError, match="needs torchvision's operators. Those of torchvision .* do not"
    ):
        make_detector("mtcnn")


def test_mtcnn_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    with pytest.raises(ValueError, match="pip install --no-deps facenet-pytorch"):
        make_detector("mtcnn")


def test_unknown_detector_and_weights_of_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown detector 'dlib'. Available: lbp, yunet, mtcnn"):
        make_detector("dlib")
    with pytest.raises(ValueError, match="--weights are for --detector yunet"):
        make_detector("lbp", tmp_path)


# Self-blending


def test_self_blend_changes_the_middle_and_never_the_border() -> None:
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 255, (6, 64, 64, 3)).astype(np.uint8)
    before = crops.copy()
    fakes, masks = self_blend(crops, rng)
    assert np.array_equal(crops, before)
    assert fakes.shape == crops.shape
    assert masks.shape == crops.shape[:3]
    assert fakes.dtype == masks.dtype == np.uint8
    for fake, mask, crop in zip(fakes, masks, crops, strict=True):
        change = np.abs(fake.astype(int) - crop).max(-1)
        assert change[mask > 100].mean() > 3 or mask.max() <= 100
        assert masks[:, 0].max() == 0


def test_self_blended_target_outside_the_mask_is_one_of_the_two_copies_untouched() -> None:
    crops = np.full((20, 32, 32, 3), 120, np.uint8)
    fakes, masks = self_blend(crops, np.random.default_rng(1))
    corner = fakes[:, 0, 0].astype(int)
    untouched = (corner == 120).all(-1)
    assert 0 < untouched.sum() < 20  # half of them change the face, half what is around it
    assert all(masks[i].max() > 40 for i in range(20))


def test_self_blend_follows_its_generator() -> None:
    crops = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    one, again, other = (self_blend(crops, np.random.default_rng(s))[0] for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("crops", "text"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "Expected uint8 crops"),
        (np.zeros((8, 8, 3), np.uint8), "Expected uint8 crops"),
        (np.zeros((2, 8, 9, 3), np.uint8), "Expected square crops"),
    ],
)
def test_self_blend_refuses_what_is_no_stack_of_crops(crops: np.ndarray, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        self_blend(crops, np.random.default_rng(0))


def test_videos_that_cannot_be_written_stop_the_preparation(root: Path, tmp_path: Path) -> None:
    (tmp_path / "crops").write_text("a file where the folder must be")
    row = {"video": "part_0/real", "path": "part_0/real.mp4", "mask": None}
    with pytest.raises(OSError, match="crops"):
        crop_video(root, tmp_path, row, SETTINGS, None)
