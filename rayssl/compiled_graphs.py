"""Work on a CPU as one compiled graph: forward, backward, clipping and Adam in a single call.

`torch.compile` compiles the forward and the backward pass each by itself; around them Python, the
autograd engine and an optimizer make passes of their own over all weights. Here all of it is traced
once, so that the compiler fuses across those borders.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch._inductor
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

logger = logging.getLogger(__name__)
Layout = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
Stateful = Callable[..., tuple[Tensor, ...]]


class CompiledGraph:
    """A function of tensors, gradients and changes in place included, that runs compiled.

    Args of the constructor:
      function: takes a dict of tensors, which it may change in place, and more tensors; returns a
        tuple of new tensors. It must not look at a tensor's values from Python, nor draw from a
        generator, nor use another tensor that ever changes.
      state: that dict. Its tensors stay what and where they are.
      plain: does the same with the inputs alone, where no compiler works.
      name: for the warning that none does.
    Args of a call:
      tensors; each new layout of them compiles once.
    Returns:
      what the function returns.
    """

    def __init__(
        self, function: Stateful, state: Mapping[str, Tensor], plain: Stateful, name: str
    ) -> None:
        self._function, self._state, self._plain, self._name = function, dict(state), plain, name
        self._graphs: dict[Layout, Callable[..., Any]] = {}
        self._refused = False

    @property
    def refused(self) -> bool:
        """Whether it was not compiled, so that every call runs `plain`."""
        return self._refused

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._refused:
            return self._plain(*inputs)
        layout = tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        graph = self._graphs.get(layout)
        if graph is None:
            graph = self._compile(inputs)
            if graph is None:
                return self._plain(*inputs)
            self._graphs[layout] = graph
        with torch.no_grad():
            return tuple(graph(*self._state.values(), *inputs))

    def _compile(self, inputs: tuple[Tensor, ...]) -> Callable[..., Any] | None:
        """The function for inputs of this layout; None, after a warning, where no compiler works.

        Nothing is computed meanwhile: the trace is one of shapes.
        """
        names = list(self._state)

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            state = dict(zip(names, tensors, strict=False))
            return self._function(state, *tensors[len(names) :])

        tensors: list[Any] = [*self._state.values(), *inputs]
        try:
            with torch.no_grad():
                graph = make_fx(flat, tracing_mode="fake")(*tensors)
                compiled: Callable[..., Any] = torch._inductor.compile(graph, tensors)
        except Exception as error:  # torch raises many kinds: no compiler, no headers, a bug
            self._refused = True
            warn_uncompiled(self._name, error)
            return None
        return compiled


def warn_uncompiled(name: str, error: Exception) -> None:
    """Warns that what has this name could not be compiled, why, and what to do about it."""
    logger.warning(
        "Compiling %s failed (%s: %s); it runs uncompiled and slower. "
        "If there is no C++ compiler, install one; --no-compile silences this.",
        name,
        type(error).__name__,
        str(error).splitlines()[0] if str(error) else "",
    )
