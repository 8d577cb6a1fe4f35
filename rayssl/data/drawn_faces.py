"""Drawn faces: portraits that are nobody, moving, and with another drawn face put into them.

Everything is arithmetic on a pixel grid: no photo, no person, no download. Dark eye sockets and
brows, a bright bridge of the nose and bright cheeks are what cascades of face detectors look for
(Viola and Jones 2001, fig. 3), so they are drawn with care; a flat cartoon is not found.

Images are RGB; drawings float32 `[HEIGHT, WIDTH, 3]` in [0, 255], frames uint8 `[SIDE, SIDE, 3]`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

WIDTH, HEIGHT = 208, 304  # of a portrait's canvas, pixels
CENTRE_X, CENTRE_Y = 104, 128  # of the face in it
SIDE = 256  # of a video's frame
SKIN = np.array([[236, 196, 170], [222, 176, 146], [196, 148, 116], [160, 112, 82], [112, 78, 58]])
HAIR = np.array([[40, 30, 26], [74, 52, 36], [120, 84, 50], [172, 136, 84], [120, 116, 112]])
IRIS = np.array([[84, 58, 36], [70, 100, 130], [80, 108, 76], [48, 36, 30]])
WHITE, PUPIL, GLINT = (np.array([v, v * 0.98, v * 0.95]) for v in (228.0, 14.0, 255.0))
PORTRAIT, CLIP, SWAP = 1, 2, 3  # first word of each random stream


@dataclass(frozen=True)
class Portrait:
    """One drawn person.

    Attributes:
      half_width, half_height: of the face, pixels.
      eye_x, eye_y: of the eyes from the face's centre: at (-eye_x, eye_y) and (eye_x, eye_y).
      mouth_y: of the mouth.
      rest: the drawing with open eyes and closed mouth.
      mouth, blink: what changes if the mouth opens, if the eyes close (added to `rest`).
      alpha: opacity of head, hair and shoulders, float32 `[HEIGHT, WIDTH]` in [0, 1].
    """

    half_width: float
    half_height: float
    eye_x: float
    eye_y: float
    mouth_y: float
    rest: np.ndarray
    mouth: np.ndarray
    blink: np.ndarray
    alpha: np.ndarray

    def at(self, mouth: float, blink: float) -> np.ndarray:
        """Returns the drawing with the mouth this far open and the eyes this far closed, [0, 1]."""
        return self.rest + mouth * self.mouth + blink * self.blink


@dataclass(frozen=True)
class Motion:
    """How a head moves in a clip, one value a frame: pixels, radians, factor, [0, 1], [0, 1]."""

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    scale: np.ndarray
    mouth: np.ndarray
    blink: np.ndarray


@dataclass(frozen=True)
class Clip:
    """One scene of one portrait: its motion, light, background and camera noise."""

    portrait: Portrait
    motion: Motion
    background: np.ndarray
    light: np.ndarray
    blur: float
    noise: float
    seed: tuple[int, ...]

    @property
    def num_frames(self) -> int:
        """Length of the clip."""
        return len(self.motion.x)

    @cached_property
    def frames(self) -> np.ndarray:
        """The clip as filmed, uint8 `[T, SIDE, SIDE, 3]`."""
        rng = np.random.default_rng(self.seed)
        return np.stack([self._frame(t, rng) for t in range(self.num_frames)])

    def _frame(self, t: int, rng: np.random.Generator) -> np.ndarray:
        layer = np.dstack([self.drawing(self.portrait, t), self.portrait.alpha * 255])
        head = self.place(layer, t)
        alpha = head[..., 3:] / 255
        image = (self.background * (1 - alpha) + head[..., :3] * alpha) * self.light
        image = gaussian_filter(image, (self.blur, self.blur, 0))
        image += rng.normal(0, self.noise, image.shape[:2]).astype(np.float32)[..., None]
        return to_uint8(image)

    def drawing(self, portrait: Portrait, t: int) -> np.ndarray:
        """Returns a portrait with mouth and eyes as this clip has them at frame t."""
        return portrait.at(float(self.motion.mouth[t]), float(self.motion.blink[t]))

    def place(self, layer: np.ndarray, t: int, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
        """Returns a canvas `[HEIGHT, WIDTH, C]` where the head is at frame t: `[SIDE, SIDE, C]`.

        Args:
          layer: float in [0, 255], 3 or 4 channels.
          t: frame.
          dx, dy: shift beside the head's place, pixels.
        """
        m = self.motion
        cos, sin = (f(m.angle[t]) / m.scale[t] for f in (np.cos, np.sin))
        x0, y0 = SIDE / 2 + m.x[t] + dx, SIDE / 2 + m.y[t] + dy
        inverse = (
            cos, sin, CENTRE_X - cos * x0 - sin * y0,
            -sin, cos, CENTRE_Y + sin * x0 - cos * y0,
        )  # fmt: skip
        # Pillow's affine takes 1-2 ms where a float warp takes ten times that.
        image = Image.fromarray(to_uint8(layer))
        moved = image.transform(
            (SIDE, SIDE), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
        )
        return np.asarray(moved, np.float32)


def draw_portrait(seed: int, actor: int) -> Portrait:
    """Returns the drawn person of this number; the same for the same seed."""
    rng = np.random.default_rng([PORTRAIT, seed, actor])
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    x, y = x - CENTRE_X, y - CENTRE_Y
    a, b = rng.uniform(57, 66), rng.uniform(76, 86)
    eye_x, eye_y = a * rng.uniform(0.40, 0.46), b * rng.uniform(-0.20, -0.14)
    mouth_y, nose_y = b * rng.uniform(0.48, 0.54), b * rng.uniform(0.18, 0.24)
    tone = rng.uniform(0, len(SKIN) - 1)
    skin = _between(SKIN, tone) + rng.normal(0, 4, 3)
    hair = _between(HAIR, rng.uniform(0, min(len(HAIR) - 1, 4.5 - tone))) + rng.normal(0, 4, 3)
    iris = IRIS[rng.integers(len(IRIS))]
    shirt = rng.uniform(40, 200, 3)

    jaw = rng.uniform(0.10, 0.24)
    narrow = a * (1 - jaw * np.clip(y / b, 0, 1) ** 2)
    face = _inside(x / narrow, y / b, a)
    texture = _skin_texture(rng, x)
    shade = _skin_shade(x, y, a, b, eye_x, eye_y, nose_y, mouth_y, narrow)
    skin_map = skin * shade[..., None] + texture[..., None]
    beard = rng.choice([0, 0, 0.35]) * face * _blob(x, y - b * 0.72, a * 0.75, b * 0.30)
    skin_map = _mix(skin_map, hair, beard * (0.7 + 0.3 * rng.random(x.shape)))

    streaks = gaussian_filter(rng.normal(0, 1, x.shape), (7, 0.8)) * 34
    hair_map = hair + streaks[..., None] + 16 * _blob(x + 20, y + b, a * 0.5, b * 0.2)[..., None]
    length = rng.uniform(0.3, 1.5)
    back = _inside(x / (a * rng.uniform(1.10, 1.24)), (y + b * 0.12) / (b * 1.10), a)
    back = back * _step(b * length - y, 6)
    neck = _step(a * 0.52 - abs(x), 2) * _step(y - b * 0.55, 2)
    shoulders = _step(y - b * 1.16 - (x / a) ** 2 * 6 - (x / a / 1.4) ** 8 * 12, 2)
    hairline = -b * rng.uniform(0.56, 0.72) + rng.uniform(-6, 6) * np.sin(x / a * 3)
    fringe = np.maximum(face, back) * _step(hairline + 0.12 * abs(x) - y, 3)

    image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    image = _mix(image, hair_map, back)
    image = _mix(image, skin * 0.74 + texture[..., None], neck)
    image = _mix(image, shirt + texture[..., None] * 0.6, shoulders)
    image = _mix(image, skin_map, face)
    for side in (-1, 1):
        u = x - side * eye_x
        tilt = side * u * rng.uniform(0.02, 0.10) + (u / 16) ** 2 * 2
        brow = _inside(u / (a * 0.25), (y - eye_y + b * 0.155 - tilt) / (b * 0.032), 3)
        image = _mix(image, hair * 0.62, brow * 0.92)
    image = _mix(image, hair_map, fringe)
    look = _Look(x, y, a, b, eye_x, eye_y, mouth_y, skin, iris)
    rest = look.mouth(look.eyes(image))
    open_mouth = look.mouth(look.eyes(image), opened=True)
    closed_eyes = look.mouth(look.eyes(image, closed=True))
    alpha = 1 - (1 - back) * (1 - neck) * (1 - shoulders) * (1 - face)
    return Portrait(
        a, b, eye_x, eye_y, mouth_y,
        rest, open_mouth - rest, closed_eyes - rest, alpha.astype(np.float32),
    )  # fmt: skip


def _skin_shade(
    x: np.ndarray, y: np.ndarray, a: float, b: float, eye_x: float, eye_y: float, nose_y: float,
    mouth_y: float, narrow: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """What is dark and what is bright in every face under light from above: 1 for plain skin."""
    shade = 1.06 - 0.26 * np.clip((x / narrow) ** 2 + (y / b) ** 2, 0, 1.2) ** 2
    for side in (-1, 1):
        shade -= 0.34 * _blob(x - side * eye_x, y - eye_y + 3, a * 0.26, b * 0.105)
        shade += 0.12 * _blob(x - side * eye_x * 1.1, y - b * 0.20, a * 0.24, b * 0.14)
        shade -= 0.16 * _blob(x - side * a * 0.17, y - nose_y + 4, a * 0.07, b * 0.13)
        shade -= 0.40 * _blob(x - side * a * 0.11, y - nose_y - 5, a * 0.055, b * 0.022)
        shade -= 0.10 * _blob(x - side * a * 0.42, y - mouth_y + 6, a * 0.10, b * 0.13)
    shade += 0.20 * _blob(x, y - eye_y - b * 0.16, a * 0.085, b * 0.22)  # bridge
    shade += 0.14 * _blob(x, y - nose_y + 3, a * 0.11, b * 0.05)  # tip
    shade += 0.10 * _blob(x, y + b * 0.50, a * 0.55, b * 0.18)  # forehead
    shade -= 0.14 * _blob(x, y - mouth_y - b * 0.15, a * 0.30, b * 0.045)  # below the lip
    return shade


def _skin_texture(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Spots and pores of one person, added to the colour of the skin."""
    texture = gaussian_filter(rng.normal(0, 1, x.shape), 5) * 14 + rng.normal(0, 1, x.shape) * 2.5
    freckles = rng.random(x.shape) < rng.choice([0, 0, 0.006])
    texture -= 120 * gaussian_filter(freckles.astype(np.float32), 0.9)
    return texture


