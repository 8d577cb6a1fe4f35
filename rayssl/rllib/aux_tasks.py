"""Which self-supervised tasks a run has, with their weights, and the data that they ask for.

A learner's batch holds, beside the columns of Q-learning, those of `Sequences` where a task needs
them: under "td/" from the rows of the TD batch on ("the same observations"), under "rewarding/"
from rows of which many got a reward.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from rayssl.networks import as_sequence_task, head_paths
from rayssl.replay import FrameReplay, SequenceBatch
from rayssl.tasks import Sequences, SequenceTask, make_tasks

COMBINATIONS = ("cycle", "sum")
SAMPLES = ("usable", "all")
TD_ROWS, REWARDING_ROWS = "td", "rewarding"


class AuxTask(NamedTuple):
    """A task of a run.

    Attributes:
      task: what it learns.
      head: path of its head in the network (`MultiHeadNetwork.head_at`).
      weight: lambda of eq. (3).
      suffix: of its columns in the logs; "" for a task alone, else e.g. "/inverse".
    """

    task: SequenceTask
    head: str
    weight: float
    suffix: str

    @property
    def rows(self) -> str:
        """Where its sequences start: TD_ROWS or REWARDING_ROWS."""
        return TD_ROWS if self.task.rewarding_share is None else REWARDING_ROWS


def make_aux_tasks(names: str | None, weights: tuple[float, ...]) -> tuple[AuxTask, ...]:
    """Returns the tasks of a combination, in its order.

    Args:
      names: e.g. `permutation+inverse`; None: no task.
      weights: one for each task, or one for all.
    Raises:
      ValueError: for an unknown or repeated name, another number of weights, or a weight of 0 among
        several tasks.
    """
    tasks = make_tasks(names)
    if len(weights) not in (1, len(tasks)) and tasks:
        raise ValueError(
            f"Expected one aux_weight for all of {names}, or {len(tasks)} (one for each task), got "
            f"{len(weights)}: {','.join(f'{weight:g}' for weight in weights)}."
        )
    weights = weights if len(weights) == len(tasks) else weights[:1] * len(tasks)
    if len(set(weights)) > 1 and 0 in weights:
        idle = tasks[weights.index(0)].name
        raise ValueError(f"Task {idle} of {names} has aux_weight 0: leave it out of --aux-task.")
    asked = [as_sequence_task(task).rewarding_share for task in tasks]
    shares = {share for share in asked if share is not None}
    if len(shares) > 1:
        raise ValueError(
            f"The tasks of {names} ask for different shares of rewarding rows: {sorted(shares)}. "
            "Run them one by one."
        )
    heads = head_paths(names)
    return tuple(
        AuxTask(
            as_sequence_task(task), heads[task.name], weight,
            f"/{task.name}" if len(tasks) > 1 else "",
        )
        for task, weight in zip(tasks, weights, strict=True)
    )  # fmt: skip


def sequence_columns(
    tasks: tuple[AuxTask, ...], replay: FrameReplay, indices: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the columns that these tasks need beside those of Q-learning; {} if none.

    Args:
      tasks: of the run.
      replay: draws rewarding rows, where a task asks for them.
      indices: int64 `[B]`, rows of the TD batch.
    """
    columns: dict[str, np.ndarray] = {}
    for rows in (TD_ROWS, REWARDING_ROWS):
        asking = [aux.task for aux in tasks if aux.rows == rows]
        num_steps = max((task.num_steps for task in asking), default=0)
        if num_steps:
            if rows == REWARDING_ROWS:
                share = asking[0].rewarding_share
                assert share is not None
                indices = replay.draw_rewarding(len(indices), share)
            found = replay.gather_sequences(indices, num_steps)
            columns |= {f"{rows}/{name}": value for name, value in found._asdict().items()}
    return columns


def sequences_of(aux: AuxTask, batch: dict[str, Tensor], obs: Tensor) -> Sequences:
    """Returns a task's own data of a minibatch.

    Args:
      aux: the task.
      batch: columns of the minibatch.
      obs: observations of the TD batch, all that a task without steps needs.
    """
    if not aux.task.num_steps:
        return Sequences.without_steps(obs)
    columns = (batch[f"{aux.rows}/{name}"] for name in SequenceBatch._fields)
    return Sequences(*columns).first(aux.task.num_steps)
