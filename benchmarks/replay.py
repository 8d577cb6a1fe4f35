"""What the replay costs: sampling, adding, updating priorities, and bytes.

    python benchmarks/replay.py --json benchmarks/results/replay.json

Batches of 32 transitions with n-step 3: 4 + 4 frames of 84x84 each. To check, in memory that is
filled: uniform sampling <= 0.25 ms, prioritized <= 0.5 ms, 7.2 kB a transition.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    BATCH_SIZE,
    NUM_ENVS,
    REPLAY_CAPACITY,
    milliseconds,
    report,
    run_facts,
    spread,
    turn_about,
)
from rayssl.cli import refuse
from rayssl.replay import Fragment, FrameReplay

N_STEP = 3
FRAGMENT_STEPS = 8  # rows of each lane that one add() brings, as the env runner returns them
COLUMNS = (
    "name", "sample_ms", "claim", "update_priorities_ms", "add_us_per_step",
    "bytes_per_transition", "capacity",
)  # fmt: skip
CLAIMS = {"uniform": "sample_ms <= 0.25", "prioritized": "sample_ms <= 0.5"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures FrameReplay, uniform and prioritized."""

    samples: int = 1_000
    """Batches of 32 in a turn."""
    repeats: int = 5
    """Turns that each kind gets."""
    capacity: int = REPLAY_CAPACITY
    """Transitions kept, 7.06 kB each, twice."""
    json: Path | None = None
    """File for all figures: a list with one object a row."""
    seed: int = 0
    """Seeds frames and draws."""


def fragments(seed: int, game_steps: int = 500) -> Callable[[], Fragment]:
    """Returns a function that gives the next 8 steps of 8 games, each `game_steps` long.

    Frames are noise, from a few fragments made before, so that only add() is measured.
    """
    rng = np.random.default_rng(seed)
    shape = (FRAGMENT_STEPS, NUM_ENVS)
    frames = rng.integers(0, 256, (16, *shape, 84, 84), np.uint8)
    made = 0

    def following() -> Fragment:
        nonlocal made
        place = (made * FRAGMENT_STEPS + np.arange(FRAGMENT_STEPS)) % (game_steps + 1)
        rows = np.tile(place[:, None], (1, NUM_ENVS))  # place in the game; the last is autoreset
        never = np.zeros(shape, bool)
        made += 1
        return Fragment(
            frames=frames[made % len(frames)],
            actions=rng.integers(0, 4, shape),
            rewards=rng.integers(0, 2, shape).astype(np.float32),
            terminated=rows == game_steps - 1,
            truncated=never,
            life_lost=never,
            reset=rows == 0,
            valid=rows < game_steps,
        )

    return following


def filled_replay(settings: Settings, prioritized: bool) -> tuple[FrameReplay, Callable[[], float]]:
    """Returns a full replay, and a function that gives the us that adding one step takes."""
    replay = FrameReplay(
        settings.capacity, num_lanes=NUM_ENVS, n_step=N_STEP, prioritized=prioritized,
        seed=settings.seed,
    )  # fmt: skip
    following = fragments(settings.seed)
    while len(replay) < replay.capacity:
        replay.add(following())

    def add_us() -> float:
        ready = [following() for _ in range(max(1, settings.samples // 10))]
        todo = iter(ready)
        each = milliseconds(lambda: replay.add(next(todo)), len(ready))
        return each * 1e3 / (FRAGMENT_STEPS * NUM_ENVS)

    return replay, add_us


def sampling_ms(replay: FrameReplay, samples: int) -> Callable[[], float]:
    """Returns a function that gives the mean ms of drawing one batch."""
    replay.sample(BATCH_SIZE)
    return lambda: milliseconds(lambda: replay.sample(BATCH_SIZE), samples)


def priorities_ms(replay: FrameReplay, samples: int, seed: int) -> Callable[[], float]:
    """Returns a function that gives the mean ms of updating the priorities of one batch."""
    rng = np.random.default_rng(seed)

    def measure() -> float:
        batches = [replay.sample(BATCH_SIZE).indices for _ in range(max(1, samples // 10))]
        errors = rng.random((len(batches), BATCH_SIZE))
        todo = iter(zip(batches, errors, strict=True))
        return milliseconds(lambda: replay.update_priorities(*next(todo)), len(batches))

    return measure


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints a table, and returns the rows that it saves."""
    settings = tyro.cli(Settings, args=argv)
    facts = run_facts(settings) | {"batch_size": BATCH_SIZE, "n_step": N_STEP}
    try:
        replays = {name: filled_replay(settings, name == "prioritized") for name in CLAIMS}
    except (ValueError, MemoryError) as error:  # of the capacity
        refuse(error)
    functions: dict[str, Callable[[], float]] = {}
    for name, (replay, add_us) in replays.items():
        functions[f"{name} add_us_per_step"] = add_us
        functions[f"{name} sample_ms"] = sampling_ms(replay, settings.samples)
    functions["prioritized update_priorities_ms"] = priorities_ms(
        replays["prioritized"][0], settings.samples, settings.seed
    )
    figures = turn_about(functions, settings.repeats)
    rows = []
    for name, (replay, _) in replays.items():
        own = {key.split()[1]: spread(v) for key, v in figures.items() if key.split()[0] == name}
        rows.append(
            {"name": name, "claim": CLAIMS[name], "capacity": replay.capacity, **own,
             "bytes_per_transition": spread([replay.bytes_per_transition]), "run": facts}
        )  # fmt: skip
    report(rows, COLUMNS, settings.json)
    return rows


if __name__ == "__main__":
    main()
