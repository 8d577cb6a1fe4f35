"""Experience replay for Atari that stores every frame once and rebuilds stacks when it samples.

One ring of rows per environment, a *lane*. A row is one agent step: the newest 84x84 frame that the
agent saw, its action, the raw reward and a bit field. A stack of 4 frames shares 3 with the next
one, so keeping frames instead of stacks makes a transition 7.06 kB instead of 56.4 kB.

Three words, used throughout:
  lane: number of the environment, in [0, num_lanes).
  row: how many rows the lane had received before this one; grows forever, never used twice.
  slot: where a row lies in the arrays, `lane * lane_rows + row % lane_rows`.

Rows at the end of a game (next-step autoreset, as in gymnasium's and ALE's vector environments):

  row       t           t+1                   t+2
  flags     TERMINATED  INVALID               RESET
  frame     last seen   final frame of game   first frame of the next game

A RESET after a row that is neither TERMINATED nor INVALID means that the stream broke (an env
runner died and was replaced); no window and no stack crosses it.

Source: uniform replay, Mnih et al. 2015; prioritized, Schaul et al. 2016, arXiv:1511.05952.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import lz4.frame
import numpy as np
import psutil

# Bits of a row's flags. SAMPLEABLE is derived from the others and kept in step by add().
TERMINATED, TRUNCATED, LIFE_LOST, RESET, INVALID, SAMPLEABLE = 1, 2, 4, 8, 16, 32

_ROW_BYTES_BESIDE_FRAME = 1 + 4 + 1  # action uint8, reward float32, flags uint8
_TREE_FANOUT = 16  # 5 levels for 1M rows: fewer NumPy calls than a binary tree's 20
_CHUNK_BYTES = 4 << 20  # save() and restore() hold about this much of the frames at a time
_FILE_MAGIC = b"rayssl replay\n"
_FILE_VERSION = 1
_MAX_HEADER_BYTES = 1 << 26  # a damaged length must not make restore() ask for terabytes


class ReplayFileError(ValueError):
    """The file is no whole replay, or one of other frames than this replay holds."""


class Fragment(NamedTuple):
    """T steps of N environments, contiguous in time with the same environments' last fragment.

    Attributes:
      frames: uint8 `[T, N, H, W]`; newest frame of the observation on which the action was taken.
      actions: integer `[T, N]` in [0, 255].
      rewards: float32 `[T, N]`, as the game gave them (unclipped).
      terminated: bool `[T, N]`, game over after this action.
      truncated: bool `[T, N]`, game cut off after this action.
      life_lost: bool `[T, N]`, this action lost a life; the game may go on.
      reset: bool `[T, N]`, the frame is the first of a game, older frames do not belong to it.
      valid: bool `[T, N]`, False in the autoreset row, whose action the environment ignored and
        whose frame is the final frame of the game that ended.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    life_lost: np.ndarray
    reset: np.ndarray
    valid: np.ndarray


class Batch(NamedTuple):
    """B transitions, `target = returns + discounts * value(next_obs)`.

    Arrays, but for obs and next_obs where the frames lie elsewhere (`FrameStore`).

    Attributes:
      obs: uint8 `[B, stack, H, W]`, oldest frame first.
      next_obs: uint8 `[B, stack, H, W]`, the stack to bootstrap from; where `discounts` is 0 it is
        the stack that followed, or the last one of the game if none did.
      actions: int64 `[B]`.
      returns: float32 `[B]`, discounted sum of the window's rewards.
      discounts: float32 `[B]`, gamma**m for a window of m rewards; 0 where bootstrapping is cut.
      weights: float32 `[B]` in (0, 1], importance weights; ones if sampling is uniform.
      indices: int64 `[B]`, `row * num_lanes + lane`; for `update_priorities` and `gather`.
    """

    obs: Any
    next_obs: Any
    actions: np.ndarray
    returns: np.ndarray
    discounts: np.ndarray
    weights: np.ndarray
    indices: np.ndarray


class SequenceBatch(NamedTuple):
    """K steps of B games, each from its own row on.

    Step k leads from obs[:, k] to obs[:, k + 1]. It exists if its action was played, and the next
    row is stored and of the same game; a lost life ends no game. From the first step on that does
    not exist, the mask is False, the last observation is repeated, actions and rewards are 0.

    Attributes:
      obs: uint8 `[B, K + 1, stack, H, W]`; an array, or what `FrameStore.stacks` returns.
      actions: int64 `[B, K]`.
      rewards: float32 `[B, K]`, as the game gave them: a task that wants clipped ones takes signs.
      mask: bool `[B, K]`, the step exists.
    """

    obs: Any
    actions: np.ndarray
    rewards: np.ndarray
    mask: np.ndarray


