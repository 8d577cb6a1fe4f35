"""BiGAN and BigBiGAN: layers, losses, the players' steps, what is measured, and what is kept."""

import copy
import io
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rayssl.bigan import MODELS, check_data, evaluation, make_settings, make_training
from rayssl.bigan.bigbigan import Bigbigan, BigbiganSettings, reparametrized
from rayssl.bigan.donahue import (
    Bigan,
    BiganDiscriminator,
    BiganEncoder,
    BiganGenerator,
    BiganSettings,
)
from rayssl.bigan.evaluation import (
    image_grid,
    linear_probe_accuracy,
    nearest_neighbour_accuracy,
    reconstruction_error,
)
from rayssl.data import ImageSplits, fit_size, load_folder
from rayssl.losses import BiganLosses, bigan_losses, bigbigan_losses
from rayssl.schedules import constant_then_exponential

EVERY_MODEL = pytest.mark.parametrize("model", list(MODELS))
CLOCK = ("seconds", "images_per_s", "eval_seconds", "images")
SMALL: dict[str, dict[str, Any]] = {
    "bigan": {"size": 8, "width": 16, "z_dim": 4},
    "bigbigan": {"size": 32, "width": 8, "z_dim": 4, "channels": 2},
}
TINY_RUN = {"epochs": 4, "batch_size": 16, "eval_every": 2, "statistics_batches": 3}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-equality is promised for one number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def two_kinds(size: int, train: int = 40, test: int = 20) -> ImageSplits:
    """Grey images whose left or right half is bright; the label says which."""
    g = torch.Generator().manual_seed(3)
    y = torch.arange(train + test) % 2
    x = torch.randint(0, 60, (train + test, 1, size, size), generator=g)
    half = size // 2
    x[y == 0, :, :, :half] += 180
    x[y == 1, :, :, half:] += 180
    x = x.byte()
    return ImageSplits("halves", x[:train], y[:train], x[train:], y[train:], 2)


def training(model: str, **values: Any) -> Any:
    values = SMALL[model] | TINY_RUN | values
    return make_training(model, two_kinds(values["size"]), **values)


# Losses


def test_bigan_losses_of_logits_worked_out_by_hand() -> None:
    encoded = torch.tensor([0.0, math.log(3)])  # D = 1/2 and 3/4
    generated = torch.tensor([-math.log(3), 0.0])  # D = 1/4 and 1/2
    found = bigan_losses(encoded, generated)
    assert float(found.discriminator) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert float(found.encoder) == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert found.generator is found.encoder
    at_the_start = bigan_losses(torch.zeros(3), torch.zeros(3))
    assert [float(loss) for loss in at_the_start] == pytest.approx([math.log(2)] * 3)


def test_bigbigan_hinges_each_score_by_itself_and_neither_encoder_nor_generator() -> None:
    encoded = torch.tensor([[2.0, 0.5, -1.0]])  # max(0, 1 - s) = 0, 0.5, 2
    generated = torch.tensor([[-2.0, 0.0, 3.0]])  # max(0, 1 + s) = 0, 1, 4
    found = bigbigan_losses(encoded, generated)
    assert float(found.discriminator) == pytest.approx(2.5 / 3 + 5 / 3)
    assert float(found.encoder) == pytest.approx(1.5 / 3)
    assert float(found.generator) == pytest.approx(-1 / 3)


@pytest.mark.parametrize(
    ("losses", "shape"), [(bigan_losses, (4,)), (bigbigan_losses, (4, 3))], ids=MODELS
)
def test_discriminator_wants_pairs_told_apart_and_the_others_the_opposite(
    losses: Callable[[Tensor, Tensor], Any], shape: tuple[int, ...]
) -> None:
    by_gap = [losses(torch.full(shape, gap), torch.full(shape, -gap)) for gap in (-5.0, 0.0, 5.0)]
    discriminator = [float(each.discriminator) for each in by_gap]
    others = [float(each.encoder + each.generator) for each in by_gap]
    assert discriminator == sorted(discriminator, reverse=True)
    assert discriminator[2] < 0.01
    assert others == sorted(others)
    encoded, generated = (torch.zeros(shape, requires_grad=True) for _ in range(2))
    found = losses(encoded, generated)
    up, down = torch.autograd.grad(found.discriminator, [encoded, generated], retain_graph=True)
    assert (up < 0).all()  # gradient descent raises the scores of (x, E(x))
    assert (down > 0).all()
    (up,) = torch.autograd.grad(found.encoder, [encoded], retain_graph=True)
    (down,) = torch.autograd.grad(found.generator, [generated])
    assert (up > 0).all()
    assert (down < 0).all()


