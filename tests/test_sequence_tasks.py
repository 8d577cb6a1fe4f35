"""Jigsaw and the tasks on sequences beside their sources: tables, closed forms, known numbers."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayssl.networks import make_atari_network
from rayssl.tasks import (
    Encoder,
    Sequences,
    SequenceTask,
    TrunkShape,
    make_any_task,
    make_task,
)
from rayssl.tasks.atc import AtcHead
from rayssl.tasks.curl import CurlHead
from rayssl.tasks.inverse import InverseHead
from rayssl.tasks.jigsaw import distant_permutations, shuffle, to_tiles
from rayssl.tasks.order_verification import OrderHead
from rayssl.tasks.spr import SprHead, normalized


def task_of(name: str) -> SequenceTask:
    task = make_any_task(name)
    assert isinstance(task, SequenceTask)
    return task


def numbered(num_steps: int, batch: int = 1, stack: int = 4, size: int = 6) -> Sequences:
    """Frame t of a game is filled with t + 1; sample i starts 20 * i frames later."""
    first = 1 + 20 * torch.arange(batch)[:, None, None]
    frames = first + torch.arange(num_steps + 1)[:, None] + torch.arange(stack)
    obs = frames[..., None, None].expand(-1, -1, -1, size, size).to(torch.uint8).contiguous()
    steps = torch.arange(num_steps).expand(batch, -1).contiguous()
    return Sequences(obs, steps, steps.float(), torch.ones(batch, num_steps, dtype=torch.bool))


def encoder(head: Any, features: Callable[[Tensor], Tensor] | None = None) -> Encoder:
    """The newest frame's number is the only feature, unless said otherwise."""
    found = features or (lambda x: x[:, -1, 0, :1].float())
    return Encoder(found, lambda x: found(x)[..., None, None], lambda x: x.flatten(1), head)


# Jigsaw (Noroozi & Favaro 2016)


def test_jigsaw_puts_tile_number_p_of_j_in_place_j() -> None:
    x = torch.arange(9, dtype=torch.uint8).view(3, 3).repeat_interleave(2, 0)
    x = x.repeat_interleave(2, 1)[None, None]  # 6x6: tile t is filled with t
    order = torch.tensor([[8, 0, 1, 2, 3, 4, 5, 6, 7]])
    assert shuffle(x, order)[0, 0].tolist() == [
        [8, 8, 0, 0, 1, 1], [8, 8, 0, 0, 1, 1],
        [2, 2, 3, 3, 4, 4], [2, 2, 3, 3, 4, 4],
        [5, 5, 6, 6, 7, 7], [5, 5, 6, 6, 7, 7],
    ]  # fmt: skip


def test_jigsaw_keeps_every_pixel_of_84_and_blanks_the_last_row_and_column_of_28() -> None:
    for size, kept in ((84, 84), (28, 27), (29, 27)):
        draws = torch.Generator().manual_seed(size)
        x = torch.randint(1, 256, (1, 1, size, size), dtype=torch.uint8, generator=draws)
        x_hat, _ = make_task("jigsaw").every_class(x)
        for image in x_hat:
            assert not image[:, kept:].any()
            assert not image[:, :, kept:].any()
            tiles, own = to_tiles(image[None])[0], to_tiles(x)[0]
            assert Counter(t.numpy().tobytes() for t in tiles) == Counter(
                t.numpy().tobytes() for t in own
            )


def test_jigsaw_permutations_are_chosen_greedily_by_least_and_then_by_summed_distance() -> None:
    every = list(itertools.permutations(range(4)))

    def distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        return sum(i != j for i, j in zip(a, b, strict=True))

    chosen = [every[0]]
    while len(chosen) < 7:
        left = [order for order in every if order not in chosen]
        distances = {order: [distance(order, c) for c in chosen] for order in left}
        chosen.append(max(left, key=lambda order: (min(distances[order]), sum(distances[order]))))
    assert distant_permutations(4, 7) == tuple(chosen)
    assert chosen[0] == (0, 1, 2, 3)


def test_jigsaw_has_30_different_permutations_that_are_far_apart() -> None:
    orders = distant_permutations(9, 30)
    assert orders[0] == tuple(range(9))
    assert len(set(orders)) == make_task("jigsaw").num_classes == 30
    apart = [sum(map(int.__ne__, a, b)) for a, b in itertools.combinations(orders, 2)]
    assert min(apart) >= 7
    assert sum(apart) / len(apart) > 8.2  # two random permutations differ in 8 of 9 places