class PriorityTree:
    """Sum tree and min tree over the same non-negative leaves, 16 children to a node.

    A parent is always recomputed from all its children, in order, so it neither drifts nor depends
    on the order of former updates: equal leaves give bit-equal trees.

    Source: Schaul et al. 2016, arXiv:1511.05952, appendix B.2.1, there with 2 children to a node.
    """

    def __init__(self, size: int) -> None:
        sizes = _tree_level_sizes(size)
        self._sums = [np.zeros(level_size) for level_size in sizes]
        self._mins = [np.full(level_size, np.inf) for level_size in sizes[1:]]

    @property
    def leaves(self) -> np.ndarray:
        """The leaves, float64, a view; at least `size` of them, 0 where nothing was set."""
        return self._sums[0]

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(self._sums[-1][0])

    @property
    def smallest(self) -> float:
        """The smallest positive leaf; inf if there is none."""
        return float(self._mins[-1][0])

    @property
    def nbytes(self) -> int:
        """Bytes of all levels of both trees."""
        return sum(level.nbytes for level in self._sums + self._mins)

    def set(self, leaves: np.ndarray, values: np.ndarray | float) -> None:
        """Sets leaves, int64 `[K]`, to values >= 0, `[K]` or one for all; the last duplicate wins.

        Level by level from the bottom, each touched parent once.
        """
        self._sums[0][leaves] = values
        nodes = leaves
        for level, lowest in enumerate(self._mins):
            nodes = np.unique(nodes // _TREE_FANOUT)
            children = self._sums[level].reshape(-1, _TREE_FANOUT)[nodes]  # [K, 16]
            # The last of a cumsum, not a sum: find() walks cumsums and must meet the same rounding.
            self._sums[level + 1][nodes] = np.cumsum(children, axis=1)[:, -1]
            if level == 0:
                minima = np.where(children > 0, children, np.inf)
            else:
                minima = self._mins[level - 1].reshape(-1, _TREE_FANOUT)[nodes]
            lowest[nodes] = minima.min(axis=1)

    def find(self, targets: np.ndarray) -> np.ndarray:
        """Returns the leaf in whose share of [0, total) each target lies; never a leaf that is 0.

        Args:
          targets: float64 `[B]` >= 0; one that is not below the total counts as just below it.
        Returns:
          int64 `[B]`.
        """
        each = np.arange(len(targets))
        nodes = np.zeros(len(targets), np.int64)
        targets = np.minimum(targets, np.nextafter(self.total, 0))
        ends = np.zeros((len(targets), _TREE_FANOUT + 1))  # [B, 17], child c spans ends[c:c+2]
        for level in reversed(self._sums[:-1]):
            children = level.reshape(-1, _TREE_FANOUT)[nodes]  # [B, 16]
            np.cumsum(children, axis=1, out=ends[:, 1:])
            choice = np.count_nonzero(ends[:, 1:] <= targets[:, None], axis=1)
            # Rounding may leave the rest at or above the child's own sum; it must stay below.
            below_child = np.nextafter(children[each, choice], 0)
            targets = np.minimum(targets - ends[each, choice], below_child)
            nodes = nodes * _TREE_FANOUT + choice
        return nodes

    def clear(self) -> None:
        """Sets every leaf to 0."""
        for level in self._sums:
            level.fill(0.0)
        for level in self._mins:
            level.fill(np.inf)


class FrameStore(Protocol):
    """Where a replay's frames lie: in memory (`HostFrames`), or on a GPU (rayssl.device_frames).

    A slot holds one frame, uint8 `[H * W]`. Slots are int64 arrays of any shape `[...]`.
    """

    @property
    def nbytes(self) -> int:
        """Bytes reserved for all slots."""

    def write(self, slots: np.ndarray, frames: np.ndarray) -> None:
        """Copies frames, uint8 `[..., H * W]`, into their slots."""

    def read(self, slots: np.ndarray) -> np.ndarray:
        """Returns the frames in slots `[K]` as an array, uint8 `[K, H * W]`."""

    def stacks(self, slots: np.ndarray, blank: np.ndarray) -> Any:
        """Returns new stacks, uint8 `[..., H * W]`, zero where `blank`, bool `[...]`, is set."""


class HostFrames:
    """Frames in this process's memory. Source of the methods' contract: `FrameStore`."""

    def __init__(self, slots: int, pixels: int) -> None:
        self._frames = np.empty((slots, pixels), np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes reserved for all slots."""
        return self._frames.nbytes

    def write(self, slots: np.ndarray, frames: np.ndarray) -> None:
        """Copies frames, uint8 `[..., H * W]`, into their slots."""
        self._frames[slots] = frames

    def read(self, slots: np.ndarray) -> np.ndarray:
        """Returns the frames in slots `[K]`, uint8 `[K, H * W]`."""
        return self._frames[slots]

    def stacks(self, slots: np.ndarray, blank: np.ndarray) -> np.ndarray:
        """Returns new stacks, uint8 `[..., H * W]`, zero where `blank` is set.

        One array for obs and next_obs: of two, glibc returns the freed ones to the system at each
        call, and the page faults of the next call took three times as long as all else here.
        """
        frames = np.empty((*slots.shape, self._frames.shape[1]), np.uint8)
        # mode="clip" writes straight into `out`; the default fills a temporary copy first.
        np.take(self._frames, slots, axis=0, out=frames, mode="clip")
        if blank.any():
            frames[blank] = 0
        return frames


class FrameReplay:
    """Replay of single uint8 frames with n-step windows, uniform or prioritized.

    A row can be sampled if it is not INVALID, the n_step rows after it are stored, the frames of
    its stack are stored (or a RESET says that they are zeros), and the stream did not break right
    after it. The last n_step rows of a lane thus wait until their successors arrive.

    Rows are dropped oldest first, per lane. Memory is reserved at once but the operating system
    hands it out as rows arrive; what is stored is never copied. Not safe for use from two threads.

    Args:
      capacity: transitions to keep; rounded up to a multiple of num_lanes.
      num_lanes: number of environments that feed this replay.
      frame_shape: (H, W) of a frame, pixels.
      stack: frames in an observation.
      n_step: rewards summed before bootstrapping.
      gamma: discount of one step, in [0, 1].
      clip_rewards: sum the signs of the rewards (Mnih et al. 2015), not the rewards.
      cut_on_life_loss: treat a lost life as the end of a game when bootstrapping.
      prioritized: sample in proportion to (|TD error| + priority_epsilon)**alpha.
      alpha: exponent of the priorities, >= 0; 0 is uniform (Schaul et al. 2016, Table 3: 0.6).
      priority_epsilon: added to |TD error|, so that no row is lost (OpenAI Baselines: 1e-6).
      seed: seeds all draws; None takes one from the operating system.
      make_frames: makes the store of the frames from (slots, pixels of a frame).
    Raises:
      ValueError: if an argument is out of its range.
      MemoryError: from `check_memory`, before anything is allocated.
    """

    def __init__(
        self,
        capacity: int,
        *,
        num_lanes: int,
        frame_shape: tuple[int, int] = (84, 84),
        stack: int = 4,
        n_step: int = 1,
        gamma: float = 0.99,
        clip_rewards: bool = True,
        cut_on_life_loss: bool = True,
        prioritized: bool = False,
        alpha: float = 0.6,
        priority_epsilon: float = 1e-6,
        seed: int | None = None,
        make_frames: Callable[[int, int], FrameStore] = HostFrames,
    ) -> None:
        height, width = frame_shape
        for name, count in (("num_lanes", num_lanes), ("stack", stack), ("n_step", n_step)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}.")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}.")
        if alpha < 0 or not priority_epsilon > 0:
            raise ValueError(
                "alpha must be >= 0 and priority_epsilon > 0, "
                f"got alpha={alpha} and priority_epsilon={priority_epsilon}."
            )
        lane_rows = -(-capacity // num_lanes)
        if lane_rows < stack + n_step:
            raise ValueError(
                f"A lane needs at least stack + n_step = {stack + n_step} rows, but capacity "
                f"{capacity} over {num_lanes} lanes gives {lane_rows}. "
                f"Set capacity to {num_lanes * (stack + n_step)} or more."
            )
        if make_frames is HostFrames:
            check_memory(num_lanes * lane_rows, (height, width), prioritized)

        self.num_lanes, self.lane_rows = num_lanes, lane_rows
        self.frame_shape, self.stack = (height, width), stack
        self.n_step, self.gamma = n_step, gamma
        self.clip_rewards, self.cut_on_life_loss = clip_rewards, cut_on_life_loss
        self.prioritized, self.alpha = prioritized, alpha
        self.priority_epsilon = priority_epsilon

        slots = num_lanes * lane_rows
        self._frames = make_frames(slots, height * width)
        self._actions = np.zeros(slots, np.uint8)
        self._rewards = np.zeros(slots, np.float32)
        self._flags = np.zeros(slots, np.uint8)
        self._added = np.zeros(num_lanes, np.int64)  # rows that each lane ever received
        self._tree = PriorityTree(slots) if prioritized else None
        # Sampleable rows that got a reward, and the others, 1 each; from draw_rewarding() on.
        self._kinds: tuple[PriorityTree, PriorityTree] | None = None
        self._max_priority = 1.0  # of |TD error| + priority_epsilon, before alpha
        self._num_sampleable = 0
        self._rng = np.random.default_rng(seed)
        self._window_gammas = gamma ** np.arange(n_step + 1)  # [n + 1]
        self._row_offsets = np.arange(1 - stack, n_step + 1)  # of the rows behind one transition

    def __len__(self) -> int:
        """The number of rows stored, sampleable or not."""
        return int(self._counts().sum())

    @property
    def capacity(self) -> int:
        """The most rows that can be stored: the capacity asked for, rounded up to whole lanes."""
        return self.num_lanes * self.lane_rows

    @property
    def num_sampleable(self) -> int:
        """The number of rows that `sample` draws from."""
        return self._num_sampleable

    @property
    def _pixels(self) -> int:
        height, width = self.frame_shape
        return height * width

    @property
    def _trees(self) -> list[PriorityTree]:
        """Those there are, of priorities and of kinds: a leaf is 0 unless its row is sampleable."""
        return [tree for tree in (self._tree, *(self._kinds or ())) if tree is not None]

    @property
    def nbytes(self) -> int:
        """Bytes reserved for rows and trees (8 bytes a lane of counters left out)."""
        rows = (self._frames, self._actions, self._rewards, self._flags)
        return sum(x.nbytes for x in rows) + sum(x.nbytes for x in self._trees)

    @property
    def bytes_per_transition(self) -> float:
        """Bytes reserved for one transition, trees included."""
        return self.nbytes / self.capacity

    def add(self, fragment: Fragment, first_lane: int = 0) -> None:
        """Appends T rows to each of the lanes first_lane .. first_lane + N - 1.

        Args:
          fragment: copied, so its arrays may be reused. If T exceeds a lane, its end is kept.
          first_lane: lane of the fragment's environment 0.
        Raises:
          ValueError: if a shape, dtype, action or lane does not fit; nothing is added then.
        """
        _check_fragment(fragment, self.frame_shape)
        steps, num_envs = fragment.actions.shape
        if first_lane < 0 or first_lane + num_envs > self.num_lanes:
            raise ValueError(
                f"Fragment of {num_envs} environments does not fit at lane {first_lane}: the "
                f"replay has lanes 0 to {self.num_lanes - 1}. Set num_lanes to the number of "
                "environments of all env runners together."
            )
        lanes = np.arange(first_lane, first_lane + num_envs)
        kept = min(steps, self.lane_rows)
        first_rows = self._added[lanes] + steps - kept
        slots = self._slots(lanes, first_rows + np.arange(kept)[:, None])  # [kept, N]
        self._retire(slots.ravel())
        newest = Fragment(*(array[steps - kept :] for array in fragment))
        self._frames.write(slots, newest.frames.reshape(kept, num_envs, -1))
        self._actions[slots] = newest.actions
        self._rewards[slots] = newest.rewards
        self._flags[slots] = _fragment_flags(newest)
        self._added[lanes] += steps
        self._retire_without_history(lanes)
        self._promote(lanes, self._added[lanes] - self.n_step - kept, kept)

    def sample(self, batch_size: int, *, beta: float = 1.0) -> Batch:
        """Returns transitions drawn with replacement.

        Uniform: every sampleable row is equally likely. Prioritized: row i has probability
        P(i) = p_i**alpha / sum_j p_j**alpha, p = |TD error| + priority_epsilon, one draw from each
        of batch_size equal parts of the sum; and

          w_i = (N P(i))**-beta / max_j (N P(j))**-beta,

        the maximum taken over the whole buffer as in OpenAI Baselines (deepq/replay_buffer.py);
        N and the sum cancel.

        Args:
          batch_size: B, at least 1.
          beta: >= 0, how much of the bias the weights undo; 1 is all. Unused if uniform.
        Raises:
          ValueError: if nothing can be sampled yet, or an argument is out of range.
        Source: Schaul et al. 2016, arXiv:1511.05952, eq. (1) and section 3.4.
        """
        if batch_size < 1 or beta < 0:
            raise ValueError(
                f"Expected batch_size >= 1 and beta >= 0, got batch_size={batch_size}, beta={beta}."
            )
        self._check_sampleable()
        if self._tree is None:
            return self._gather(*self._rows_in(self._draw_uniform(batch_size)))
        slots = self._draw_prioritized(self._tree, batch_size)
        weights = (self._tree.leaves[slots] / self._tree.smallest) ** -beta
        batch = self._gather(*self._rows_in(slots))
        return batch._replace(weights=weights.astype(np.float32))

    def sampleable_indices(self) -> np.ndarray:
        """Returns the indices of all rows that can be sampled, int64 `[num_sampleable]`."""
        lanes, rows = self._rows_in(np.flatnonzero(self._flags & SAMPLEABLE))
        return rows * self.num_lanes + lanes

    def gather(self, indices: np.ndarray) -> Batch:
        """Returns the transitions of given rows, with weights of 1.

        Args:
          indices: int64 `[B]`, from `sampleable_indices` or a batch.
        Raises:
          ValueError: if a row cannot be sampled (any more).
        """
        return self._gather(*self._lanes_and_rows(indices))

    def gather_sequences(self, indices: np.ndarray, num_steps: int) -> SequenceBatch:
        """Returns what happened in the `num_steps` steps from given rows on.

        The observations at step 0 are those of `gather` and of the batch that `sample` gave.

        Args:
          indices: int64 `[B]`, from `sampleable_indices` or a batch.
          num_steps: K, 0 or more; more than n_step is allowed.
        Raises:
          ValueError: if a row cannot be sampled (any more).
        """
        lanes, rows = self._lanes_and_rows(indices)
        steps = np.arange(num_steps + 1)
        ahead = rows[:, None] + steps  # [B, K + 1]
        stored = ahead < self._added[lanes][:, None]
        flags = self._flags[self._slots(lanes[:, None], ahead)]
        exists = stored[:, 1:] & (flags[:, :-1] & INVALID == 0) & (flags[:, 1:] & RESET == 0)
        mask = np.logical_and.accumulate(exists, axis=1)
        last = mask.sum(axis=1, keepdims=True)  # step at which the last observation stands
        ends = rows[:, None] + np.minimum(steps, last)  # [B, K + 1]
        around = self._slots(
            lanes[:, None, None], ends[..., None] + np.arange(1 - self.stack, 1)
        )  # [B, K + 1, stack]
        obs = self._stacks(around, self._flags[around] & RESET != 0)
        slots = around[:, :-1, -1]
        return SequenceBatch(
            obs=obs,
            actions=np.where(mask, self._actions[slots], 0).astype(np.int64),
            rewards=np.where(mask, self._rewards[slots], np.float32(0)),
            mask=mask,
        )

    def draw_rewarding(self, batch_size: int, share: float) -> np.ndarray:
        """Returns indices of rows, a `share` of which, on average, got a reward for their action.

        Rewarding rows are equally likely among themselves, the others, too. Where there are none
        of one kind, all are of the other.

        The first call looks at every row and sets up 18 bytes each; later ones do not.

        Args:
          batch_size: B, at least 1.
          share: in [0, 1].
        Returns:
          int64 `[B]`, for `gather_sequences`.
        Raises:
          ValueError: if nothing can be sampled yet.
        Source: Jaderberg et al. 2017, arXiv:1611.05397, section 3.3 (skewed replay).
        """
        self._check_sampleable()
        if self._kinds is None:
            self._kinds = PriorityTree(self.capacity), PriorityTree(self.capacity)
            self._sort_by_kind(np.flatnonzero(self._flags & SAMPLEABLE))
        totals = [int(kind.total) for kind in self._kinds]
        wanted = self._rng.random(batch_size) < share
        if not all(totals):
            wanted[:] = totals[0] > 0
        drawn = np.empty(batch_size, np.int64)
        for kind, total, places in zip(self._kinds, totals, (wanted, ~wanted), strict=True):
            if total:  # leaf number i of a kind, in order, has the share [i, i + 1) of [0, total)
                drawn[places] = kind.find(self._rng.integers(total, size=places.sum()))
        lanes, rows = self._rows_in(drawn)
        return rows * self.num_lanes + lanes

    def update_priorities(self, indices: np.ndarray, td_errors: np.ndarray) -> None:
        """Sets the priority of rows to (|td_error| + priority_epsilon)**alpha.

        A row that was overwritten since it was sampled, or lost its history, is ignored: an index
        holds the row's number, which is never used again, so it cannot mean a newer row.

        Args:
          indices: int64 `[B]`, `Batch.indices`. Of duplicates the last one counts.
          td_errors: float `[B]`, finite; the sign does not matter.
        Raises:
          ValueError: if the replay is uniform, the shapes differ, or an error is not finite.
        """
        if self._tree is None:
            raise ValueError("A uniform replay has no priorities. Create it with prioritized=True.")
        indices, errors = np.asarray(indices, np.int64), np.asarray(td_errors, np.float64)
        if indices.ndim != 1 or indices.shape != errors.shape:
            raise ValueError(
                "Expected indices and td_errors of one shape [B], "
                f"got {indices.shape} and {errors.shape}."
            )
        if not np.isfinite(errors).all():
            raise ValueError("td_errors must be finite, got NaN or infinity. Check the loss.")
        known = self._still_sampleable(indices)
        indices, priorities = indices[known], np.abs(errors[known]) + self.priority_epsilon
        slots = self._slots(indices % self.num_lanes, indices // self.num_lanes)
        self._tree.set(slots, priorities**self.alpha)
        self._max_priority = float(priorities.max(initial=self._max_priority))

    def save(self, path: str | Path) -> None:
        """Writes the stored rows, priorities, settings and the state of the draws to one file.

        LZ4 frame with a content checksum: magic, length of header, header (JSON), then lane by lane
        the rows in order of time, in chunks of a few MB, which is all the memory that this takes.
        Written under another name, synced and renamed: a file at `path` is always a whole one.

        Raises:
          OSError: if the file cannot be written; a former file at `path` is then still there.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as raw:
                with lz4.frame.open(raw, "wb", content_checksum=True) as file:
                    self._write(file)
                raw.flush()
                os.fsync(raw.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_directory(path.parent)

    def restore(self, path: str | Path) -> None:
        """Replaces all rows by those of a file, and the state of the draws by the file's.

        With the file's num_lanes and rows to a lane, the replay continues as the saved one would
        have, bit for bit. Otherwise the newest rows of each saved lane are laid out over the new
        lanes piece by piece; each piece starts with RESET and stack - 1 INVALID rows, so that no
        stack or window crosses a join. Then the first row added to a lane must have RESET, as a
        new env runner's has.

        n_step, gamma, clip_rewards, cut_on_life_loss and alpha are this replay's, not the file's.
        Priorities are kept if both are prioritized with one alpha; else all rows start at the
        largest priority.

        Raises:
          FileNotFoundError: if there is no file.
          ReplayFileError: if the file holds other frames or stacks (nothing is changed then), or
            is damaged or cut short (the replay is empty then, and usable).
        """
        with closing(_ReplayFile(Path(path))) as file:
            header = file.read_header()
            self._check_header(header, file.path)
            self.clear()
            try:
                self._read_rows(file, header)
                file.expect_end()
            except BaseException:
                self.clear()
                raise
        self._rng.bit_generator.state = header.rng_state
        self._max_priority = header.max_priority if header.prioritized else 1.0
        self._index_restored_rows()

    def clear(self) -> None:
        """Drops all rows and priorities; the state of the draws stays."""
        self._added.fill(0)
        self._flags.fill(0)
        self._num_sampleable = 0
        self._max_priority = 1.0
        if self._tree is not None:
            self._tree.clear()
        self._kinds = None

    # Rows and slots

    def _counts(self) -> np.ndarray:
        return np.minimum(self._added, self.lane_rows)  # [num_lanes]

    def _slots(self, lanes: np.ndarray | int, rows: np.ndarray) -> np.ndarray:
        return lanes * self.lane_rows + rows % self.lane_rows

    def _rows_in(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lanes and row numbers of the rows that lie in slots in use."""
        lanes, positions = np.divmod(slots, self.lane_rows)
        newest = self._added[lanes] - 1
        return lanes, newest - (newest - positions) % self.lane_rows

    def _still_sampleable(self, indices: np.ndarray) -> np.ndarray:
        lanes, rows = indices % self.num_lanes, indices // self.num_lanes
        stored = (rows < self._added[lanes]) & (rows >= self._added[lanes] - self.lane_rows)
        stored &= indices >= 0
        return stored & (self._flags[self._slots(lanes, rows)] & SAMPLEABLE != 0)

    def _lanes_and_rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lanes and row numbers of indices; raises ValueError if a row cannot be sampled."""
        indices = np.asarray(indices, np.int64)
        gone = indices[~self._still_sampleable(indices)]
        if len(gone):
            raise ValueError(
                f"{len(gone)} of {len(indices)} rows cannot be sampled, first index {gone[0]}. "
                "Take indices from sampleable_indices()."
            )
        return indices % self.num_lanes, indices // self.num_lanes

    def _check_sampleable(self) -> None:
        if self._num_sampleable == 0:
            raise ValueError(
                f"Nothing to sample: none of the {len(self)} stored rows has its {self.stack} "
                f"frames and {self.n_step} next steps yet. Add rows until num_sampleable > 0."
            )

    # Which rows can be sampled

    def _has_history(self, lanes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether each stored row's stack is stored, or padded from a stored RESET on."""
        age = rows - np.maximum(self._added[lanes] - self.lane_rows, 0)  # rows since the oldest
        complete = age >= self.stack - 1
        for back in range(self.stack - 1):
            is_reset = self._flags[self._slots(lanes, rows - back)] & RESET != 0
            complete |= (age >= back) & is_reset
        return complete

    def _is_sampleable(self, lanes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether each stored row, with n_step rows after it, can be sampled."""
        flags = self._flags[self._slots(lanes, rows)]
        next_is_reset = self._flags[self._slots(lanes, rows + 1)] & RESET != 0
        broken = next_is_reset & (flags & self._terminal_bits() == 0)
        return (flags & INVALID == 0) & ~broken & self._has_history(lanes, rows)

    def _terminal_bits(self) -> int:
        return TERMINATED | LIFE_LOST if self.cut_on_life_loss else TERMINATED

    def _retire(self, slots: np.ndarray) -> None:
        """Makes the rows in these slots, int64 `[K]`, unavailable to sample()."""
        slots = slots[self._flags[slots] & SAMPLEABLE != 0]
        self._flags[slots] &= ~np.uint8(SAMPLEABLE)
        self._num_sampleable -= len(slots)
        for tree in self._trees:
            tree.set(slots, 0.0)

    def _retire_without_history(self, lanes: np.ndarray) -> None:
        """Retires the oldest rows of lanes whose stacks need a row that is overwritten now."""
        oldest = np.maximum(self._added[lanes] - self.lane_rows, 0)
        rows = (oldest + np.arange(self.stack - 1)[:, None]).ravel()  # [(stack - 1) * N]
        lanes = np.tile(lanes, self.stack - 1)
        self._retire(self._slots(lanes, rows)[~self._has_history(lanes, rows)])

    def _promote(self, lanes: np.ndarray, first_rows: np.ndarray, count: int) -> None:
        """Makes sampleable what can be among `count` rows of each lane; they get the max priority.

        None of them may be sampleable already, or lack the n_step rows after it.
        """
        rows = (first_rows + np.arange(count)[:, None]).ravel()  # [count * N]
        lanes = np.tile(lanes, count)
        stored = rows >= np.maximum(self._added[lanes] - self.lane_rows, 0)
        lanes, rows = lanes[stored], rows[stored]
        slots = self._slots(lanes, rows)[self._is_sampleable(lanes, rows)]
        self._flags[slots] |= SAMPLEABLE
        self._num_sampleable += len(slots)
        if self._tree is not None:
            leaves = self._tree.leaves[slots]  # positive only for rows that restore() read
            self._tree.set(slots, np.where(leaves > 0, leaves, self._max_priority**self.alpha))
        self._sort_by_kind(slots)

    def _sort_by_kind(self, slots: np.ndarray) -> None:
        """Lets draw_rewarding() find these rows, which are sampleable; if it was ever called."""
        if self._kinds is not None:
            rewarding = self._rewards[slots] != 0
            self._kinds[0].set(slots[rewarding], 1.0)
            self._kinds[1].set(slots[~rewarding], 1.0)

    # Drawing and rebuilding transitions

    def _draw_uniform(self, batch_size: int) -> np.ndarray:
        """Slots, int64 `[B]`, uniform over sampleable rows: draws among stored rows, rejects.

        Rejected draws are redrawn independently, so what is left is exactly uniform.
        """
        counts = self._counts()
        lane_ends = np.cumsum(counts)
        lane_starts, stored = lane_ends - counts, int(lane_ends[-1])
        if self._num_sampleable * 4 < stored:  # too few would be accepted: list them instead
            sampleable = np.flatnonzero(self._flags & SAMPLEABLE)
            return sampleable[self._rng.integers(len(sampleable), size=batch_size)]
        accepted = np.empty(0, np.int64)
        while len(accepted) < batch_size:
            draws = self._rng.integers(stored, size=batch_size - len(accepted) + 4)
            lanes = np.searchsorted(lane_ends, draws, side="right")
            # A lane that is not full uses its first `count` slots.
            slots = lanes * self.lane_rows + draws - lane_starts[lanes]
            slots = slots[self._flags[slots] & SAMPLEABLE != 0]
            accepted = np.concatenate([accepted, slots])
        return accepted[:batch_size]

    def _draw_prioritized(self, tree: PriorityTree, batch_size: int) -> np.ndarray:
        """Slots, int64 `[B]`; draw i is from the i-th of B equal parts of the sum of priorities."""
        parts = np.arange(batch_size) + self._rng.random(batch_size)
        return tree.find(parts * (tree.total / batch_size))

    def _gather(self, lanes: np.ndarray, rows: np.ndarray) -> Batch:
        """The transitions of sampleable rows; weights are 1."""
        around = self._slots(lanes[:, None], rows[:, None] + self._row_offsets)  # [B, stack + n]
        flags = self._flags[around]
        now = self.stack - 1  # column of the sampled row itself
        returns, discounts, steps = self._windows(around[:, now:-1], flags[:, now:])
        # Columns of both stacks: the one that ends at the row, and the one to bootstrap from.
        columns = np.arange(self.stack) + np.stack([np.zeros_like(steps), steps])[..., None]
        each = np.arange(len(rows))[:, None]
        obs, next_obs = self._stacks(around[each, columns], flags[each, columns] & RESET != 0)
        slots = around[:, now]
        return Batch(
            obs=obs,
            next_obs=next_obs,
            actions=self._actions[slots].astype(np.int64),
            returns=returns.astype(np.float32),
            discounts=discounts.astype(np.float32),
            weights=np.ones(len(slots), np.float32),
            indices=rows * self.num_lanes + lanes,
        )

    def _windows(
        self, slots: np.ndarray, flags: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns, discounts, and how many rows after the first the stack to bootstrap from ends.

        The window ends at its first row k that is terminal, truncated, or followed by a RESET; in
        the last case, unless terminal, the stream broke there: row k's reward is not counted and
        its own stack is bootstrapped from. A terminal row with no later row is its own next_obs.

        Args:
          slots: int64 `[B, n]`, rows p .. p + n - 1.
          flags: uint8 `[B, n + 1]`, rows p .. p + n.
        """
        each = np.arange(len(slots))
        is_terminal = flags[:, :-1] & self._terminal_bits() != 0  # [B, n]
        next_is_reset = flags[:, 1:] & RESET != 0
        ends = is_terminal | next_is_reset | (flags[:, :-1] & TRUNCATED != 0)
        ends[:, -1] = True
        last = ends.argmax(axis=1)  # k
        terminal, before_reset = is_terminal[each, last], next_is_reset[each, last]
        num_rewards = last + 1 - (before_reset & ~terminal)
        rewards = self._rewards[slots].astype(np.float64)
        if self.clip_rewards:
            rewards = np.sign(rewards)
        rewards[np.arange(self.n_step) >= num_rewards[:, None]] = 0
        discounts = np.where(terminal, 0.0, self._window_gammas[num_rewards])
        return rewards @ self._window_gammas[:-1], discounts, last + 1 - before_reset

    def _stacks(self, slots: np.ndarray, resets: np.ndarray) -> Any:
        """Frames `[..., stack, H, W]` of slots `[..., stack]`; zero where a later one is a RESET.

        `resets`: bool, as slots.
        """
        blank = np.zeros_like(resets)
        blank[..., :-1] = np.logical_or.accumulate(resets[..., :0:-1], axis=-1)[..., ::-1]
        return self._frames.stacks(slots, blank).reshape(*slots.shape, *self.frame_shape)

    # Files

    def _write(self, file: lz4.frame.LZ4FrameFile) -> None:
        header = _Header(
            version=_FILE_VERSION,
            frame_shape=self.frame_shape,
            stack=self.stack,
            num_lanes=self.num_lanes,
            lane_rows=self.lane_rows,
            chunk_rows=max(1, _CHUNK_BYTES // self._pixels),
            added=self._added.tolist(),
            prioritized=self.prioritized,
            alpha=self.alpha,
            max_priority=self._max_priority,
            rng_state=dict(self._rng.bit_generator.state),
            other_settings={
                "n_step": self.n_step,
                "gamma": self.gamma,
                "clip_rewards": self.clip_rewards,
                "cut_on_life_loss": self.cut_on_life_loss,
                "priority_epsilon": self.priority_epsilon,
            },
        )
        encoded = json.dumps(header._asdict()).encode()
        file.write(_FILE_MAGIC + struct.pack("<Q", len(encoded)) + encoded)
        for lane, count in enumerate(self._counts()):
            rows = np.arange(self._added[lane] - count, self._added[lane])
            for chunk in _chunks(self._slots(lane, rows), header.chunk_rows):
                file.write(self._actions[chunk])
                file.write(self._rewards[chunk].astype("<f4"))
                file.write(self._flags[chunk] & ~np.uint8(SAMPLEABLE))
                if self._tree is not None:
                    file.write(self._tree.leaves[chunk].astype("<f8"))
                file.write(self._frames.read(chunk))

    def _check_header(self, header: "_Header", path: Path) -> None:
        saved, own = (header.frame_shape, header.stack), (self.frame_shape, self.stack)
        if saved != own:
            raise ReplayFileError(
                f"{path} holds frames {saved[0]} in stacks of {saved[1]}, this replay {own[0]} in "
                f"stacks of {own[1]}. Create it with the file's frame_shape and stack."
            )

    def _read_rows(self, file: "_ReplayFile", header: "_Header") -> None:
        keep_leaves = header.prioritized and header.alpha == self.alpha
        for placement in self._place_saved_lanes(header):
            slots_in_chunks = _chunks(placement.slots, header.chunk_rows)
            marks_in_chunks = _chunks(placement.marks, header.chunk_rows)
            for slots, marks in zip(slots_in_chunks, marks_in_chunks, strict=True):
                kept = slots >= 0
                slots = slots[kept]
                self._actions[slots] = file.read_array(np.uint8, len(kept))[kept]
                self._rewards[slots] = file.read_array("<f4", len(kept))[kept]
                self._flags[slots] = (file.read_array(np.uint8, len(kept)) | marks)[kept]
                if header.prioritized:
                    leaves = file.read_array("<f8", len(kept))[kept]
                    if self._tree is not None and keep_leaves:
                        self._tree.leaves[slots] = leaves  # parents: _index_restored_rows()
                frames = file.read_array(np.uint8, len(kept) * self._pixels)
                self._frames.write(slots, frames.reshape(len(kept), -1)[kept])

    def _place_saved_lanes(self, header: "_Header") -> Iterator["_Placement"]:
        """Sets the lanes' row counts and yields where the rows of each saved lane go."""
        added = np.array(header.added, np.int64)
        counts = np.minimum(added, header.lane_rows)
        if (header.num_lanes, header.lane_rows) == (self.num_lanes, self.lane_rows):
            self._added[:] = added
            for lane, count in enumerate(counts):
                rows = np.arange(added[lane] - count, added[lane])
                yield _Placement(self._slots(lane, rows), np.zeros(count, np.uint8))
            return
        kept = _newest_that_fit(counts, self.capacity)
        total = int(kept.sum())
        per_lane = max(1, -(-total // self.num_lanes))
        self._added[:] = np.clip(total - per_lane * np.arange(self.num_lanes), 0, per_lane)
        starts = np.cumsum(kept) - kept
        for start, count, num_kept in zip(starts, counts, kept, strict=True):
            yield self._place_pieces(int(start), int(count), int(num_kept), per_lane)

    def _place_pieces(self, start: int, count: int, num_kept: int, per_lane: int) -> "_Placement":
        """Puts the newest num_kept of count rows from place `start` on, per_lane to a new lane."""
        dropped = count - num_kept
        lanes, rows = np.divmod(start + np.arange(num_kept), per_lane)
        since_join = np.minimum(rows, np.arange(num_kept))
        slots = np.full(count, -1, np.int64)
        slots[dropped:] = self._slots(lanes, rows)
        marks = np.zeros(count, np.uint8)
        marks[dropped:][since_join < self.stack - 1] = INVALID
        marks[dropped:][since_join == 0] |= np.uint8(RESET)
        return _Placement(slots, marks)

    def _index_restored_rows(self) -> None:
        """Finds the sampleable rows and completes the trees, from rows, flags and leaves alone."""
        self._flags &= ~np.uint8(SAMPLEABLE)
        chunk_rows = 1 << 16
        for lane, (added, count) in enumerate(zip(self._added, self._counts(), strict=True)):
            lanes = np.array([lane])
            for rows in _chunks(np.arange(added - count, added - self.n_step), chunk_rows):
                self._promote(lanes, rows[:1], len(rows))
            if self._tree is not None:
                slots = self._slots(lane, np.arange(added - count, added))
                self._tree.set(slots[self._flags[slots] & SAMPLEABLE == 0], 0.0)


class _Placement(NamedTuple):
    """Where the rows of one saved lane go, oldest first."""

    slots: np.ndarray  # int64 [count], -1 if the row does not fit
    marks: np.ndarray  # uint8 [count], flags to add


class _Header(NamedTuple):
    """What a replay file says before its rows."""

    version: int
    frame_shape: tuple[int, int]
    stack: int
    num_lanes: int
    lane_rows: int
    chunk_rows: int
    added: list[int]
    prioritized: bool
    alpha: float
    max_priority: float
    rng_state: dict[str, Any]
    other_settings: dict[str, Any]  # for a reader; restore() keeps its own replay's


class _ReplayFile:
    """A replay file open for reading; what it cannot read whole is a ReplayFileError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = lz4.frame.open(path, "rb")

    def close(self) -> None:
        self._file.close()

    def read_header(self) -> _Header:
        if self._read_up_to(len(_FILE_MAGIC)) != _FILE_MAGIC:
            raise ReplayFileError(f"{self.path} is not a replay file, or is cut short.")
        (size,) = struct.unpack("<Q", self._read(8))
        if size > _MAX_HEADER_BYTES:
            raise self._damaged(f"its header claims {size} bytes")
        try:
            fields = json.loads(self._read(size))
            if fields["version"] != _FILE_VERSION:
                raise ReplayFileError(
                    f"{self.path} has format version {fields['version']}, expected "
                    f"{_FILE_VERSION}. Restore it with the rayssl version that wrote it."
                )
            header = _Header(**fields)._replace(frame_shape=tuple(fields["frame_shape"]))
            sound = len(header.added) == header.num_lanes > 0 and min(header.added) >= 0
            sound = sound and header.lane_rows > 0 and 0 < header.chunk_rows <= _CHUNK_BYTES
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise self._damaged(f"its header cannot be read ({error})") from error
        if not sound:
            raise self._damaged("the numbers in its header contradict each other")
        return header

    def read_array(self, dtype: Any, count: int) -> np.ndarray:
        """The next `count` numbers, read-only."""
        return np.frombuffer(self._read(count * np.dtype(dtype).itemsize), dtype)

    def expect_end(self) -> None:
        """Reads the end of the file, where LZ4 compares the checksum."""
        if self._read_up_to(1):
            raise self._damaged("there is more in it than its header says")

    def _read(self, size: int) -> bytes:
        data = self._read_up_to(size)
        if len(data) < size:
            raise self._damaged("it ends early")
        return data

    def _read_up_to(self, size: int) -> bytes:
        try:
            data: bytes = self._file.read(size)
        except (EOFError, RuntimeError) as error:
            raise self._damaged(str(error)) from error
        return data

    def _damaged(self, reason: str) -> ReplayFileError:
        return ReplayFileError(
            f"{self.path} is damaged or cut short: {reason}. Restore an older checkpoint, or start "
            "with an empty replay."
        )


def required_bytes(
    capacity: int, frame_shape: tuple[int, int] = (84, 84), prioritized: bool = False
) -> int:
    """Returns the bytes that a FrameReplay of this capacity reserves (see `FrameReplay.nbytes`)."""
    rows = capacity * (frame_shape[0] * frame_shape[1] + _ROW_BYTES_BESIDE_FRAME)
    if not prioritized:
        return rows
    sizes = _tree_level_sizes(capacity)
    return rows + 8 * (sum(sizes) + sum(sizes[1:]))


def available_memory_bytes() -> int:
    """Returns how many more bytes this process can use: the machine's free memory, or less.

    Less, if a container (cgroup v2 or v1) has less left of its limit. Cached files that the kernel
    would give back first count as free, as `docker stats` counts them.
    """
    return _available_memory()[0]


def check_memory(
    capacity: int, frame_shape: tuple[int, int] = (84, 84), prioritized: bool = False
) -> None:
    """Raises MemoryError if a replay of this capacity, in transitions, cannot fit into memory.

    The operating system hands out memory only as rows arrive; without this check a replay that is
    too large would be killed hours into a run, without a word.
    """
    required = required_bytes(capacity, frame_shape, prioritized)
    available, limit = _available_memory()
    if required <= available:
        return
    fitting = int(capacity * available / required)
    while fitting > 0 and required_bytes(fitting, frame_shape, prioritized) > available:
        fitting -= 1
    if fitting >= 1000:
        fitting -= fitting % 1000
    raise MemoryError(
        f"Replay needs {required / 1e9:.3g} GB for {capacity:,} transitions, "
        f"{available / 1e9:.3g} GB available ({limit}). "
        f"Lower --replay-capacity to {fitting} or free memory."
    )


def _available_memory() -> tuple[int, str]:
    """Bytes available, and what limits them."""
    machine = int(psutil.virtual_memory().available)
    container = _container_available_bytes(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    if container is not None and container < machine:
        return container, "container limit"
    return machine, "free memory of the machine"


def _container_available_bytes(root: Path, membership: Path) -> int | None:
    """What the tightest of this process's control groups has left; None without any limit.

    Limits of all groups above count too. A container may not see the path that it is in; then the
    mount's root is its own group.
    """
    left: list[int] = []
    lines = membership.read_text().splitlines() if membership.exists() else []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        directory = top / group.lstrip("/")
        for candidate in (directory, *directory.parents):
            if candidate.is_relative_to(top):
                left += _group_available_bytes(candidate, *names)
    return min(left, default=None)


def _group_available_bytes(
    group: Path, limit_name: str, usage_name: str, cache_key: str
) -> list[int]:
    """Limit - use + reclaimable file cache of one control group; nothing if it has no limit."""
    try:
        limit = int((group / limit_name).read_text())
        usage = int((group / usage_name).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or the limit is the word "max"
        return []
    return [max(0, limit - usage + int(stat.get(cache_key, 0)))]


def _tree_level_sizes(size: int) -> list[int]:
    """Nodes in each level of a PriorityTree, leaves first, each but the root padded to 16s."""
    sizes = [-(-size // _TREE_FANOUT) * _TREE_FANOUT]
    while sizes[-1] > _TREE_FANOUT:
        sizes.append(-(-sizes[-1] // _TREE_FANOUT**2) * _TREE_FANOUT)
    return [*sizes, 1]


def _newest_that_fit(counts: np.ndarray, capacity: int) -> np.ndarray:
    """How many rows to keep of each lane, int64 `[N]`: as equal as can be, `capacity` at most."""
    if counts.sum() <= capacity:
        return counts
    level, too_high = 0, int(counts.max())
    while too_high - level > 1:
        middle = (level + too_high) // 2
        if np.minimum(counts, middle).sum() <= capacity:
            level = middle
        else:
            too_high = middle
    kept = np.minimum(counts, level)
    larger = np.flatnonzero(counts > level)
    kept[larger[: capacity - int(kept.sum())]] += 1
    return kept


def _chunks(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Views of consecutive pieces of at most `size` entries."""
    return (array[start : start + size] for start in range(0, len(array), size))


def _fragment_flags(fragment: Fragment) -> np.ndarray:
    """The bit field of each row, uint8 `[T, N]`."""
    flags = np.zeros(fragment.actions.shape, np.uint8)
    for bit, is_set in (
        (TERMINATED, fragment.terminated),
        (TRUNCATED, fragment.truncated),
        (LIFE_LOST, fragment.life_lost),
        (RESET, fragment.reset),
        (INVALID, ~fragment.valid),
    ):
        flags |= is_set.astype(np.uint8) * np.uint8(bit)
    return flags


def _check_fragment(fragment: Fragment, frame_shape: tuple[int, int]) -> None:
    """Raises ValueError at the first array of another shape or dtype than Fragment promises."""
    frames, actions = fragment.frames, fragment.actions
    if frames.ndim != 4 or frames.shape[2:] != frame_shape or frames.dtype != np.uint8:
        raise ValueError(
            f"Expected uint8 frames [T, N, {frame_shape[0]}, {frame_shape[1]}], got {frames.dtype} "
            f"{frames.shape}. Give the newest frame of each stack, in the replay's frame_shape."
        )
    for name, array in zip(Fragment._fields[1:], fragment[1:], strict=True):
        if array.shape != frames.shape[:2]:
            raise ValueError(
                f"Expected {name} of shape {frames.shape[:2]} ([T, N] of frames), "
                f"got {array.shape}."
            )
        expected = {"actions": np.integer, "rewards": np.float32}.get(name, np.bool_)
        if not np.issubdtype(array.dtype, expected):
            raise ValueError(f"Expected {name} of {expected.__name__} type, got {array.dtype}.")
    if actions.size and (actions.min() < 0 or actions.max() > 255):
        raise ValueError(
            f"Actions must lie in [0, 255], got {actions.min()} to {actions.max()}. "
            "The replay stores them as uint8."
        )


def _sync_directory(directory: Path) -> None:
    """Makes a rename in this directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