# Donahue's networks


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in network.named_parameters()}


def test_layers_are_those_of_donahues_code() -> None:
    s = BiganSettings()
    sizes = (s.size**2, s.z_dim, s.width)
    assert shapes(BiganGenerator(*sizes)) == {
        "fc1.weight": (1024, 50), "fc2.weight": (1024, 1024 + 50), "fc3.weight": (784, 1024),
    }  # fmt: skip
    assert shapes(BiganEncoder(*sizes)) == {
        "fc1.weight": (1024, 784), "fc2.weight": (1024, 1024), "fc3.weight": (50, 1024),
    }  # fmt: skip
    assert shapes(BiganDiscriminator(*sizes)) == {
        "fc1.weight": (1024, 784), "fc2.weight": (1024, 1024 + 50), "fc3.weight": (1, 1024),
    }  # fmt: skip


def test_settings_are_those_of_donahues_script() -> None:
    s = BiganSettings()
    assert (s.epochs, s.epochs - s.decay_epochs) == (400, 200)
    assert (s.batch_size, s.lr, s.beta1, s.weight_decay) == (128, 2e-4, 0.5, 2.5e-5)
    bigan = Bigan(BiganSettings(width=4), (1, 28, 28))
    bigan.start()
    (group,) = bigan.optimizers["all"].param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (2e-4, (0.5, 0.999), 1e-8)
    assert group["weight_decay"] == 2.5e-5
    assert len(group["params"]) == 9  # of all three networks


def test_weights_start_at_the_codes_scale_and_the_discriminator_undecided() -> None:
    torch.manual_seed(0)
    bigan = Bigan(BiganSettings(width=256), (1, 28, 28))
    for network in (bigan.generator, bigan.encoder):
        for weight in network.parameters():
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(
        bigan.discriminator(torch.rand(6, 784), torch.rand(6, 50), parts=2), torch.zeros(6)
    )


def test_batch_norm_has_no_gain_and_no_bias_and_standardizes() -> None:
    encoder = BiganEncoder(9, 2, 5)
    assert list(encoder.bn2.parameters()) == []
    h = encoder.bn2(torch.randn(64, 5) * 7 + 3)
    assert torch.allclose(h.mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(h.square().mean(0), torch.ones(5), atol=1e-4)


def test_running_statistics_are_plain_means_over_batches() -> None:
    bn = BiganEncoder(9, 2, 1).bn2
    for batch in ([0.0, 2.0], [3.0, 5.0], [6.0, 14.0]):  # means 1, 4, 10; unbiased variances 2 2 32
        bn(torch.tensor(batch)[:, None])
    bn.eval()
    found = bn(torch.tensor([[5.0], [5.0 + math.sqrt(12)]]))
    assert found.flatten().tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_discriminator_normalizes_either_kind_of_pair_by_itself(generator: torch.Generator) -> None:
    d = BiganDiscriminator(9, 2, 5)
    nn.init.normal_(d.fc3.weight, generator=generator)
    x, z = torch.rand(8, 9, generator=generator), torch.rand(8, 2, generator=generator)
    together = d(x, z, parts=2)
    apart = torch.cat([d(x[:4], z[:4]), d(x[4:], z[4:])])
    assert torch.allclose(together, apart, atol=1e-6)
    assert not torch.allclose(together, d(x, z), atol=1e-3)


def test_encoders_z_is_its_code_squashed_into_the_priors_range() -> None:
    _, code, z = BiganEncoder(9, 2, 5)(torch.rand(4, 9))
    assert torch.allclose(z, 2 * torch.sigmoid(code) - 1, atol=1e-6)


def test_joint_update_is_that_of_three_players_who_step_apart(generator: torch.Generator) -> None:
    settings = BiganSettings(size=4, width=6, z_dim=3)
    torch.manual_seed(1)
    together = Bigan(settings, (1, 4, 4))
    nn.init.normal_(together.discriminator.fc3.weight)
    apart = copy.deepcopy(together)
    together.start()
    x = torch.rand(10, 1, 4, 4, generator=generator)
    for step in range(2):
        together.update(x, step, generator.clone_state())
    adams = {
        name: torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999),
                               weight_decay=2.5e-5)
        for name, network in apart.networks.items()
    }  # fmt: skip
    flat, z = x.flatten(1), apart.draw_z(10, generator)
    for _ in range(2):
        gradients = {}
        for name, network in apart.networks.items():  # each with forward passes of its own
            encoded = torch.sigmoid(apart.discriminator(flat, apart.encoder(flat)[2]))
            generated = torch.sigmoid(apart.discriminator(apart.generator(z), z))
            real, fake = (encoded, generated) if name == "d" else (1 - encoded, 1 - generated)
            loss = -(real.log().mean() + (1 - fake).log().mean()) / 2
            gradients[name] = torch.autograd.grad(loss, list(network.parameters()))
        for name, network in apart.networks.items():
            for p, gradient in zip(network.parameters(), gradients[name], strict=True):
                p.grad = gradient
            adams[name].step()
    for (name, own), other in zip(
        together.networks.named_parameters(), apart.networks.parameters(), strict=True
    ):
        assert torch.allclose(own, other, atol=1e-6), name


