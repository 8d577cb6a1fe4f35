"""torchvision imports through one door, whatever PyTorch was built for."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayssl._torchvision import _passing_over_missing_operators, torchvision, v2

Decorator = Callable[[Callable[[], None]], Callable[[], None]]


def kernel() -> None:
    """Stands for the description of an operator."""


def registry(error: Exception | None) -> tuple[Callable[..., Decorator], list[str]]:
    """A stand-in of `torch.library.register_fake` that raises `error`, and the names it took."""
    registered: list[str] = []

    def register_fake(op: str, *, _stacklevel: int = 1) -> Decorator:
        def register(function: Callable[[], None]) -> Callable[[], None]:
            if error is not None:
                raise error
            registered.append(f"{op} at frame {_stacklevel}")
            return function

        return register

    return register_fake, registered


def test_transforms_and_models_work_after_the_import() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)
    flipped = v2.functional.horizontal_flip(image)
    assert flipped[0, 0].tolist() == [3, 2, 1, 0]
    assert len(torchvision.models.list_models()) > 0


def test_import_in_a_fresh_process_restores_register_fake_and_succeeds_twice() -> None:
    script = """
import torch
before = torch.library.register_fake
from rayssl._torchvision import torchvision
assert torch.library.register_fake is before
import torchvision as again
assert again is torchvision
from torchvision.transforms import v2
print(v2.Resize(2)(torch.zeros(3, 4, 4)).shape)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([3, 2, 2])"


def test_missing_torchvision_operator_is_passed_over() -> None:
    missing = RuntimeError("operator torchvision::nms does not exist")
    register_fake, registered = registry(missing)
    tolerant = _passing_over_missing_operators(register_fake)
    assert tolerant("torchvision::nms")(kernel) is kernel
    assert tolerant("torchvision::nms", kernel) is kernel
    assert registered == []


def test_healthy_install_registers_every_operator_and_counts_the_extra_frame() -> None:
    register_fake, registered = registry(None)
    tolerant = _passing_over_missing_operators(register_fake)
    assert tolerant("torchvision::nms")(kernel) is kernel
    assert tolerant("other::nms")(kernel) is kernel
    assert registered == ["torchvision::nms at frame 2", "other::nms at frame 1"]


@pytest.mark.parametrize(
    ("op", "error"),
    [
        ("other::nms", RuntimeError("operator other::nms does not exist")),
        ("torchvision::nms", RuntimeError("same name registered twice")),
        ("torchvision::nms", OSError("operator torchvision::nms does not exist")),
    ],
)
def test_any_other_error_passes_through(op: str, error: Exception) -> None:
    register_fake, _ = registry(error)
    with pytest.raises(type(error), match=str(error)):
        _passing_over_missing_operators(register_fake)(op)(kernel)


def test_wrapped_registration_is_seen_as_the_callers_not_ours() -> None:
    # PyTorch reads the module of the calling frame: it must be the one that wrote the decorator.
    seen: list[Any] = []

    def register_fake(op: str, *, _stacklevel: int = 1) -> Decorator:
        def register(function: Callable[[], None]) -> Callable[[], None]:
            seen.append(sys._getframe(_stacklevel).f_globals["__name__"])
            return function

        return register

    _passing_over_missing_operators(register_fake)("torchvision::nms")(kernel)
    assert seen == [__name__]
