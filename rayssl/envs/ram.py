"""What the console's RAM says of a game of Pong or Breakout, and where that is on the screen.

    stream = AtariStream(settings, seed, consoles := RamConsoles(settings))
    state_labels("pong", consoles.ram[:, -1, -1])["ball x"]        # of the newest tick

The bytes are those of AtariARI (Anand et al. 2019, arXiv:1906.08226, ram_annotations.py), each
compared with the screen by a test. Three of Breakout's are not what their names there say:

- 84 ("score") is the place of the last digit's picture, 5 times that digit; the score is the
  decimal 76 and 77.
- 77 ("blocks_hit_count") is the score's last two digits, and a block is worth 1, 4 or 7.
- the blocks' bits are bytes 0 to 35, not 29: six rows of six bytes, two bits a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import ale_py
import numpy as np
import numpy.typing as npt

from rayssl.envs.atari import AtariSettings, make_vector_env, rom_id, rom_path

SCREEN: Final = (210, 160)  # lines and pixels of the console
RAM_BYTES: Final = 128
NUM_BLOCKS: Final = 108  # of Breakout's wall, 6 rows of 18
Rams = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.int64]


class Label(NamedTuple):
    """A number of the game's state.

    Attributes:
      read: RAM uint8 `[T, 128]` -> int64 `[T]`.
      class_width: values that share a class, for classifiers: 16 pixels of a position are one.
      of_ball: unknown while no ball is in play.
    """

    read: Callable[[Rams], npt.NDArray[np.int64]]
    class_width: int = 1
    of_ball: bool = False


class Thing(NamedTuple):
    """Something that moves, and how its place on the screen follows from the RAM.

    Attributes:
      x, y: bytes whose values, plus the shifts, are the left edge and the top line; None for a
        place that is the shift alone.
      x_shift, y_shift: pixels and lines.
      height, width: lines and pixels, those that only some frames need included.
      of_ball: nowhere while no ball is in play.
    """

    x: int | None
    x_shift: int
    y: int | None
    y_shift: int
    height: int
    width: int
    of_ball: bool = False


@dataclass(frozen=True)
class GameRam:
    """What is known of a game's RAM.

    Attributes:
      labels: name -> how it is read.
      ball_in_play: byte that is 0 while there is no ball.
      things: name -> where it is.
      field: first and last line + 1 of what things can be seen in.
      score_bar: likewise of the lines that show score (and lives).
    """

    labels: dict[str, Label]
    ball_in_play: int
    things: dict[str, Thing]
    field: tuple[int, int]
    score_bar: tuple[int, int]


def _byte(index: int) -> Callable[[Rams], npt.NDArray[np.int64]]:
    return lambda ram: ram[:, index].astype(np.int64)


def _decimal(byte: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Two decimal digits in a byte's halves."""
    return (byte >> 4).astype(np.int64) * 10 + (byte & 15)


def _blocks(ram: Rams) -> npt.NDArray[np.int64]:
    """Two bits a block; the 24 bits of the side walls stay."""
    bits = np.unpackbits(ram[:, :36], axis=1).sum(1, dtype=np.int64)
    return (bits - 24) // 2


GAMES: Final[dict[str, GameRam]] = {
    "pong": GameRam(
        labels={
            "ball x": Label(_byte(49), 16, True),
            "ball y": Label(_byte(54), 16, True),
            "player y": Label(_byte(51), 16),
            "enemy y": Label(_byte(50), 16),
            "player score": Label(_byte(14)),
            "enemy score": Label(_byte(13)),
        },
        ball_in_play=54,
        things={
            # One line higher in some frames: 5 lines hold both.
            "ball": Thing(49, -49, 54, -15, 5, 2, True),
            "player": Thing(46, -48, 51, -14, 17, 4),
            "enemy": Thing(45, -48, 50, -15, 16, 4),
        },
        field=(34, 194),
        score_bar=(0, 24),
    ),
    "breakout": GameRam(
        labels={
            "ball x": Label(_byte(99), 16, True),
            "ball y": Label(_byte(101), 16, True),
            "player x": Label(_byte(72), 16),
            "score": Label(lambda ram: _decimal(ram[:, 76]) * 100 + _decimal(ram[:, 77]), 4),
            "lives": Label(_byte(57)),
            "blocks": Label(_blocks, 4),
        },
        ball_in_play=101,
        things={
            "ball": Thing(99, -49, 101, 9, 4, 2, True),
            "player": Thing(72, -47, None, 189, 4, 16),
        },
        field=(32, 193),
        score_bar=(0, 17),
    ),
}  # fmt: skip