def test_jigsaw_uses_an_image_if_and_only_if_no_two_permutations_look_alike() -> None:
    task = make_task("jigsaw")
    kinds = torch.Generator().manual_seed(0)
    used = []
    for high in (1, 2, 2, 2, 3, 3, 4, 9, 200):
        x = torch.randint(high, (1, 1, 3, 3), generator=kinds)  # tiles of one pixel, many equal
        x_hat, _ = task.every_class(x)
        used.append(bool(task.usable(x)))
        assert used[-1] == (len(x_hat.unique(dim=0)) == task.num_classes)
    assert True in used
    assert False in used


@pytest.mark.parametrize("shape", [(2, 4, 2, 9), (4, 9, 9)])
def test_jigsaw_refuses_what_has_no_nine_tiles(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Jigsaw needs images \[B, C, H, W\] of 3x3 pixels"):
        make_task("jigsaw").usable(torch.zeros(shape))


# Inverse dynamics (Pathak et al. 2017)


def test_inverse_asks_for_the_action_between_two_observations() -> None:
    asked = []

    def head(before: Tensor, after: Tensor) -> Tensor:
        asked.append((before.flatten().tolist(), after.flatten().tolist()))
        return torch.tensor([[0.0, math.log(3), 0.0], [0.0, math.log(3), 0.0]])

    task, data = task_of("inverse"), numbered(1, batch=2)
    data = data._replace(actions=torch.tensor([[1], [2]]))
    drawn = task.draw(data, generator=torch.Generator())
    found = task.loss(encoder(head), None, drawn)
    assert asked == [([4, 24], [5, 25])]  # the newest frames at t and at t + 1
    assert found.loss.tolist() == pytest.approx([math.log(5 / 3), math.log(5)])
    assert found.correct.tolist() == [1, 0]
    assert task.chance(num_actions=6, batch_size=32) == 1 / 6


# Reward prediction (Jaderberg et al. 2017)


def test_reward_classes_are_the_signs_and_half_of_the_rows_have_one() -> None:
    task = task_of("reward")
    data = numbered(1, batch=3)._replace(rewards=torch.tensor([[-5.0], [0.0], [0.25]]))
    obs, classes = task.draw(data, generator=torch.Generator())
    assert classes.tolist() == [0, 1, 2]
    assert torch.equal(obs, data.obs[:, 0])  # what was seen before the reward came
    assert task.rewarding_share == 0.5
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 9, 0]])
    found = task.loss(encoder(lambda features: logits), None, (obs, classes))
    assert found.correct.tolist() == [1, 1, 0]


# Order verification (Misra et al. 2016)


def test_order_is_right_for_bcd_and_wrong_where_a_or_e_stands_in_the_middle() -> None:
    task, data = task_of("order-verification"), numbered(1, batch=4000)
    data = Sequences(*(each[:1].expand(4000, *each.shape[1:]) for each in data))
    triples, labels = task.draw(data, generator=torch.Generator().manual_seed(0))
    letters = triples[:, :, 0, 0, 0].tolist()
    found = Counter(
        ("".join("_abcde"[i] for i in row), label)
        for row, label in zip(letters, labels.tolist(), strict=True)
    )
    assert set(found) == {
        ("bcd", 1), ("dcb", 1), ("bad", 0), ("dab", 0), ("bed", 0), ("deb", 0),
    }  # fmt: skip
    for (_, label), count in found.items():
        expected = 1000 if label else 500
        assert abs(count - expected) < 5 * expected**0.5
    assert triples.shape == (4000, 3, 4, 6, 6)
    assert torch.equal(triples, triples[:, :, :1].expand_as(triples))  # a frame fills its channels


def test_order_shows_the_head_three_frames_that_were_encoded_one_by_one() -> None:
    def head(features: Tensor) -> Tensor:
        assert features.tolist() == [[[2], [3], [4]], [[4], [1], [2]]]
        return torch.zeros(2, 2)

    stacked = torch.tensor([[2, 3, 4], [4, 1, 2]])[:, :, None, None, None].expand(2, 3, 4, 6, 6)
    found = task_of("order-verification").loss(encoder(head), None, (stacked, torch.tensor([1, 0])))
    assert found.loss.tolist() == pytest.approx([math.log(2)] * 2)


def test_order_of_frames_that_are_blank_or_equal_is_not_asked_for() -> None:
    task, data = task_of("order-verification"), numbered(1, batch=5)
    data.obs[1, 0, 0] = 0  # padding at a game's start
    data.obs[2, 0, 1] = data.obs[2, 1, 3]  # b and e
    data.obs[3, 0, 3] = data.obs[3, 0, 2]  # c and d
    data.mask[4] = False
    assert task.usable(data).tolist() == [True, False, False, False, False]