# BigBiGAN's networks


@pytest.fixture
def bigbigan() -> Bigbigan:
    torch.manual_seed(5)
    players = Bigbigan(BigbiganSettings(**SMALL["bigbigan"] | {"ema": 0.5}), (3, 32, 32))
    players.start()
    players.networks.train()
    return players


def normed_weights(network: nn.Module) -> list[Tensor]:
    layers: list[Any] = list(network.eval().modules())
    normed = [layer for layer in layers if parametrize.is_parametrized(layer, "weight")]
    return [layer.weight.detach().flatten(1) for layer in normed]


def test_spectral_norm_bounds_every_weight_of_generator_and_discriminator(
    bigbigan: Bigbigan, generator: torch.Generator
) -> None:
    for step in range(10):
        bigbigan.update(torch.rand(8, 3, 32, 32, generator=generator), step, generator)
    for network in (bigbigan.generator, bigbigan.discriminator):
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        weights = normed_weights(network)
        assert len(weights) == len(layers)
        for weight in weights:
            assert 0.8 < float(torch.linalg.matrix_norm(weight, 2)) < 1.1
    assert normed_weights(bigbigan.encoder) == normed_weights(bigbigan.averaged) == []


def test_reparametrized_z_passes_gradients_to_mean_and_standard_deviation() -> None:
    mean, std = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])
    mean.requires_grad_()
    std.requires_grad_()
    z = reparametrized(mean, std, torch.Generator().manual_seed(4))
    eps = torch.randn(1, 2, generator=torch.Generator().manual_seed(4))
    assert torch.equal(z, mean + std * eps)
    d_mean, d_std = torch.autograd.grad(z.sum(), [mean, std])
    assert torch.equal(d_mean, torch.ones(1, 2))
    assert torch.equal(d_std, eps)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_sizes_are_settings(size: int) -> None:
    settings = BigbiganSettings(size=size, channels=1, width=4, z_dim=3)
    settings.check()
    players = Bigbigan(settings, (3, size, size))
    x = torch.rand(2, 3, size, size)
    features, mean, z = players.encode(x)
    assert (features.shape, mean.shape) == ((2, 8), (2, 3))  # 1, 2, 4, 8 channels and no more
    assert players.generate(z).shape == x.shape
    assert players.discriminator(x, z).shape == (2, 3)
    assert (players.encoder(x)[2] > 0).all()


def test_score_of_the_image_is_blind_to_z_and_that_of_z_to_the_image(bigbigan: Bigbigan) -> None:
    d = bigbigan.discriminator.eval()
    x, z = torch.rand(2, 3, 32, 32), torch.rand(2, 4)
    both, other_x, other_z = d(x, z), d(x.flip(0), z), d(x, z.flip(0))
    same = [[torch.allclose(a[:, i], b[:, i]) for i in range(3)]
            for a, b in ((both, other_x), (both, other_z))]  # fmt: skip
    assert same == [[False, True, False], [True, False, False]]


