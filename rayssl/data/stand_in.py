"""A stand-in of drawn faces for data sets of manipulated videos: made in seconds, the same always.

It has the layout of a part of the Deepfake Detection Challenge, so that the same commands run on
both, and it is none of its videos: no result on it is a result on that data set.

    ROOT/
      README.txt
      drawn_faces_part_0/metadata.json    label, split, original; also actor and other_actor
      drawn_faces_part_0/<10 letters>.mp4
      masks/drawn_faces_part_0/<10 letters>.mp4   of the fakes: white where another face was put in
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rayssl.data.drawn_faces import Clip, Portrait, draw_portrait, film, swap_face
from rayssl.data.faces import write_whole
from rayssl.video import write_mp4

PARTS, FPS = 4, 12
RECORD = "stand-in.json"
DRAWING = 2  # raised with every change of a pixel: 1 toned the whole frame of a fake
README = """Drawn faces: a stand-in for data sets of manipulated videos.

Every frame was drawn by a program from random numbers. Nobody is shown, and no video of any other
data set is in here. A result on these videos says that a program runs, not how well it detects
manipulations of real videos.
"""


@dataclass(frozen=True)
class StandIn:
    """What is drawn.

    Attributes:
      actors: drawn persons; in pairs, who lend each other their faces.
      takes: real clips a person, each with one fake made of it.
      frames: length of a clip.
      seed: of everything.
    """

    actors: int = 20
    takes: int = 2
    frames: int = 12
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError for what cannot be drawn."""
        if self.actors < 2 or self.actors % 2:
            raise ValueError(f"Expected an even number of actors, 2 or more, got {self.actors}.")
        for name in ("takes", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected 1 or more {name}, got {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"Expected a seed of 0 or more, got {self.seed}.")


def write_stand_in(root: Path, settings: StandIn) -> Iterator[Path]:
    """Draws and writes the clips, and yields each real and fake one as it is done.

    A folder that holds them already is left as it is, and yields nothing; one that was cut short is
    drawn anew.

    Raises:
      ValueError: if the settings cannot be drawn.
      FileExistsError: if the folder holds anything else, also drawn faces of other settings.
    """
    settings.check()
    record = root / RECORD
    expected = json.dumps({**asdict(settings), "drawing": DRAWING})
    if record.exists() or (root.exists() and any(root.iterdir())):
        found = record.read_text(encoding="utf-8") if record.is_file() else ""
        if found.split("\n")[0] != expected:
            raise FileExistsError(
                f"{root} holds something else than the drawn faces asked for ({expected}). "
                "Choose another --out, or delete it and the faces made of it."
            )
        if found.endswith("done\n"):
            return
    write_whole(record, f"{expected}\n".encode())
    write_whole(root / "README.txt", README.encode())
    portraits = [draw_portrait(settings.seed, actor) for actor in range(settings.actors)]
    metadata: dict[str, dict[str, dict[str, str]]] = {}
    names = _names(settings)
    for actor, portrait in enumerate(portraits):
        part = f"drawn_faces_part_{actor // 2 % PARTS}"
        other = actor ^ 1
        for take in range(settings.takes):
            clip = film(portrait, settings.seed, actor, take, settings.frames)
            real, fake = f"{next(names)}.mp4", f"{next(names)}.mp4"
            yield from _write_pair(root, part, clip, real, portraits[other], fake)
            entries = metadata.setdefault(part, {})
            who = {"split": "train", "actor": f"drawn-{actor:02d}"}
            entries[real] = {"label": "REAL", **who}
            entries[fake] = {
                "label": "FAKE", **who, "original": real, "other_actor": f"drawn-{other:02d}",
            }  # fmt: skip
    for part, entries in metadata.items():
        text = json.dumps(dict(sorted(entries.items())), indent=1)
        write_whole(root / part / "metadata.json", text.encode())
    write_whole(record, f"{expected}\ndone\n".encode())


def _write_pair(
    root: Path, part: str, clip: Clip, real: str, other: Portrait, fake: str
) -> Iterator[Path]:
    write_mp4(root / part / real, clip.frames, FPS, codec="mpeg4")
    yield root / part / real
    frames, mask = swap_face(clip, other, clip.seed)
    write_mp4(root / part / fake, frames, FPS, codec="mpeg4")
    grey = np.repeat(mask[..., None], 3, -1)
    write_mp4(root / "masks" / part / fake, grey, FPS, codec="mpeg4")
    yield root / part / fake


def _names(settings: StandIn) -> Iterator[str]:
    """Different names of ten letters, in random order, so that a name tells no label."""
    rng = np.random.default_rng([settings.seed, settings.actors])
    seen: set[str] = set()
    while True:
        name = "".join(chr(97 + i) for i in rng.integers(0, 26, 10))
        if name not in seen:
            seen.add(name)
            yield name