# Batch normalization before the heads (Misra et al. in the network; Burda et al. 2019)


@pytest.mark.parametrize(
    ("head", "shapes"),
    [(OrderHead(8), [(64, 3, 8)]), (InverseHead(8, 6), [(64, 8)] * 2), (CurlHead(8), [(64, 8)])],
    ids=["order-verification", "inverse", "curl"],
)
def test_heads_see_how_samples_differ_not_what_they_share(
    head: nn.Module, shapes: list[tuple[int, ...]], generator: torch.Generator
) -> None:
    features = [torch.randn(shape, generator=generator) for shape in shapes]
    nearly_alike = [10 + each / 10 for each in features]
    with torch.no_grad():
        expected = head(*features)
        torch.testing.assert_close(head(*nearly_alike), expected, rtol=0.01, atol=0.01)
    assert expected.std(0).max() > 0.05


# CURL (Laskin et al. 2020)


def test_curl_of_views_that_tell_nothing_is_log_b() -> None:
    head = CurlHead(1)
    obs = torch.ones(8, 4, 6, 6)
    found = task_of("curl").loss(encoder(head), encoder(head), (obs, obs))
    assert found.loss.tolist() == pytest.approx([math.log(8)] * 8, rel=1e-5)


def test_curl_compares_queries_and_keys_by_a_tenth_of_their_bilinear_form() -> None:
    class Codes(nn.Module):
        bilinear = torch.diag(torch.tensor([20.0, 30.0]))

        def forward(self, features: Tensor) -> Tensor:
            return torch.eye(2)  # two samples, two orthogonal codes

    obs = torch.ones(2, 4, 6, 6)
    found = task_of("curl").loss(encoder(Codes()), encoder(Codes()), (obs, obs))
    # logits 2 and 0; 0 and 3
    expected = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-3))]
    assert found.loss.tolist() == pytest.approx(expected)
    assert found.correct.tolist() == [1, 1]


def test_curl_views_are_two_different_shifts_of_the_observation() -> None:
    x = torch.arange(20 * 20).view(1, 1, 1, 20, 20).expand(64, 1, 4, 20, 20)
    data = numbered(0)._replace(obs=x)
    views, others = task_of("curl").draw(data, generator=torch.Generator().manual_seed(0))
    inner = [v[:, 0, 8:12, 8:12] - x[:, 0, 0, 8:12, 8:12] for v in (views, others)]
    for moved in inner:  # pixel numbers differ by a constant: a shift of the whole
        assert (moved == moved[:, :1, :1]).all()
        assert moved.abs().max() <= 4 * 20 + 4
    assert (inner[0] != inner[1]).any()
    assert task_of("curl").target_rate == 0.001


# ATC (Stooke et al. 2021)


def test_atc_contrasts_an_observation_with_the_one_three_steps_later() -> None:
    task, data = task_of("atc"), numbered(3, batch=2)
    assert (task.num_steps, task.target_rate) == (3, 0.01)
    now, later = task.draw(data, generator=torch.Generator().manual_seed(0))
    assert now[:, -1, 3, 3].tolist() == [4, 24]
    assert later[:, -1, 3, 3].tolist() == [7, 27]
    data.mask[1, 2] = False
    assert task.usable(data).tolist() == [True, False]


def test_atc_similarity_is_bilinear_in_a_residual_prediction() -> None:
    head = AtcHead(1)
    generator = torch.Generator().manual_seed(0)
    anchors, positives = torch.randn(2, 5, 256, generator=generator)
    with torch.no_grad():
        head.bilinear.weight.copy_(torch.eye(256))
        for parameter in head.predictor.parameters():
            parameter.zero_()
    torch.testing.assert_close(head.similarity(anchors, positives), anchors @ positives.T)
    with torch.no_grad():
        list(head.predictor.parameters())[-1].fill_(2.0)  # the last bias
    torch.testing.assert_close(head.similarity(anchors, positives), (anchors + 2) @ positives.T)


def test_atc_shifts_a_tenth_of_the_observations() -> None:
    x = torch.arange(20 * 20).view(1, 1, 1, 20, 20).expand(2000, 4, 4, 20, 20)
    data = numbered(3)._replace(obs=x)
    now, later = task_of("atc").draw(data, generator=torch.Generator().manual_seed(0))
    for view in (now, later):
        moved = int((view[:, 0, 10, 10] != x[0, 0, 0, 10, 10]).sum())
        assert abs(moved - 200 * 80 / 81) < 5 * 200**0.5
    assert (now[:, 0, 10, 10] != later[:, 0, 10, 10]).any()


