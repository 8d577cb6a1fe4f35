"""SmoothGrad on scores whose gradient is known, and map scores by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel, Saliency
from torch import Tensor, nn

from rayssl.attribution import (
    panel,
    pixel_maps,
    reinitialized,
    score_against_masks,
    smoothgrad,
)

W = torch.tensor([[[1.0, -2.0], [0.5, 4.0]]])  # [1, 2, 2]


def linear_score(x: Tensor) -> Tensor:
    return (x * W).sum((1, 2, 3))


def square_score(x: Tensor) -> Tensor:
    return (x**2).sum((1, 2, 3))


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 2)
        )
    return net.eval().requires_grad_(False)


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=generator)


def test_map_of_a_linear_score_is_its_weights_squared(generator: torch.Generator) -> None:
    x = torch.rand(3, 1, 2, 2, generator=generator)
    assert torch.allclose(smoothgrad(linear_score, x, noise=0.3), (W**2).expand(3, 1, 2, 2))
    assert torch.allclose(
        smoothgrad(linear_score, x, kind="smoothgrad", noise=0.3), W.expand(3, 1, 2, 2)
    )


def test_noise_is_a_share_of_each_inputs_range() -> None:
    # d(x^2)/dx = 2x: the mean of squares is 4 x^2 + 4 sigma^2, sigma = noise * (max - min).
    x = torch.zeros(2, 1, 40, 40)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 1.0, 10.0
    maps = smoothgrad(square_score, x, samples=50, noise=0.1)[:, 0, 1:].mean((1, 2))
    assert maps.tolist() == pytest.approx([4 * 0.1**2, 4 * 1.0**2], rel=0.02)
    fixed = smoothgrad(square_score, x, samples=50, noise=0.1, value_range=(-1, 1))[:, 0, 1:]
    assert fixed.mean((1, 2)).tolist() == pytest.approx([4 * 0.2**2] * 2, rel=0.02)


def test_noise_is_drawn_anew_for_another_seed_or_shape() -> None:
    def mean_gradient(seed: int, shape: tuple[int, ...]) -> Tensor:
        return smoothgrad(square_score, torch.ones(shape), kind="smoothgrad", noise=1, seed=seed,
                          value_range=(0, 1))  # fmt: skip

    first = mean_gradient(0, (1, 1, 2, 3))
    assert not torch.equal(first, mean_gradient(1, (1, 1, 2, 3)))
    assert mean_gradient(0, (1, 1, 3, 2)).shape == (1, 1, 3, 2)
    assert torch.equal(first, mean_gradient(0, (1, 1, 2, 3)))


def test_same_seed_same_map_another_seed_another(network: nn.Module, images: Tensor) -> None:
    def score(x: Tensor) -> Tensor:
        return network(x)[:, 1]

    first = smoothgrad(score, images, noise=0.3, seed=1)
    state = torch.get_rng_state()
    assert torch.equal(smoothgrad(score, images, noise=0.3, seed=1), first)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert not torch.allclose(smoothgrad(score, images, noise=0.3, seed=2), first)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_and_company_do_not_change_a_map(
    network: nn.Module, images: Tensor, batch_size: int
) -> None:
    def score(x: Tensor) -> Tensor:
        return network(x)[:, 1]

    expected = smoothgrad(score, images, noise=0.3)
    found = smoothgrad(score, images, noise=0.3, batch_size=batch_size)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-8)
    alone = smoothgrad(score, images[2:], noise=0.3)
    assert torch.allclose(alone, expected[2:], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq"])
def test_map_is_captums_noise_tunnel_but_for_the_draws(
    network: nn.Module, images: Tensor, kind: str
) -> None:
    def score(x: Tensor) -> Tensor:
        return network(x)[:, 1]

    x = images.clone().requires_grad_()
    tunnel = NoiseTunnel(Saliency(score))
    exact = tunnel.attribute(x, nt_type=kind, nt_samples=3, stdevs=0.0, abs=False)
    ours = smoothgrad(score, images, kind=kind, samples=3, noise=0.0)  # type: ignore[arg-type]
    assert torch.allclose(ours, exact, rtol=1e-4, atol=1e-8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        many = tunnel.attribute(x, nt_type=kind, nt_samples=400, stdevs=0.2, abs=False)
    ours = smoothgrad(score, images, kind=kind, samples=400, noise=0.2, value_range=(0, 1))  # type: ignore[arg-type]
    assert (ours - many).abs().mean() < 0.1 * many.abs().mean()


def test_input_is_left_alone(images: Tensor) -> None:
    before = images.clone()
    smoothgrad(square_score, images)
    assert torch.equal(images, before)
    assert not images.requires_grad


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "vargrad"}, "smoothgrad_sq, smoothgrad"),
        ({"samples": 0}, "samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"noise": -0.1}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"value_range": (1.0, 1.0)}, "range"),
        ({"x": torch.zeros(2, 3, dtype=torch.uint8)}, "float"),
        ({"score": lambda x: x.flatten(1)}, "one number an input"),
    ],
)
def test_values_that_cannot_work_are_refused(change: dict[str, object], text: str) -> None:
    arguments = {"score": square_score, "x": torch.rand(2, 1, 4, 4)} | change
    with pytest.raises(ValueError, match=text):
        smoothgrad(**arguments)  # type: ignore[arg-type]


def test_pixel_map_sums_absolute_values_over_channels() -> None:
    maps = torch.tensor([[[[1.0, -1.0]], [[-2.0, 0.0]]]])  # [1, 2, 1, 2]
    assert pixel_maps(maps).tolist() == [[[3.0, 1.0]]]


def test_energy_pointing_and_chance_are_those_computed_by_hand() -> None:
    maps = np.array([[[1.0, 5.0], [2.0, 2.0]], [[1.0, 5.0], [2.0, 2.0]]])
    masks = np.array([[[0, 1], [0, 0]], [[1, 0], [1, 1]]], bool)
    found = score_against_masks(maps, masks)
    assert found.energy_inside == pytest.approx([0.5, 0.5])
    assert found.pointing.tolist() == [1, 0]
    assert found.chance.tolist() == [0.25, 0.75]


def test_flat_map_gets_the_chance_level() -> None:
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :3] = True
    found = score_against_masks(np.ones((1, 10, 10)), masks)
    assert found.energy_inside == pytest.approx(found.chance)


@pytest.mark.parametrize("full", [False, True])
def test_mask_without_inside_or_outside_is_refused(full: bool) -> None:
    with pytest.raises(ValueError, match="empty or a full"):
        score_against_masks(np.ones((1, 2, 2)), np.full((1, 2, 2), full))


def test_map_of_zeros_is_refused() -> None:
    masks = np.array([[[True, False]]])
    with pytest.raises(ValueError, match="use its input"):
        score_against_masks(np.zeros((1, 1, 2)), masks)


def test_reinitialized_network_has_other_weights_and_leaves_the_original_alone(
    network: nn.Module, images: Tensor
) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fresh = reinitialized(network, seed=3)
    assert not torch.equal(fresh[0].weight, network[0].weight)  # type: ignore[index]
    assert torch.equal(fresh(images), reinitialized(network, seed=3)(images))
    assert not torch.equal(fresh(images), reinitialized(network, seed=4)(images))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match="reset_parameters"):
        reinitialized(nn.Flatten(), seed=0)


def test_panel_is_a_picture_with_a_column_for_each_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 16, 16), bool)
    masks[0, 4:8, 4:8] = True
    path = panel(
        rng.random((2, 16, 16, 3)), rng.random((2, 16, 16)), tmp_path / "p.png", masks=masks,
        captions=["a", "b"], title="t",
    )  # fmt: skip
    assert path.read_bytes().startswith(b"\x89PNG")
    panel(rng.random((1, 16, 16)), np.zeros((1, 16, 16)), tmp_path / "grey.png")