def test_encoder_and_generator_step_on_every_second_batch_and_d_on_every_one(
    bigbigan: Bigbigan, generator: torch.Generator
) -> None:
    x = torch.rand(8, 3, 32, 32, generator=generator)
    moved = []
    for step in range(4):
        before = copy.deepcopy(
            {name: dict(n.named_parameters()) for name, n in bigbigan.networks.items()}
        )
        metrics = bigbigan.update(x, step, generator)
        assert ("g_loss" in metrics) == (step % 2 == 1)
        moved.append(
            {
                name
                for name, network in bigbigan.networks.items()
                if any(not torch.equal(p, before[name][k]) for k, p in network.named_parameters())
            }
        )
    assert moved == [{"d"}, {"d", "e", "g", "averaged"}] * 2


def test_each_player_descends_its_own_loss(bigbigan: Bigbigan, generator: torch.Generator) -> None:
    bigbigan.networks.eval()  # in training mode the spectral norms move on their own
    bigbigan.optimizers = {
        name: torch.optim.SGD(bigbigan.networks[name].parameters(), lr=1e-2) for name in "dge"
    }
    x, z = torch.rand(8, 3, 32, 32, generator=generator), torch.randn(8, 4, generator=generator)

    def losses() -> BiganLosses:
        _, mean, std = bigbigan.encoder(x)
        z_hat = reparametrized(mean, std, torch.Generator().manual_seed(0))
        return bigbigan_losses(*bigbigan._scores(x, bigbigan.generator(z), z_hat, z))

    before = losses()
    bigbigan._step("d", before.discriminator, bigbigan.discriminator)
    between = losses()
    assert between.discriminator.item() < before.discriminator.item()
    bigbigan._step("eg", between.encoder + between.generator, bigbigan.encoder, bigbigan.generator)
    after = losses()
    assert after.encoder.item() < between.encoder.item()
    assert after.generator.item() < between.generator.item()
    assert after.discriminator.item() > between.discriminator.item()


def test_average_is_of_normalized_weights_and_forgets_the_initial_ones_at_first(
    bigbigan: Bigbigan, generator: torch.Generator
) -> None:
    own: Any = bigbigan.generator.first  # whose weight is computed
    averaged = bigbigan.averaged.get_parameter("first.weight")
    assert float(torch.linalg.matrix_norm(averaged, 2)) == pytest.approx(1, abs=0.1)
    for step, decay in {0: 1 / 10, 2: 2 / 11, 4: 3 / 12, 200: 0.5}.items():
        before = averaged.clone()
        for each in (step, step + 1):  # one step of the generator
            x = torch.rand(8, 3, 32, 32, generator=generator)
            bigbigan.update(x, each, generator)
        bigbigan.generator.eval()
        assert torch.allclose(averaged, before.lerp(own.weight, 1 - decay), atol=1e-6)
        bigbigan.generator.train()


def test_encoder_has_a_learning_rate_of_its_own() -> None:
    run = training("bigbigan", epochs=2, decay_share=0.5, lr=1e-4, encoder_lr=3e-3)
    for factor in (1, 0.01):
        run._set_lr()
        run.epoch += 1
        rates = {k: o.param_groups[0]["lr"] for k, o in run.players.optimizers.items()}
        assert rates == pytest.approx({"g": 1e-4 * factor, "d": 1e-4 * factor, "e": 3e-3 * factor})


# Schedule


def test_learning_rate_is_constant_then_falls_to_a_hundredth() -> None:
    at = {e: constant_then_exponential(e, constant=200, decay=200) for e in range(400)}
    assert at[0] == at[199] == 1
    assert at[200] == pytest.approx(0.01 ** (1 / 200))
    assert at[299] == pytest.approx(0.1)
    assert at[399] == pytest.approx(0.01)
    assert constant_then_exponential(7, constant=8, decay=0) == 1


# Evaluation