# SPR (Schwarzer et al. 2021)


class KnownFuture(nn.Module):
    """Predictions are codes of the samples, as are the targets: e_i for sample i."""

    def __init__(self, codes: Tensor, targets: Tensor) -> None:
        super().__init__()
        self.codes, self.targets = codes, targets
        self.norm = nn.Identity()

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        return latents

    def predictor(self, projected: Tensor) -> Tensor:
        return self.codes

    def projection(self, features: Tensor) -> Tensor:
        return self.targets.repeat_interleave(len(features) // len(self.targets), 0)


def spr_loss(codes: Tensor, targets: Tensor, mask: Tensor | None = None) -> tuple[Any, Any]:
    data = numbered(5, batch=len(codes))
    head = KnownFuture(codes, targets)
    known = torch.ones(len(codes), 5, dtype=torch.bool) if mask is None else mask
    drawn = (data.obs, data.actions, known)
    found = task_of("spr").loss(encoder(head), encoder(head), drawn)
    return found.loss.tolist(), found.correct.tolist()


def test_spr_distance_is_0_for_what_came_4_for_its_opposite_and_2_at_right_angles() -> None:
    e = torch.eye(3)
    assert spr_loss(7 * e, e) == ([0, 0, 0], [1, 1, 1])
    assert spr_loss(-e, e)[0] == [4, 4, 4]
    assert spr_loss(e.roll(1, 0), e) == ([2, 2, 2], [0, 0, 0])


def test_spr_is_right_by_what_samples_do_not_share() -> None:
    e = torch.eye(3)
    assert spr_loss(e + 100, e + torch.tensor([50, 0, 0]))[1] == [1, 1, 1]
    assert spr_loss(e.roll(1, 0) + 100, e + 100)[1] == [0, 0, 0]


def test_spr_representations_that_collapse_have_the_loss_of_chance_and_are_never_right() -> None:
    head = SprHead(TrunkShape(2, (2, 1, 1)), num_actions=6)

    def alike(x: Tensor) -> Tensor:
        return torch.ones(len(x), 2)

    with torch.no_grad():
        head.predictor.bias.zero_()
        data = numbered(5, batch=4)
        found = task_of("spr").loss(
            encoder(head, alike)._replace(features_of_map=alike), encoder(head, alike),
            (data.obs, data.actions, data.mask),
        )  # fmt: skip
    assert found.loss.tolist() == [2] * 4
    assert found.correct.tolist() == [0] * 4


def test_spr_counts_no_step_beyond_the_end_of_a_game() -> None:
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    losses, correct = spr_loss(-torch.eye(2), torch.eye(2), mask)
    assert losses == pytest.approx([4, 4 * 2 / 5])
    assert correct == [0, 0]
    assert spr_loss(torch.eye(2), torch.eye(2), mask)[1] == [1, 1]


def test_spr_prediction_depends_on_the_action_and_stays_in_0_to_1() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = SprHead(TrunkShape(16, (8, 5, 5)), num_actions=4)
    maps = torch.rand(4, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    predicted = [head(maps, torch.full((4,), action)) for action in (0, 1)]
    assert predicted[0].shape == maps.shape
    assert not torch.equal(*predicted)
    for each in predicted:
        assert torch.equal(each, normalized(each))
        assert each.amin() == 0
        assert each.amax() == 1


@pytest.mark.parametrize(
    ("name", "trained"),
    [("nature", {"backbone.fc.0.weight"}), ("paper-code", {"heads.aux.projection.weight"})],
)
def test_spr_projects_by_the_layer_that_q_learning_trains(name: str, trained: set[str]) -> None:
    network = make_atari_network(name, num_actions=3, aux_task="spr", size=36)
    encoder = network.encoder(dict(network.named_parameters()), "aux")
    data = numbered(5, batch=4, size=36)
    drawn = (data.obs, data.actions % 3, data.mask)
    task_of("spr").loss(encoder, encoder, drawn).loss.sum().backward()
    moved = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained <= moved
    assert ("heads.aux.projection.weight" in moved) == (name == "paper-code")


def test_spr_normalizes_each_sample_by_its_own_least_and_largest_value() -> None:
    x = torch.tensor([[1.0, 2, 5], [0, 0, 0]])[:, :, None, None]
    assert normalized(x).flatten(1).tolist() == [[0, 0.25, 1], [0, 0, 0]]