class _Look(NamedTuple):
    """Where eyes and mouth are and what colour they have; draws them on a face."""

    x: np.ndarray
    y: np.ndarray
    a: float
    b: float
    eye_x: float
    eye_y: float
    mouth_y: float
    skin: np.ndarray
    iris: np.ndarray

    def eyes(self, image: np.ndarray, closed: bool = False) -> np.ndarray:
        width, height = self.a * 0.185, self.b * 0.062
        for side in (-1, 1):
            u, v = self.x - side * self.eye_x, self.y - self.eye_y
            if closed:
                lid = _inside(u / (width * 1.1), v / (height * 1.2), 4)
                image = _mix(image, self.skin * 0.80, lid)
                lashes = _blob(u, v - height * 0.6, width * 0.7, 1.3)
                image = _mix(image, self.skin * 0.30, lashes)
                continue
            opening = _inside(u / width, v / height, 4)
            radius = np.hypot(u, v)
            image = _mix(image, WHITE, opening)
            image = _mix(image, self.iris, opening * _step(height * 1.02 - radius, 0.8))
            image = _mix(image, PUPIL, opening * _step(height * 0.5 - radius, 0.7))
            image = _mix(image, GLINT, opening * _blob(u - 2, v + 2, 1.1, 1.1))
            lid = _inside(u / (width * 1.08), (v + 1.5) / (height * 1.15), 4) * (1 - opening)
            image = _mix(image, self.skin * 0.22, lid * _step(-v, 1.5))
        return image

    def mouth(self, image: np.ndarray, opened: bool = False) -> np.ndarray:
        x, v, width = self.x, self.y - self.mouth_y, self.a * 0.36
        lips, gap = self.skin * np.array([0.80, 0.52, 0.52]), 7.0 * opened
        smile = (x / width) ** 2 * 2.5
        upper = _inside(x / width, (v + smile + 2.5) / 4.5, 4)
        lower = _inside(x / (width * 0.92), (v + smile - 3.5 - gap) / (5.5 + gap / 4), 4)
        image = _mix(image, lips * 1.08, lower)
        image = _mix(image, lips * 0.86, upper)
        if not opened:
            return _mix(image, self.skin * 0.26, _blob(x, v + smile * 0.9, width * 0.7, 1.2))
        inside = _inside(x / (width * 0.82), (v + smile - gap * 0.5) / (gap * 0.72), 4)
        image = _mix(image, PUPIL * 2.5, inside)
        return _mix(image, WHITE, inside * _step(gap * 0.3 - v - smile, 1))