def test_nearest_neighbours_label_worked_out_by_hand() -> None:
    train_x = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    test_x = torch.tensor([[1.0, 1.0], [9.0, 2.0], [4.0, 7.0], [6.0, 1.0]])
    labels = torch.tensor([7, 8, 9])
    accuracy = nearest_neighbour_accuracy(train_x, labels, test_x, torch.tensor([7, 8, 9, 7]))
    assert accuracy == 3 / 4  # the last is 4.1 from the second and 6.1 from the first


def test_nearest_neighbours_are_those_of_a_slow_loop(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "DISTANCES", 150)  # three test rows at a time
    train_x = torch.randn(50, 3, generator=generator) + 1_000  # far from the origin
    test_x = torch.randn(20, 3, generator=generator) + 1_000
    labels = torch.arange(50)
    slow = torch.tensor(
        [min(range(50), key=lambda i: float((q - train_x[i]).norm())) for q in test_x]
    )
    assert nearest_neighbour_accuracy(train_x, labels, test_x, slow) == 1
    assert nearest_neighbour_accuracy(train_x, labels, test_x, (slow + 1) % 50) == 0


def test_linear_probe_finds_what_a_line_separates_and_not_what_it_cannot() -> None:
    corners = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).repeat(10, 1)
    line, exclusive_or = corners[:, 0].long(), (corners[:, 0] != corners[:, 1]).long()
    assert linear_probe_accuracy(corners, line, corners, line) == 1
    assert linear_probe_accuracy(corners, exclusive_or, corners, exclusive_or) <= 0.75


def test_reconstruction_error_worked_out_by_hand() -> None:
    x = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    x[1] = 255
    rebuilt = torch.full_like(x, 51)  # 0.2: distances sqrt(4) * 0.2, 0.8, 0.2
    error, baseline = reconstruction_error(x, rebuilt, torch.tensor([2, 0, 1]))
    assert error == pytest.approx((0.4 + 1.6 + 0.4) / 3)
    assert baseline == pytest.approx(error)  # all reconstructions are alike
    own, another = reconstruction_error(x, x, torch.tensor([0, 1, 2]))
    assert own == 0
    assert another == pytest.approx((2 + 2 + 0) / 3)  # pairs (1, 0), (2, 1), (0, 2)


def test_grid_puts_images_row_by_row() -> None:
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 2, 2)
    grid = image_grid(images, 2)
    assert grid.shape == (5, 5, 3)
    assert grid.dtype == np.uint8
    assert [grid[0, 0, 0], grid[0, 4, 2], grid[4, 0, 1], grid[4, 4, 0]] == [0, 1, 2, 3]
    assert (grid[2] == 128).all()
    assert (grid[:, 2] == 128).all()


@EVERY_MODEL
def test_evaluation_comes_first_last_and_every_so_often(model: str) -> None:
    rows = list(training(model, epochs=5, eval_every=2).epochs())
    assert [row["epoch"] for row in rows if "recon_l2" in row] == [1, 2, 4, 5]
    last = rows[-1]
    side = SMALL[model]["size"]
    for image in last["images"].values():
        assert image.shape == (10 * (side + 1) - 1, 10 * (side + 1) - 1, 1)
        assert image.dtype == np.uint8
    assert 0 <= last["nn_features"] <= 1
    assert 0 < last["recon_l2"] < side


@EVERY_MODEL
def test_how_often_a_training_is_evaluated_does_not_change_it(model: str) -> None:
    runs = [training(model, eval_every=every) for every in (1, 100)]
    losses = [[row["d_loss"] for row in run.epochs()] for run in runs]
    assert losses[0] == losses[1]
    first, second = (run.players.networks.state_dict() for run in runs)
    trained = [k for k in first if "running" not in k and "num_batches" not in k]
    assert all(torch.equal(first[k], second[k]) for k in trained)


def test_images_without_labels_have_a_reconstruction_error_and_no_accuracy() -> None:
    data = two_kinds(8)._replace(num_classes=1)
    run = make_training("bigan", data, **SMALL["bigan"] | TINY_RUN)
    metrics = run.run_epoch()
    assert "recon_l2" in metrics
    assert not [key for key in metrics if key.startswith(("nn_", "probe_"))]


