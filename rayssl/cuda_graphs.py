"""Work on a GPU as a CUDA graph: its kernels start together, not one by one from Python.

    call      1      2      3      4        5 ...
    runs as   plain  plain  plain  capture, replay ...
                                   replay

At batch 32 an update is some hundred kernels of a few microseconds each: starting them costs more
than they do.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
PLAIN_CALLS = 3  # before the capture: they compile, choose algorithms and make optimizer states


class CudaGraph:
    """A function of tensors that replays as a CUDA graph; elsewhere it runs as it is.

    Args of the constructor:
      function: takes tensors and returns a tuple of tensors. Whatever else it reads or writes must
        stay at its address: parameters, optimizer states, casts that are copied over. It must not
        look at a tensor's values from Python, nor draw from a generator.
      enabled: False, as on a CPU: every call runs the function.
    Args of a call:
      tensors on the GPU; those of another shape than at the capture run plainly.
    Returns:
      new tensors, which later calls leave alone.
    Source: PyTorch's notes, "CUDA Graphs".
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], enabled: bool) -> None:
        self._function = function
        self._enabled = enabled
        self._plain_calls = 0
        self._graph: Any = None  # torch.cuda.CUDAGraph
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph by now."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._enabled and self._graph is None and self._plain_calls >= PLAIN_CALLS:
            self._capture(inputs)
        if self._graph is None or [x.shape for x in inputs] != [x.shape for x in self._inputs]:
            self._plain_calls += 1
            return self._function(*inputs)
        for kept, new in zip(self._inputs, inputs, strict=True):
            kept.copy_(new)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Records the kernels of a call; none of them runs meanwhile."""
        graph = torch.cuda.CUDAGraph()
        kept = tuple(x.clone() for x in inputs)
        try:
            with torch.cuda.graph(graph):
                outputs = self._function(*kept)
        except RuntimeError as error:  # what CUDA refuses while it records
            self._enabled = False
            logger.warning(
                "No CUDA graph (%s); updates run kernel by kernel and slower. "
                "Pass --no-cuda-graphs to silence this.",
                str(error).splitlines()[0],
            )
            return
        self._graph, self._inputs, self._outputs = graph, kept, outputs
