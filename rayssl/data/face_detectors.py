"""Face detectors: boxes of faces in an image. The default needs no file beyond its package.

| name | what | needs |
| --- | --- | --- |
| `lbp` | cascade over local binary patterns, frontal faces | nothing: 52 KB in scikit-image |
| `yunet` | convolutional, also turned faces | opencv-python and its weights (an .onnx file) |
| `mtcnn` | three convolutional stages | facenet-pytorch, its weights are in the package |

The cascade of scikit-image and not one of OpenCV's: OpenCV 5 has no CascadeClassifier and no
cascade files in its packages any more, and 4 and 5 cannot be installed side by side.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from PIL import Image

DetectorName = Literal["lbp", "yunet", "mtcnn"]
DETECTORS: tuple[DetectorName, ...] = get_args(DetectorName)
LONG_SIDE = 640  # pixels to which larger images are reduced: 1080p would take five times as long
YUNET_SCORE = 0.6


class Box(NamedTuple):
    """A face: left, top, width, height in pixels of the image, in the detector's order."""

    left: float
    top: float
    width: float
    height: float


class FaceDetector(Protocol):
    """Finds faces."""

    def __call__(self, image: np.ndarray) -> list[Box]:
        """Returns the boxes of all faces in an RGB image, uint8 `[H, W, 3]`; may be none."""
        ...


def make_detector(name: str, weights: Path | None = None, min_face: float = 0.1) -> FaceDetector:
    """Returns a detector that works on images reduced to a long side of 640 pixels.

    Args:
      name: one of DETECTORS.
      weights: file of `yunet`'s network.
      min_face: least side of a face's box, by the image's shorter side; `lbp` takes four times as
        long for half of it.
    Raises:
      ValueError: for an unknown name, weights of a detector that takes none or weights that are
        none; or if a package is missing.
      FileNotFoundError: if the weights are missing.
    """
    if name not in DETECTORS:
        raise ValueError(f"Unknown detector {name!r}. Available: {', '.join(DETECTORS)}.")
    if weights is not None and name != "yunet":
        raise ValueError(f"--weights are for --detector yunet, got --detector {name}.")
    if name == "yunet":
        return _Reduced(_YuNet(weights), min_face)
    return _Reduced(_Mtcnn() if name == "mtcnn" else _Cascade(min_face), min_face)


def weights_digest(weights: Path | None) -> str | None:
    """Returns 16 digits of the SHA-256 of a weights file: part of what decides a crop."""
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16] if weights else None


class _Reduced:
    """A detector on a smaller image, its boxes in the pixels of the whole one."""

    def __init__(self, detector: FaceDetector, min_face: float) -> None:
        self._detector, self._min_face = detector, min_face

    def __call__(self, image: np.ndarray) -> list[Box]:
        height, width = image.shape[:2]
        factor = max(1.0, max(height, width) / LONG_SIDE)
        if factor > 1:
            size = round(width / factor), round(height / factor)
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        least = self._min_face * min(height, width)
        boxes = [Box(*(v * factor for v in box)) for box in self._detector(image)]
        return [box for box in boxes if max(box.width, box.height) >= least]


class _Cascade:
    """scikit-image's cascade; boxes from left to right, as its own order depends on threads."""

    def __init__(self, min_face: float) -> None:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade

        self._min_face = min_face
        self._cascade = Cascade(lbp_frontal_face_cascade_filename())

    def __call__(self, image: np.ndarray) -> list[Box]:
        short = min(image.shape[:2])
        least = max(24, math.ceil(short * self._min_face))  # 24: the window it was trained on
        if least > short:
            return []
        found = self._cascade.detect_multi_scale(
            image, scale_factor=1.2, step_ratio=1, min_size=(least, least), max_size=(short, short)
        )
        return sorted(Box(f["c"], f["r"], f["width"], f["height"]) for f in found)


class _YuNet:
    """OpenCV's FaceDetectorYN; boxes by falling score."""

    def __init__(self, weights: Path | None) -> None:
        if weights is None or not weights.is_file():
            raise FileNotFoundError(
                f"YuNet's weights are missing: {weights or 'no --weights given'}. Download "
                "face_detection_yunet_2023mar.onnx from OpenCV's model zoo (github, "
                "opencv/opencv_zoo) and pass it with --weights."
            )
        cv2 = _package("cv2", "opencv-python-headless", "yunet")
        try:
            self._net = cv2.FaceDetectorYN.create(str(weights), "", (320, 320), YUNET_SCORE)
        except cv2.error as error:
            raise ValueError(
                f"{weights} holds no network that OpenCV {cv2.__version__} can read: "
                f"{str(error).strip().splitlines()[-1]}"
            ) from error

    def __call__(self, image: np.ndarray) -> list[Box]:
        self._net.setInputSize((image.shape[1], image.shape[0]))
        found = self._net.detect(np.ascontiguousarray(image[..., ::-1]))[1]  # BGR
        rows = [] if found is None else sorted(found.tolist(), key=lambda row: -row[-1])
        return [Box(*row[:4]) for row in rows]


class _Mtcnn:
    """facenet-pytorch's MTCNN; boxes by falling probability."""

    def __init__(self) -> None:
        from rayssl._torchvision import check_operators  # else the package's import may fail

        package = _package("facenet_pytorch", "--no-deps facenet-pytorch", "mtcnn")
        try:
            check_operators()
        except RuntimeError as error:
            raise ValueError(
                f"--detector mtcnn needs torchvision's operators. {error} Or use --detector lbp or "
                "yunet."
            ) from error
        # keep_all: which face is taken is this project's policy, not the detector's.
        self._net = package.MTCNN(keep_all=True, select_largest=False, device="cpu")

    def __call__(self, image: np.ndarray) -> list[Box]:
        corners = self._net.detect(Image.fromarray(image))[0]
        rows = [] if corners is None else corners.tolist()
        return [Box(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in rows]


def _package(module: str, install: str, name: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise ValueError(
            f"--detector {name} needs a package that is not there: pip install {install} ({error})."
        ) from error