def film(portrait: Portrait, seed: int, actor: int, take: int, num_frames: int) -> Clip:
    """Returns a scene of a portrait with motion, light, background and camera of its own."""
    rng = np.random.default_rng([CLIP, seed, actor, take])
    t = np.arange(num_frames)

    def sway(reach: float) -> np.ndarray:
        return reach * np.sin(t * rng.uniform(0.15, 0.5) + rng.uniform(0, 2 * np.pi))

    blink = np.zeros(num_frames)
    blink[rng.integers(0, num_frames, max(1, num_frames // 12))] = 1
    motion = Motion(
        x=rng.uniform(-14, 14) + sway(5),
        y=rng.uniform(4, 16) + sway(3),
        angle=rng.uniform(-0.06, 0.06) + sway(0.03),
        scale=rng.uniform(0.84, 1.02) + sway(0.01),
        mouth=np.clip(sway(1.0), 0, 1),
        blink=blink,
    )
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)
    wall = rng.uniform(60, 200, 3) + rng.normal(0, 12, 3) * x[..., None]
    wall = wall + gaussian_filter(rng.normal(0, 1, x.shape), 18)[..., None] * rng.uniform(0, 900)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.16)
    light = rng.uniform(0.80, 1.12) * (1 + slope * (np.cos(angle) * x + np.sin(angle) * y))
    light = light[..., None] * (1 + rng.normal(0, 0.03, 3))
    return Clip(
        portrait, motion, wall.astype(np.float32), light.astype(np.float32),
        blur=float(rng.uniform(0.3, 1.2)), noise=float(rng.uniform(1.0, 4.0)),
        seed=(CLIP, seed, actor, take, 1),
    )  # fmt: skip


def swap_face(clip: Clip, other: Portrait, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clip with another portrait's inner face in it, and where: a face swap.

    As swaps of real videos do: eyes and mouth are laid on eyes and mouth, colours are matched
    within the mask, the face has a lower resolution and less noise than the video, its edge is
    feathered, and its place trembles.

    Args:
      clip: the original.
      other: whose face is put in.
      seed: of the random stream.
    Returns:
      frames, uint8 `[T, SIDE, SIDE, 3]`, the clip's own pixels where the mask is 0; mask, uint8
      `[T, SIDE, SIDE]`: 255 times the opacity.
    """
    rng = np.random.default_rng([SWAP, *seed])
    own = clip.portrait
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    middle = (own.eye_y + own.mouth_y) / 2 + CENTRE_Y
    edge = np.hypot(
        (x - CENTRE_X) / (own.half_width * rng.uniform(0.70, 0.82)),
        (y - middle) / (own.half_height * rng.uniform(0.56, 0.66)),
    )
    mask = gaussian_filter((edge < 1).astype(np.float32), rng.uniform(4, 9))
    mask *= rng.uniform(0.85, 1.0)
    coarse = rng.uniform(0.6, 1.0)
    sharpen = rng.uniform(0.0, 2.0)  # so that softness alone does not tell a fake
    shift = rng.normal(0, 0.6, (clip.num_frames, 2))
    gain, offset = _colour_match(_onto(other.rest, other, own), own.rest, mask > 0.5)
    offset += rng.normal(0, 12, 3)  # of no clip are the colours matched quite
    tone = 1 + rng.normal(0, 0.07, 3)  # of the tool; in the blend only: the mask says all
    noise = clip.noise * rng.uniform(0.6, 1.0)
    frames, masks = [], []
    for t, frame in enumerate(clip.frames):
        face = _onto(clip.drawing(other, t), other, own) * gain + offset
        small = Image.fromarray(to_uint8(face)).resize(
            (round(WIDTH * coarse), round(HEIGHT * coarse)), Image.Resampling.BOX
        )
        soft = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR), np.float32)
        soft += sharpen * (soft - gaussian_filter(soft, (2, 2, 0)))
        dx, dy = shift[t]
        placed = clip.place(np.dstack([soft, mask * 255]), t, dx, dy)
        alpha = placed[..., 3:] / 255
        put_in = gaussian_filter(placed[..., :3] * clip.light, (clip.blur, clip.blur, 0))
        put_in += rng.normal(0, noise, put_in.shape[:2]).astype(np.float32)[..., None]
        frames.append(to_uint8(frame * (1 - alpha) + put_in * tone * alpha))
        masks.append(placed[..., 3].astype(np.uint8))
    return np.stack(frames), np.stack(masks)


def _onto(drawing: np.ndarray, other: Portrait, own: Portrait) -> np.ndarray:
    """A drawing of `other` stretched so that its eyes and mouth lie on those of `own`."""
    sx = other.eye_x / own.eye_x
    sy = (other.mouth_y - other.eye_y) / (own.mouth_y - own.eye_y)
    inverse = (
        sx, 0, CENTRE_X * (1 - sx),
        0, sy, other.eye_y - sy * own.eye_y + CENTRE_Y * (1 - sy),
    )  # fmt: skip
    image = Image.fromarray(to_uint8(drawing))
    moved = image.transform(
        (WIDTH, HEIGHT), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    return np.asarray(moved, np.float32)


def _colour_match(
    face: np.ndarray, target: np.ndarray, where: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset of each colour that give the face the target's mean and deviation there."""
    source, wanted = face[where], target[where]
    gain = wanted.std(0) / np.maximum(source.std(0), 1)
    return gain, wanted.mean(0) - gain * source.mean(0)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Returns the image rounded and clipped to [0, 255]."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _mix(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`above` laid over `below`; only where alpha is not 0, which is a small part for most."""
    y, x = (np.flatnonzero(alpha.max(axis) > 1e-3) for axis in (1, 0))
    if not len(y):
        return below
    part = (slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))
    over = np.broadcast_to(np.asarray(above, np.float32), below.shape)[part]
    mixed = below.copy()
    mixed[part] += alpha[part][..., None].astype(np.float32) * (over - below[part])
    return mixed


def _step(distance: np.ndarray, softness: float) -> np.ndarray:
    """0 where distance is far below 0, 1 far above; pixels."""
    return 1 / (1 + np.exp(-np.clip(distance / softness * 2, -30, 30)))


def _inside(u: np.ndarray, v: np.ndarray, size: float) -> np.ndarray:
    """1 within the ellipse u^2 + v^2 < 1, with an edge of about a pixel; size: pixels per unit."""
    return _step((1 - np.hypot(u, v)) * size, 1.0)


def _blob(u: np.ndarray, v: np.ndarray, sigma_u: float, sigma_v: float) -> np.ndarray:
    return np.exp(-0.5 * ((u / sigma_u) ** 2 + (v / sigma_v) ** 2))


def _between(palette: np.ndarray, position: float) -> np.ndarray:
    low = min(int(position), len(palette) - 2)
    return palette[low] + (position - low) * (palette[low + 1] - palette[low])
