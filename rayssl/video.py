"""Videos of an agent at play: the console's screen beside what the agent makes of it.

    +----------------+----------------------------+
    |                | game            score so far|
    |                | V(s), the last 20 seconds  |
    |     screen     | a bar for each action      |
    |   in colour    |                            |
    |                | pretext task: what it is   |
    |                | shown, what it guesses     |
    +----------------+----------------------------+

Frames are RGB, uint8 `[HEIGHT, WIDTH, 3]`. This module knows arrays and text, nothing of agents.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 960, 630  # pixels, both even: yuv420p halves them
SCREEN = (480, 630)  # three times the console's 160x210
TITLE_CHARACTERS = 50  # of 16 pixels in half the width
LEFT, RIGHT = 508, 932  # of the panel
TRACE = 300  # states in the curve of V(s): 20 s at 15 frames a second

# mpeg4 on one thread writes the same bytes in every run, which libx264 does not.
CODECS = {"libx264": {"crf": "20"}, "mpeg4": {"qmin": "2", "qmax": "4", "threads": "1"}}

BACKGROUND, TRACK, LINE = (20, 22, 27), (38, 42, 50), (70, 76, 88)
TEXT, MUTED = (232, 232, 228), (146, 152, 164)
BAR, CHOSEN = (96, 125, 160), (240, 168, 64)
RIGHT_GUESS, WRONG_GUESS = (106, 184, 128), (214, 104, 98)


@dataclass(frozen=True)
class AuxPanel:
    """What the pretext head was shown and what it makes of it.

    Attributes:
      task: its name.
      images: the transformed state x_hat, uint8 `[C, H, W]`.
      captions: a few signs below each image, `[C]`.
      probabilities: of each class, float `[K]`.
      label: the true class in [0, K).
      usable: whether the state carries a label at all.
    """

    task: str
    images: np.ndarray
    captions: Sequence[str]
    probabilities: np.ndarray
    label: int
    usable: bool


@dataclass(frozen=True)
class Panel:
    """What stands beside the screen.

    Attributes:
      title: the game.
      subtitle: the agent, in one line.
      score: unclipped points so far.
      step: agent steps so far.
      actions: name of each action, `[A]`.
      values: Q(s, a), float `[A]`; in a dueling network their mean is V(s).
      chosen: index of the action that the console got; None after the game.
      spread: full width of a bar in units of Q - V, e.g. the largest of the game so far.
      trace: V(s) of the states so far, oldest first; the last TRACE are drawn.
      aux: the pretext head's part, None if the network has none.
    """

    title: str
    subtitle: str
    score: float
    step: int
    actions: Sequence[str]
    values: np.ndarray
    chosen: int | None
    spread: float
    trace: Sequence[float]
    aux: AuxPanel | None = None


def draw_frame(screen: np.ndarray, panel: Panel) -> np.ndarray:
    """Returns one frame of the video, RGB uint8 `[HEIGHT, WIDTH, 3]`.

    Args:
      screen: the console's, RGB uint8 `[h, w, 3]`; enlarged without smoothing.
      panel: what stands beside it.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    image.paste(Image.fromarray(screen).resize(SCREEN, Image.Resampling.NEAREST))
    draw = ImageDraw.Draw(image)
    _draw_header(draw, panel)
    _draw_trace(draw, panel)
    _draw_actions(draw, panel, bottom=420 if panel.aux else 600)
    if panel.aux:
        _draw_aux(image, draw, panel.aux)
    return np.asarray(image)


