"""The one place that imports torchvision, so that it also works beside a PyTorch without CUDA.

The torchvision wheel of PyPI is built for CUDA. Beside a CPU-only PyTorch its compiled operators
cannot load, which torchvision itself allows for, but in two places: `_meta_registrations.py`
describes `torchvision::nms` and `torchvision::qnms` to PyTorch although nobody defined them, and
the import ends in `RuntimeError: operator torchvision::nms does not exist`. Transforms, models and
data sets need neither operator, so that error, and no other, is passed over during the first
import. Where the operators do load, nothing is passed over.

Defining the two operators by hand would hide a later load of the real ones: it must not be done.

Source: pytorch/vision pull request 9649 guards the same two lines.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

__all__ = ["check_operators", "torchvision", "v2"]


def _passing_over_missing_operators(register_fake: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `register_fake` that leaves out operators `torchvision::*` which do not exist."""

    def tolerant(op: Any, *args: Any, **kwargs: Any) -> Any:
        if not str(op).startswith("torchvision::"):
            return register_fake(op, *args, **kwargs)
        # One frame more stands between the caller and PyTorch, which looks at the caller's module.
        kwargs["_stacklevel"] = kwargs.get("_stacklevel", 1) + 1

        def register_if_it_exists(function: Any) -> Any:
            try:
                return register_fake(op, **kwargs)(function)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
                return function

        return register_if_it_exists(*args) if args else register_if_it_exists

    return tolerant


def _import_torchvision() -> ModuleType:
    """Returns torchvision; `torch.library.register_fake` is the same before and after."""
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    original = torch.library.register_fake
    torch.library.register_fake = _passing_over_missing_operators(original)
    try:
        return importlib.import_module("torchvision")
    finally:
        torch.library.register_fake = original


torchvision: Any = _import_torchvision()
v2: Any = importlib.import_module("torchvision.transforms.v2")  # not an attribute until imported


def check_operators() -> None:
    """Raises RuntimeError if torchvision's compiled operators are missing: `nms` is one of them."""
    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except RuntimeError as error:
        raise RuntimeError(
            f"Those of torchvision {torchvision.__version__} do not load beside torch "
            f"{torch.__version__}: install a pair built for the same device (pytorch.org)."
        ) from error
