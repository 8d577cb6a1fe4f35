"""Random shifts: against PyTorch's replication padding and crop, and by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayssl.augmentation import draw_shifts, random_shift, shift


def pad_and_crop(x: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """DrQ's own two steps: nn.ReplicationPad2d(pad), then a crop of the old size."""
    height, width = x.shape[2:]
    padded = F.pad(x.float(), (pad, pad, pad, pad), mode="replicate")
    crops = [
        image[:, pad - down : pad - down + height, pad - right : pad - right + width]
        for image, (down, right) in zip(padded, shifts.tolist(), strict=True)
    ]
    return torch.stack(crops)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shift_is_replication_padding_and_a_crop(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    x = torch.randint(0, 256, (81, 3, 11, 9), generator=generator).to(dtype)
    steps = torch.arange(-4, 5)
    shifts = torch.cartesian_prod(steps, steps)  # every shift once
    shifted = shift(x, shifts)
    assert shifted.dtype == dtype
    assert torch.equal(shifted.float(), pad_and_crop(x, shifts, 4))


def test_image_moves_down_and_right_and_its_edge_is_repeated() -> None:
    x = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    assert shift(x, torch.tensor([[1, 0]])).flatten(2).tolist() == [[[1, 2, 1, 2]]]
    assert shift(x, torch.tensor([[0, 1]])).flatten(2).tolist() == [[[1, 1, 3, 3]]]
    assert shift(x, torch.tensor([[-1, -1]])).flatten(2).tolist() == [[[4, 4, 4, 4]]]
    assert torch.equal(shift(x, torch.tensor([[0, 0]])), x)


def test_every_shift_is_drawn_equally_often_and_for_each_image_on_its_own(
    generator: torch.Generator,
) -> None:
    expected = 200
    x = torch.zeros(expected * 25, 1, 1, 1)
    shifts = draw_shifts(x, generator=generator, pad=2) + 2
    counts = torch.bincount(shifts[:, 0] * 5 + shifts[:, 1], minlength=25)
    assert len(counts) == 25
    assert ((counts - expected).abs() < 5 * expected**0.5).all(), counts


def test_all_frames_of_a_stack_shift_together(generator: torch.Generator) -> None:
    frame = torch.randint(0, 256, (8, 1, 12, 12), dtype=torch.uint8, generator=generator)
    shifted = random_shift(frame.repeat(1, 4, 1, 1), generator=generator)
    assert torch.equal(shifted, shifted[:, :1].repeat(1, 4, 1, 1))
    assert not torch.equal(shifted[:, :1], frame)


def test_same_seed_gives_the_same_shifts_and_the_input_stays() -> None:
    x = torch.arange(8 * 36).view(8, 1, 6, 6)
    before = x.clone()
    first, same, other = (
        random_shift(x, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(x, before)