def draw_attribution(
    screen: np.ndarray, frame: np.ndarray, heat: np.ndarray, title: str, caption: str
) -> np.ndarray:
    """Returns a frame of a video of maps, RGB uint8 `[HEIGHT, WIDTH, 3]`.

    On the left the console's screen, on the right what the network sees, with its map over it.

    Args:
      screen: the console's, RGB uint8 `[h, w, 3]`.
      frame: the newest of the network's input, grey uint8 `[H, W]`.
      heat: the map, float `[H, W]` in [0, 1]; 1 covers the frame.
      title, caption: below the right picture's top edge; a long title takes several lines.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    image.paste(Image.fromarray(screen).resize(SCREEN, Image.Resampling.NEAREST))
    share = heat[..., None]
    warm = frame[..., None] * 0.7 * (1 - share) + np.array(CHOSEN) * share
    seen = Image.fromarray(warm.round().clip(0, 255).astype(np.uint8))
    image.paste(seen.resize(SCREEN, Image.Resampling.NEAREST), (SCREEN[0], 0))
    draw = ImageDraw.Draw(image)
    lines = textwrap.wrap(title, TITLE_CHARACTERS)
    for i, line in enumerate(lines):
        draw.text((SCREEN[0] + 10, 24 + 20 * i), line, TEXT, _font(16), anchor="ls")
    draw.text((SCREEN[0] + 10, 24 + 20 * len(lines)), caption, MUTED, _font(14), anchor="ls")
    return np.asarray(image)


def action_words(name: str) -> str:
    """Returns an ALE action's name as words: `DOWNRIGHTFIRE` -> `down right fire`."""
    parts = re.findall(r"UP|DOWN|LEFT|RIGHT|FIRE", name)
    return " ".join(parts).lower() if "".join(parts) == name else name.lower()