def game_ram(game: str) -> GameRam:
    """Returns what is known of a game's RAM.

    Raises:
      ValueError: for a game that is not in GAMES.
    """
    name = rom_id(game)
    if name not in GAMES:
        raise ValueError(
            f"The RAM of {name} is not known. Known: {', '.join(GAMES)}. Add a game to GAMES in "
            "rayssl/envs/ram.py, with a test that finds it on the screen."
        )
    return GAMES[name]


def state_labels(game: str, ram: Rams) -> dict[str, npt.NDArray[np.float64]]:
    """Returns the state's numbers by name, `[T]` each; NaN for a ball that is not in play.

    Positions are the bytes as they are: pixels, with a shift of their own.

    Args:
      game: any usual name of a game in GAMES.
      ram: uint8 `[T, 128]`.
    Raises:
      ValueError: for another game, or arrays of another shape.
    """
    known = game_ram(game)
    _check_ram(ram)
    playing = ram[:, known.ball_in_play] > 0
    return {
        name: np.where(playing | (not label.of_ball), label.read(ram), np.nan)
        for name, label in known.labels.items()
    }


def boxes(game: str, ram: Rams) -> dict[str, Boxes]:
    """Returns where things are: name -> (top, left, bottom, right), int64 `[T, 4]`.

    In the console's lines and pixels, bottom and right exclusive, clipped to the playing field; an
    empty box where a thing is not to be seen.

    Args:
      game, ram: as for `state_labels`.
    Raises:
      ValueError: likewise.
    """
    known = game_ram(game)
    _check_ram(ram)
    found = {}
    for name, thing in known.things.items():
        y, x = (
            np.zeros(len(ram), np.int64) + shift + (0 if byte is None else ram[:, byte])
            for byte, shift in ((thing.y, thing.y_shift), (thing.x, thing.x_shift))
        )
        edges = np.stack([y, x, y + thing.height, x + thing.width], axis=1)
        edges[:, 0::2] = edges[:, 0::2].clip(*known.field)
        edges[:, 1::2] = edges[:, 1::2].clip(0, SCREEN[1])
        # RAM of zeros is that of a blank frame, before the game's first.
        seen = ram.any(1) & ((ram[:, known.ball_in_play] > 0) | (not thing.of_ball))
        found[name] = np.where(seen[:, None], edges, 0)
    return found


