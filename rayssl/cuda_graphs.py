"""Work on a GPU as a CUDA graph: its kernels start together, not one by one from Python.

    call      1      2      3      4        5 ...
    runs as   plain  plain  plain  capture, replay ...
                                   replay

At batch 32 an update is some hundred kernels of a few microseconds each: starting them costs more
than they do.
"""

import logging
from collections.abc import Callable

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
      name: for the warning if CUDA refuses.
    Args of a call:
      tensors on the GPU; those of another shape than at the capture run plainly.
    Returns:
      new tensors, which later calls leave alone.
    Source: PyTorch's notes, "CUDA Graphs".
    """

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], enabled: bool, name: str = "a function"
    ) -> None:
        self._function, self._name = function, name
        self._enabled, self._refused = enabled, False
        self._plain_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph by now."""
        return self._graph is not None

    @property
    def refused(self) -> bool:
        """Whether CUDA did not capture the function, so that every call runs it."""
        return self._refused

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not self._enabled or self._refused:
            return self._function(*inputs)
        if not self._inputs:
            self._inputs = tuple(x.clone() for x in inputs)
        if [x.shape for x in inputs] != [x.shape for x in self._inputs]:
            return self._function(*inputs)
        for kept, new in zip(self._inputs, inputs, strict=True):
            kept.copy_(new)
        if self._graph is None and self._plain_calls >= PLAIN_CALLS:
            self._capture()
        if self._graph is None:  # on the kept inputs: a compiler asks for the layout, too
            self._plain_calls += 1
            return self._function(*self._inputs)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)

    def _capture(self) -> None:
        """Records the kernels of a call; none of them runs meanwhile."""
        before = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._inputs[0].device), torch.cuda.graph(graph):
                self._outputs = self._function(*self._inputs)
        except RuntimeError as error:  # what CUDA refuses while it records
            self._refused = True
            torch.cuda.set_stream(before)
            logger.warning(
                "No CUDA graph of %s (%s): its kernels start one by one, and slower. "
                "Pass --no-cuda-graphs to silence this.",
                self._name,
                str(error).splitlines()[0],
            )
            return
        self._graph = graph