def write_mp4(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    codec: str = "libx264",
) -> int:
    """Writes frames to an MP4 file (yuv420p, plays everywhere) and returns how many there were.

    The file appears under its name only when it is whole; missing parent folders are made.

    Args:
      path: ends in `.mp4`.
      frames: RGB, uint8 `[H, W, 3]`, all of one size, H and W even. Taken one by one.
      fps: frames per second.
      codec: one of CODECS.
    Raises:
      ValueError: if the path has another ending, there are no frames, or a frame has another size
        or dtype.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"Expected a video path ending in .mp4, got {path}. Rename it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        count = _encode(part, frames, Fraction(fps).limit_denominator(1001), codec)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _encode(path: Path, frames: Iterable[np.ndarray], fps: Fraction, codec: str) -> int:
    count, shape = 0, (0, 0, 0)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=fps, options=CODECS[codec])
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            if not count:
                shape = frame.shape
                stream.height, stream.width = shape[:2]
            _check_frame(frame, shape, count)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        if not count:
            raise ValueError("Expected at least one frame, got none. Record a game first.")
        container.mux(stream.encode())  # what the encoder still holds back
    return count


def _check_frame(frame: np.ndarray, shape: tuple[int, ...], index: int) -> None:
    fits = frame.ndim == 3 and frame.shape[2] == 3 and not (frame.shape[0] | frame.shape[1]) % 2
    if not fits or frame.shape != shape or frame.dtype != np.uint8:
        raise ValueError(
            f"Expected uint8 frames [H, W, 3] of one even size, got {frame.dtype} {frame.shape} "
            f"at frame {index} (the first is {shape}). Pad or crop them alike."
        )


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)  # ships with Pillow, so videos look alike everywhere
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels are built with FreeType
    return font


def _draw_header(draw: ImageDraw.ImageDraw, panel: Panel) -> None:
    draw.text((LEFT, 46), panel.title, TEXT, _font(30), anchor="ls")
    draw.text((RIGHT, 46), f"{panel.score:g}", TEXT, _font(30), anchor="rs")
    draw.text((LEFT, 68), panel.subtitle, MUTED, _font(14), anchor="ls")
    draw.text((RIGHT, 68), f"score at step {panel.step}", MUTED, _font(14), anchor="rs")


def _draw_trace(draw: ImageDraw.ImageDraw, panel: Panel) -> None:
    """V(s) as a number and as a curve that fills from the left, then moves on."""
    top, bottom, left = 92, 142, LEFT + 130
    draw.text((LEFT, 106), "state value V(s)", MUTED, _font(14), anchor="ls")
    draw.rectangle((left, top, RIGHT, bottom), TRACK)
    if not panel.trace:
        return
    draw.text((LEFT, 138), f"{panel.trace[-1]:.3f}", TEXT, _font(24), anchor="ls")
    values = np.asarray(panel.trace[-TRACE:], float)
    middle, reach = (values.max() + values.min()) / 2, max(float(np.ptp(values)), 1e-6)
    heights = (top + bottom) / 2 - (values - middle) / reach * (bottom - top - 10)
    xs = left + np.arange(len(values)) * (RIGHT - left) / (TRACE - 1)
    points = [(float(x), float(y)) for x, y in zip(xs, heights, strict=True)]
    if len(points) > 1:
        draw.line(points, BAR, 2)
    x, y = points[-1]
    draw.ellipse((x - 3, y - 3, x + 3, y + 3), TEXT)


def _draw_actions(draw: ImageDraw.ImageDraw, panel: Panel, bottom: int) -> None:
    """Bars of Q - V around a middle line, so that small differences between actions show."""
    top = 196
    draw.text((LEFT, 180), "actions", MUTED, _font(14), anchor="ls")
    draw.text((RIGHT, 180), "Q(s, a)", MUTED, _font(14), anchor="rs")
    row = min(30.0, (bottom - top) / len(panel.actions))
    font = _font(int(min(16, row - 2)))
    middle, half = 736, 104
    draw.text((middle, 180), "Q - V", MUTED, _font(14), anchor="ms")
    state_value = float(panel.values.mean())
    for i, name in enumerate(panel.actions):
        y = top + (i + 0.5) * row
        taken = i == panel.chosen
        words = action_words(name)
        fit = min(1.0, (middle - half - 8 - LEFT) / font.getlength(words))
        name_font = _font(int(font.size * fit))
        draw.text((LEFT, y), words, CHOSEN if taken else TEXT, name_font, anchor="lm")
        reach = row * 0.32
        draw.rectangle((middle - half, y - reach, middle + half, y + reach), TRACK)
        share = float(np.clip((panel.values[i] - state_value) / max(panel.spread, 1e-6), -1, 1))
        ends = sorted((middle, middle + share * half))
        draw.rectangle((ends[0], y - reach, ends[1], y + reach), CHOSEN if taken else BAR)
        color = CHOSEN if taken else TEXT
        draw.text((RIGHT, y), f"{panel.values[i]:.3f}", color, font, anchor="rm")
    draw.line((middle, top, middle, top + row * len(panel.actions)), LINE, 1)


def _draw_aux(image: Image.Image, draw: ImageDraw.ImageDraw, aux: AuxPanel) -> None:
    draw.line((LEFT, 428, RIGHT, 428), LINE, 1)
    draw.text((LEFT, 452), f"pretext task: {aux.task}", MUTED, _font(14), anchor="ls")
    guess = int(np.argmax(aux.probabilities))
    if not aux.usable:
        verdict, color = "this state has no label", MUTED
    elif guess == aux.label:
        verdict, color = f"class {guess}: right", RIGHT_GUESS
    else:
        verdict, color = f"class {guess}: wrong, it is {aux.label}", WRONG_GUESS
    draw.text((RIGHT, 452), verdict, color, _font(14), anchor="rs")
    count = len(aux.images)
    side = min(90, (RIGHT - LEFT - 8 * (count - 1)) // count)
    gap = (RIGHT - LEFT - count * side) / max(1, count - 1)
    for i, (frame, caption) in enumerate(zip(aux.images, aux.captions, strict=True)):
        x = round(LEFT + i * (side + gap))
        image.paste(Image.fromarray(frame).resize((side, side)).convert("RGB"), (x, 462))
        draw.text((x + side / 2, 464 + side), caption, MUTED, _font(13), anchor="ma")
    _draw_classes(draw, aux, guess)


def _draw_classes(draw: ImageDraw.ImageDraw, aux: AuxPanel, guess: int) -> None:
    """One cell a class: filled by its probability, the true one underlined."""
    top, bottom, gap = 580, 602, 8
    classes = len(aux.probabilities)
    width = (RIGHT - LEFT - gap * (classes - 1)) / classes
    for k, probability in enumerate(aux.probabilities):
        x = LEFT + k * (width + gap)
        draw.rectangle((x, top, x + width, bottom), TRACK)
        if aux.usable:
            hit = RIGHT_GUESS if guess == aux.label else WRONG_GUESS
            draw.rectangle(
                (x, top, x + width * float(probability), bottom), hit if k == guess else BAR
            )
            if k == aux.label:
                draw.rectangle((x, bottom + 4, x + width, bottom + 6), TEXT)
        if width >= 50:
            words = f"{k}: {probability:.0%}" if aux.usable else f"{k}"
            draw.text((x + 6, (top + bottom) / 2), words, TEXT, _font(14), anchor="lm")