def region_masks(game: str, ram: Rams, size: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Returns which pixels of a small frame show the moving things, and which the score bar.

    `ball and paddles`, `score bar`: bool `[T, size, size]` each. A pixel counts if any part of it
    lies in a box. A frame is pooled from two ticks, so both ticks' boxes are in its mask.

    Args:
      game: as for `state_labels`.
      ram: uint8 `[T, 2, 128]`, of the two ticks that each frame is pooled from.
      size: side of the frame, pixels.
    """
    known = game_ram(game)
    things = np.zeros((len(ram), size, size), bool)
    for tick in (0, 1):
        for edges in boxes(game, ram[:, tick]).values():
            for mask, box in zip(things, edges, strict=True):
                _fill(mask, box)
    bar = np.zeros_like(things)
    top, bottom = known.score_bar
    for mask in bar:
        _fill(mask, np.array([top, 0, bottom, SCREEN[1]]))
    return {"ball and paddles": things, "score bar": bar}


class RamConsoles:
    """An AtariVectorEnv with a twin of each console in lockstep, whose RAM can be read.

    ale-py's vector environment keeps RAM to itself. Its consoles are deterministic: the same seed,
    opening and actions give the same game. Rewards, lives and ends of both are compared at every
    step, so that labels never belong to another game.

    Args:
      settings: the games; without sticky actions, whose draws a twin cannot repeat.
    Attributes:
      ram: uint8 `[N, stack, 2, 128]`, the frames of the state in order, of each the two ticks that
        it is pooled from; zeros for the blank frames before a game's first.
      screens: the newest, RGB uint8 `[N, 210, 160, 3]`, pooled as the newest frame is.
    Raises:
      ValueError: for sticky actions.
    """

    def __init__(self, settings: AtariSettings) -> None:
        if settings.sticky:
            raise ValueError(
                f"RAM can be read without sticky actions only, got sticky {settings.sticky}. Use 0."
            )
        self._settings = settings
        self._env = make_vector_env(settings)
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._twins = [ale_py.ALEInterface() for _ in range(settings.num_envs)]
        self._actions: list[Any] = []
        self._over = np.zeros(settings.num_envs, bool)
        self._last_frame = np.zeros(settings.num_envs, np.int64)  # at which the game is cut
        self.single_action_space = self._env.single_action_space
        self.ram = np.zeros((settings.num_envs, settings.stack, 2, RAM_BYTES), np.uint8)
        self.screens = np.zeros((settings.num_envs, *SCREEN, 3), np.uint8)

    def reset(
        self, *, seed: np.ndarray, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Resets the masked consoles (`options["reset_mask"]`, else all) and their twins."""
        obs, info = self._env.reset(seed=seed, options=options)
        mask = options["reset_mask"] if options else np.ones(len(self._twins), bool)
        for env, own_seed in zip(np.flatnonzero(mask).tolist(), seed, strict=True):
            twin = self._twins[env]
            twin.setInt("random_seed", int(own_seed))
            twin.setFloat("repeat_action_probability", 0.0)
            twin.loadROM(rom_path(self._settings.game))
            self._actions = twin.getMinimalActionSet()
            self._open(env, info)
        self._over[mask] = False
        return obs, info

    def send(self, actions: np.ndarray) -> None:
        """Starts a step."""
        self._sent = actions
        self._env.send(actions)

    def recv(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Returns the step's results.

        Raises:
          RuntimeError: if a twin left the game.
        """
        obs, rewards, terminated, truncated, info = self._env.recv()
        for env, twin in enumerate(self._twins):
            own = float(rewards[env]), int(info["lives"][env]), bool(terminated[env])
            if self._over[env]:  # this step was the reset, whatever its action
                self._open(env, info)
                continue
            reward = self._step(env, self._actions[self._sent[env]])
            if (reward, twin.lives(), twin.game_over()) != own:
                raise RuntimeError(
                    "The console whose RAM is read left the game: expected reward, lives and end "
                    f"{own}, got {(reward, twin.lives(), twin.game_over())}. Please report it "
                    "with the game and the seed."
                )
        self._over = terminated | truncated
        return obs, rewards, terminated, truncated, info

    def close(self) -> None:
        """Frees the consoles."""
        self._env.close()

    def _open(self, env: int, info: dict[str, np.ndarray]) -> None:
        """A new game as ale-py opens it: FIRE where it is pressed, then no-ops."""
        twin = self._twins[env]
        twin.reset_game()
        names = [action.name for action in self._actions]
        presses_fire = self._settings.fire_at_start and "FIRE" in names
        for tick in range(int(info["episode_frame_number"][env])):
            twin.act(self._actions[names.index("FIRE") if presses_fire and tick == 0 else 0])
        self._last_frame[env] = twin.getEpisodeFrameNumber() + self._settings.max_game_frames
        self.ram[env] = 0
        self.ram[env, -1] = twin.getRAM()  # the first frame is not pooled
        self.screens[env] = twin.getScreenRGB()

    def _step(self, env: int, action: Any) -> float:
        twin, reward = self._twins[env], 0.0
        ram, screen = twin.getRAM(), twin.getScreenRGB()
        for tick in range(self._settings.frame_skip):
            if twin.game_over() or twin.getEpisodeFrameNumber() >= self._last_frame[env]:
                break  # ale-py cuts a game within a frame skip, too
            if tick:
                ram = twin.getRAM()
            if tick == self._settings.frame_skip - 1:
                screen = twin.getScreenRGB()
            reward += twin.act(action)
        self.ram[env] = np.roll(self.ram[env], -1, axis=0)
        self.ram[env, -1] = ram, twin.getRAM()
        self.screens[env] = np.maximum(screen, twin.getScreenRGB())
        return reward


def _fill(mask: npt.NDArray[np.bool_], box: npt.NDArray[np.int64]) -> None:
    """Sets the pixels of a small frame `[H, W]` that a box of the console touches."""
    top, left, bottom, right = box
    if bottom > top and right > left:
        (height, width), (lines, pixels) = mask.shape, SCREEN
        mask[
            top * height // lines : -(-bottom * height // lines),
            left * width // pixels : -(-right * width // pixels),
        ] = True


def _check_ram(ram: Rams) -> None:
    if ram.ndim != 2 or ram.shape[1] != RAM_BYTES or ram.dtype != np.uint8:
        raise ValueError(f"Expected RAM uint8 [T, {RAM_BYTES}], got {ram.dtype} {ram.shape}.")