@pytest.mark.slow
def test_bigan_learns_to_rebuild_an_image_of_the_right_kind() -> None:
    values: dict[str, Any] = {"size": 8, "width": 64, "z_dim": 8, "lr": 1e-3, "batch_size": 64}
    values |= {"epochs": 60, "eval_every": 60, "statistics_batches": 50}
    run = make_training("bigan", two_kinds(8, 512, 128), **values)
    first, last = next(run.epochs()), list(run.epochs())[-1]
    assert first["recon_l2"] / first["recon_l2_baseline"] > 0.95
    assert last["recon_l2"] / last["recon_l2_baseline"] < 0.75
    assert last["nn_features"] == 1


# State


def kept(state: dict[str, Any]) -> dict[str, Any]:
    """The state as a checkpoint returns it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def figures(run: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in run.epochs()]


@EVERY_MODEL
def test_resumed_training_equals_the_uninterrupted_one(model: str) -> None:
    whole = figures(training(model))
    run = training(model)
    begun = [run.run_epoch() for _ in range(3)]  # odd: BigBiGAN's turns do not fall on epochs
    other = training(model)
    other.load_state_dict(kept(run.state_dict()))
    rest = figures(other)
    assert [row["epoch"] for row in begun] + [row["epoch"] for row in rest] == [1, 2, 3, 4]
    assert rest == whole[3:]


@EVERY_MODEL
def test_same_seed_same_training_other_seed_another(model: str) -> None:
    state = torch.get_rng_state()
    first, second, other = (figures(training(model, epochs=1, seed=s)) for s in (0, 0, 1))
    assert first == second
    assert first[0]["d_loss"] != other[0]["d_loss"]
    assert torch.equal(torch.get_rng_state(), state)  # the caller's randomness is its own


def test_state_of_other_images_is_refused() -> None:
    run = training("bigan")
    data = two_kinds(run.settings.size)
    other = make_training(
        "bigan", data._replace(train_x=255 - data.train_x), **SMALL["bigan"] | TINY_RUN
    )
    with pytest.raises(ValueError, match="Expected the state of a training on the images .*, got"):
        other.load_state_dict(run.state_dict())


def test_state_of_other_settings_is_refused() -> None:
    state = training("bigan").state_dict()
    with pytest.raises(ValueError, match=r"with lr 0.1, got 0.0002\. Resume with the settings"):
        training("bigan", lr=0.1).load_state_dict(state)


def test_loss_that_is_no_number_ends_the_training() -> None:
    with pytest.raises(FloatingPointError, match=r"was nan in epoch 1\. Lower lr\."):
        training("bigan", lr=1e38).run_epoch()


def test_batches_are_of_one_size_and_cover_all_images() -> None:
    run = training("bigan")
    batches = list(run._batches(torch.Generator().manual_seed(0)))
    assert [len(x) for x in batches] == [16, 16, 16]  # 40 images, and 8 of them twice
    seen = {tuple(x.flatten().tolist()) for batch in batches for x in batch}
    assert len(seen) == 40


# Settings and data


@pytest.mark.parametrize(
    ("model", "values", "text"),
    [
        ("gan", {}, "Unknown model 'gan'. Available: bigan, bigbigan."),
        ("bigan", {"d_steps": 2}, "bigan has no setting d_steps. It has epochs, batch_size, lr,"),
        ("bigbigan", {"weight_decay": 0.1}, "bigbigan has no setting weight_decay."),
        ("bigan", {"epochs": 0}, "epochs must be 1 or more, got 0."),
        ("bigan", {"batch_size": 1}, "batch_size must be 2 or more, got 1."),
        ("bigan", {"lr": 0.0}, "lr must be a finite number above 0, got 0.0."),
        ("bigan", {"lr": math.nan}, "lr must be a finite number above 0, got nan."),
        ("bigan", {"beta1": 1.0}, "beta1 must be in [0, 1), got 1.0."),
        ("bigan", {"decay_share": 1.1}, "decay_share must be in [0, 1], got 1.1."),
        ("bigan", {"weight_decay": -1.0}, "weight_decay must be 0 or more, got -1.0."),
        ("bigan", {"seed": -1}, "seed must be 0 or more, got -1."),
        ("bigbigan", {"ema": 1.0}, "ema must be in [0, 1), got 1.0."),
        ("bigbigan", {"size": 48}, "size of bigbigan must be 32, 64, 128, got 48."),
        ("bigbigan", {"channels": 0}, "channels must be 1 or more, got 0."),
    ],
)
def test_wrong_settings_say_what_to_do(model: str, values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as error:
        make_settings(model, **values)
    assert text in str(error.value)


def test_images_that_do_not_fit_are_refused() -> None:
    settings = make_settings("bigan", size=8, batch_size=41)
    with pytest.raises(ValueError, match=r"at most the number of training images, 40, got 41\."):
        check_data(two_kinds(8), settings)
    with pytest.raises(ValueError, match="Expected images of 8x8, got 10x10"):
        check_data(two_kinds(10), settings)


def test_28_pixels_become_32_by_a_border_and_64_by_resizing() -> None:
    data = two_kinds(28)
    bordered = fit_size(data, 32).train_x
    assert torch.equal(bordered[:, :, 2:-2, 2:-2], data.train_x)
    assert int(F.pad(data.train_x, [2] * 4).sum()) == int(bordered.sum())
    larger = fit_size(data, 64)
    assert (larger.test_x.shape, larger.test_x.dtype) == ((20, 1, 64, 64), torch.uint8)
    assert fit_size(data, 28).train_x is data.train_x


def write_images(folder: Path, colours: dict[str, int], count: int = 10) -> None:
    """Writes `count` images of one grey for each class, wider than high."""
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.full((20, 30, 3), colour, np.uint8)
            pixels[:, :5] = pixels[:, -5:] = 77  # cut off by the centre square
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_folder_of_classes_is_cropped_and_a_tenth_of_it_is_for_testing(tmp_path: Path) -> None:
    write_images(tmp_path, {"dark": 10, "light": 200})
    data = load_folder(tmp_path, 32)
    assert (data.train_x.shape, data.test_x.shape) == ((18, 3, 32, 32), (2, 3, 32, 32))
    assert sorted(data.test_y.tolist()) == [0, 1]
    for x, y in itertools.chain(
        zip(data.train_x, data.train_y, strict=True), zip(data.test_x, data.test_y, strict=True)
    ):
        assert set(x.flatten().tolist()) == {(10, 200)[int(y)]}


def test_folders_train_and_test_are_taken_as_they_are(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 1, "b": 2}, 3)
    write_images(tmp_path / "val", {"a": 3, "b": 4}, 1)
    data = load_folder(tmp_path, 32)
    assert (len(data.train_x), data.test_x[:, 0, 0, 0].tolist()) == (6, [3, 4])
    (tmp_path / "val" / "b").rename(tmp_path / "val" / "c")
    with pytest.raises(ValueError, match=r"the classes of .*train, a, b, got a, c\."):
        load_folder(tmp_path, 32)


def test_class_folder_that_is_a_link_is_a_class(tmp_path: Path) -> None:
    write_images(tmp_path / "root", {"a": 1, "b": 2})
    write_images(tmp_path / "disk", {"c": 3})
    (tmp_path / "root" / "c").symlink_to(tmp_path / "disk" / "c")
    assert load_folder(tmp_path / "root", 32).num_classes == 3


def test_folder_without_classes_has_one(tmp_path: Path) -> None:
    write_images(tmp_path, {".": 9})
    assert load_folder(tmp_path, 32).num_classes == 1


def test_wrong_folders_are_refused_with_the_files_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No folder"):
        load_folder(tmp_path / "gone", 32)
    with pytest.raises(FileNotFoundError, match=r"Expected images \(\.bmp, .* found none"):
        load_folder(tmp_path, 32)
    write_images(tmp_path, {"a": 1, "b": 2}, 3)
    with pytest.raises(ValueError, match=r"at least 20 images below .*got 6\."):
        load_folder(tmp_path, 32)
    write_images(tmp_path, {"a": 1, "b": 2})
    (tmp_path / "a" / "broken.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        load_folder(tmp_path, 32)
    (tmp_path / "a" / "broken.png").rename(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png stands beside folders of classes\."):
        load_folder(tmp_path, 32)
