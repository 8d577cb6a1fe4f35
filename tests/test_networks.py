"""f, g and h: printed sizes, what the heads share, and what an update leaves alone."""

import copy
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.backbones.atari import (
    CONVOLUTIONS,
    TRUNKS,
    AtariTrunk,
    _channels_last,
    available_networks,
    make_trunk,
)
from rayssl.losses import double_q_td_error, pretext_loss, td_loss
from rayssl.networks import (
    ClassHead,
    DuelingHead,
    MultiHeadNetwork,
    OutputLinear,
    make_atari_network,
    make_mnist_network,
)

EVERY_NETWORK = pytest.mark.parametrize("name", available_networks())


@cache
def first_network(name: str, aux_classes: int, seed: int) -> MultiHeadNetwork:
    torch.manual_seed(seed)
    return make_atari_network(name, num_actions=6, aux_classes=aux_classes)


def network(name: str, *, aux_classes: int = 4, seed: int = 0) -> MultiHeadNetwork:
    """A network for Pong's 6 actions as its seed makes it; a copy, for drawing weights is slow."""
    return copy.deepcopy(first_network(name, aux_classes, seed))


def frames(batch: int, generator: torch.Generator) -> Tensor:
    """States of noise, uint8 `[B, 4, 84, 84]`."""
    return torch.randint(256, (batch, 4, 84, 84), dtype=torch.uint8, generator=generator)


def conv_shapes(trunk: AtariTrunk, size: int = 84) -> list[tuple[int, ...]]:
    """What each convolution gives for one state, `(channels, height, width)`."""
    shapes: list[tuple[int, ...]] = []
    for conv in trunk.convs:
        conv.register_forward_hook(lambda _m, _x, y: shapes.append(tuple(y.shape[1:])))
    trunk(torch.zeros(1, 4, size, size, dtype=torch.uint8))
    return shapes


def layers(net: nn.Module, branch: str) -> list[str]:
    """The layers of a part of a network, `in -> out` of a linear one, the name of others."""
    return [
        f"{layer.in_features} -> {layer.out_features}"
        if isinstance(layer, nn.Linear)
        else type(layer).__name__
        for layer in net.get_submodule(branch).children()
    ]


def linear(branch: nn.Sequential) -> nn.Linear:
    """The last layer of a branch."""
    last = branch[-1]
    assert isinstance(last, nn.Linear)
    return last


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# The printed sizes


def test_there_are_three_networks() -> None:
    assert available_networks() == ["nature", "paper-code", "paper-text"]


def test_nature_has_the_sizes_that_mnih_et_al_print() -> None:
    net = network("nature")
    trunk = net.backbone
    assert isinstance(trunk, AtariTrunk)
    assert conv_shapes(trunk) == [(32, 20, 20), (64, 9, 9), (64, 7, 7)]
    assert layers(trunk, "fc") == ["3136 -> 512"]
    assert trunk.out_features == 512
    assert layers(net, "heads.q.advantage") == ["512 -> 6"]
    assert layers(net, "heads.q.value") == ["512 -> 1"]
    assert layers(net, "heads.aux.logits") == ["512 -> 4"]


def test_nature_has_169_million_parameters() -> None:
    convolutions = (32 * 4 * 8 * 8 + 32) + (64 * 32 * 4 * 4 + 64) + (64 * 64 * 3 * 3 + 64)
    fc, head = 3136 * 512 + 512, (512 * 6 + 6) + (512 * 1 + 1)
    assert count(network("nature", aux_classes=0)) == convolutions + fc + head == 1_687_719


def test_paper_code_has_the_sizes_of_the_authors_padded_convolutions() -> None:
    trunk, spec = make_trunk("paper-code")
    assert conv_shapes(trunk) == [(32, 21, 21), (64, 11, 11), (64, 11, 11)]
    assert len(trunk.fc) == 0
    assert trunk.out_features == 64 * 11 * 11 == 7744
    assert spec.branch_hidden == 256


def test_paper_code_has_three_parallel_branches_of_256_units() -> None:
    net = network("paper-code")
    assert layers(net, "heads.q.advantage") == ["7744 -> 256", "ReLU", "256 -> 6"]
    assert layers(net, "heads.q.value") == ["7744 -> 256", "ReLU", "256 -> 1"]
    assert layers(net, "heads.aux.logits") == ["7744 -> 256", "ReLU", "256 -> 4"]


def test_paper_text_shares_3_cnn_layers_followed_by_3_fully_connected_layers() -> None:
    net = network("paper-text")
    trunk = net.backbone
    assert isinstance(trunk, AtariTrunk)
    assert conv_shapes(trunk) == [(32, 20, 20), (64, 9, 9), (64, 7, 7)]
    assert layers(trunk, "fc") == ["3136 -> 256", "256 -> 256", "256 -> 256"]
    assert layers(net, "heads.q.advantage") == ["256 -> 6"]
    assert layers(net, "heads.aux.logits") == ["256 -> 4"]


@EVERY_NETWORK
def test_outputs_have_one_column_per_action_and_per_class(
    name: str, generator: torch.Generator
) -> None:
    net, x = network(name), frames(3, generator)
    assert net(x, "q").shape == (3, 6)
    assert net(x, "aux").shape == (3, 4)


def test_without_a_task_there_is_no_aux_head() -> None:
    assert list(network("nature", aux_classes=0).heads) == ["q"]


@pytest.mark.parametrize(("stack", "size"), [(1, 84), (4, 42), (2, 63), (4, 36)])
@EVERY_NETWORK
def test_networks_take_other_stacks_and_frame_sizes(name: str, stack: int, size: int) -> None:
    net = make_atari_network(name, num_actions=3, aux_classes=2, stack=stack, size=size)
    x = torch.zeros(2, stack, size, size, dtype=torch.uint8)
    assert net(x, "q").shape == (2, 3)
    assert net(x, "aux").shape == (2, 2)


# TensorFlow's 'SAME' padding


def slow_same_convolution(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 'SAME' convolution of one image, pixel by pixel, as TensorFlow's manual defines it."""
    weight, bias = conv.weight.detach(), conv.bias
    assert bias is not None
    kernel, stride, side = weight.shape[-1], conv.stride[0], x.shape[-1]
    out = math.ceil(side / stride)
    pad_along = max((out - 1) * stride + kernel - side, 0)
    before = pad_along // 2
    y = torch.empty(weight.shape[0], out, out)
    for i in range(out):
        for j in range(out):
            top, left = i * stride - before, j * stride - before
            rows = slice(max(top, 0), min(top + kernel, side))
            columns = slice(max(left, 0), min(left + kernel, side))
            window = torch.zeros(x.shape[0], kernel, kernel)
            window[
                :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
            ] = x[:, rows, columns]
            y[:, i, j] = weight.flatten(1) @ window.flatten() + bias.detach()
    return y


@pytest.mark.parametrize("size", [84, 30])
def test_paper_code_convolutions_equal_same_padding_pixel_by_pixel(
    size: int, generator: torch.Generator
) -> None:
    torch.manual_seed(1)
    trunk, _ = make_trunk("paper-code", size=size)
    x = torch.randint(256, (1, 4, size, size), dtype=torch.uint8, generator=generator)
    slow = x[0] / 255
    for conv in trunk.convs:
        assert isinstance(conv, nn.Conv2d)
        slow = slow_same_convolution(slow, conv).relu()
    torch.testing.assert_close(trunk(x)[0], slow.flatten(), rtol=1e-4, atol=1e-5)


def test_the_odd_pixel_of_same_padding_is_last() -> None:
    # left, right, top, bottom: 84 -> 21 pads 4, 21 -> 11 pads 3, 11 -> 11 pads 2
    assert make_trunk("paper-code")[0].pads == [(2, 2, 2, 2), (1, 2, 1, 2), (1, 1, 1, 1)]


@pytest.mark.parametrize("size", [7, 20, 21, 83, 84, 85, 96])
def test_same_padding_gives_the_closed_sizes(size: int) -> None:
    after_first = math.ceil(size / 4)
    after_second = math.ceil(after_first / 2)
    assert [shape[1] for shape in conv_shapes(make_trunk("paper-code", size=size)[0], size)] == [
        after_first,
        after_second,
        after_second,
    ]


# Scaling, dueling, initial weights


def test_uint8_frames_are_scaled_to_0_1_inside() -> None:
    trunk, _ = make_trunk("nature")
    first = trunk.convs[0]
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    nn.init.ones_(first.weight)
    nn.init.constant_(first.bias, 0.5)
    seen: list[Tensor] = []
    first.register_forward_hook(lambda _m, _x, y: seen.append(y))
    trunk(torch.full((1, 4, 84, 84), 255, dtype=torch.uint8))  # 4 frames x 8 x 8 pixels of 1
    trunk(torch.full((1, 4, 84, 84), 51, dtype=torch.uint8))  # 51 / 255 = 0.2
    for y, expected in zip(seen, (256.5, 51.7), strict=True):
        torch.testing.assert_close(y, torch.full((1, 32, 20, 20), expected), rtol=1e-5, atol=0)


def test_first_convolution_equals_one_of_the_divided_frames_in_double_precision(
    generator: torch.Generator,
) -> None:
    trunk, _ = make_trunk("nature")
    first = trunk.convs[0]
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    seen: list[Tensor] = []
    first.register_forward_hook(lambda _m, _x, y: seen.append(y))
    x = frames(2, generator)
    trunk(x)
    by_hand = F.conv2d(x.double() / 255, first.weight.double(), first.bias.double(), stride=4)
    torch.testing.assert_close(seen[0].double(), by_hand, rtol=1e-5, atol=1e-5)


def test_dueling_head_is_value_plus_advantage_minus_mean_advantage() -> None:
    head = DuelingHead(1, 3)
    for branch, weight in ((head.advantage, [[1.0], [2.0], [6.0]]), (head.value, [[5.0]])):
        nn.init.zeros_(linear(branch).bias)
        with torch.no_grad():
            linear(branch).weight.copy_(torch.tensor(weight))
    # A = (1, 2, 6) has mean 3, V = 5; twice the feature, twice of all
    q = head(torch.tensor([[1.0], [2.0]]))
    assert q.tolist() == [[3.0, 4.0, 8.0], [6.0, 8.0, 16.0]]


@pytest.mark.parametrize("hidden", [None, 16])
def test_a_constant_on_all_advantages_changes_nothing_and_one_on_the_value_moves_all(
    hidden: int | None, generator: torch.Generator
) -> None:
    head, features = DuelingHead(8, 6, hidden), torch.randn(5, 8, generator=generator)
    before = head(features)
    with torch.no_grad():
        linear(head.advantage).bias.add_(7)
    torch.testing.assert_close(head(features), before, rtol=0, atol=1e-5)
    with torch.no_grad():
        linear(head.value).bias.add_(7)
    torch.testing.assert_close(head(features), before + 7, rtol=0, atol=1e-5)


def test_mean_q_over_actions_is_the_value(generator: torch.Generator) -> None:
    head, features = DuelingHead(8, 6, 16), torch.randn(5, 8, generator=generator)
    torch.testing.assert_close(head(features).mean(1, keepdim=True), head.value(features))


def test_paper_code_starts_from_glorots_uniform_rule_with_biases_of_0() -> None:
    net = network("paper-code")
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.bias is not None
            assert not layer.bias.any()
            receptive = layer.weight[0][0].numel()  # pixels of a filter; 1 in a linear layer
            fans = (layer.weight.shape[0] + layer.weight.shape[1]) * receptive
            bound = math.sqrt(6 / fans)
            assert layer.weight.abs().max() <= bound
            assert layer.weight.abs().max() > 0.8 * bound


@EVERY_NETWORK
def test_arms_of_one_seed_start_from_the_same_agent_with_and_without_a_task(name: str) -> None:
    with_task, without, other = (
        network(name, aux_classes=k, seed=seed).state_dict() for k, seed in ((4, 0), (0, 0), (0, 1))
    )
    assert {key for key in with_task if key not in without} == {
        key for key in with_task if key.startswith("heads.aux.")
    }
    assert all(torch.equal(value, with_task[key]) for key, value in without.items())
    assert not torch.equal(other["backbone.convs.0.weight"], without["backbone.convs.0.weight"])


# "the Q(s, a) prediction module is disabled" (Fig. 6a)


def td_update_loss(net: MultiHeadNetwork, x: Tensor) -> Tensor:
    q_t, a_tm1 = torch.ones(len(x), 6), torch.zeros(len(x), dtype=torch.int64)
    r_t, discount_t, weights = torch.ones(3, len(x))
    return td_loss(double_q_td_error(net(x, "q"), a_tm1, r_t, discount_t, q_t, q_t), weights)


def aux_update_loss(net: MultiHeadNetwork, x: Tensor) -> Tensor:
    return pretext_loss(net(x, "aux"), torch.arange(len(x)))


SHARED_LAYERS = {
    "paper-code": ["convs.0", "convs.1", "convs.2"],
    "paper-text": ["convs.0", "convs.1", "convs.2", "fc.0", "fc.1", "fc.2"],
    "nature": ["convs.0", "convs.1", "convs.2", "fc.0"],
}
OWN_LAYERS = {"paper-code": ["logits.0", "logits.2"], "paper-text": ["logits.0"]}
OWN_LAYERS["nature"] = OWN_LAYERS["paper-text"]


@EVERY_NETWORK
def test_aux_gradient_reaches_exactly_the_shared_layers_and_the_aux_head(
    name: str, generator: torch.Generator
) -> None:
    net = network(name)
    aux_update_loss(net, frames(2, generator)).backward()
    reached = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {
        f"{layer}.{leaf}"
        for layer in [f"backbone.{layer}" for layer in SHARED_LAYERS[name]]
        + [f"heads.aux.{layer}" for layer in OWN_LAYERS[name]]
        for leaf in ("weight", "bias")
    }
    assert all(p.grad is None for p in net.heads["q"].parameters())


@pytest.mark.parametrize(("update", "moves", "rests"), [("aux", "aux", "q"), ("td", "q", "aux")])
@EVERY_NETWORK
def test_an_update_moves_its_own_head_and_the_trunk_and_leaves_the_other_head_bit_equal(
    name: str, update: str, moves: str, rests: str, generator: torch.Generator
) -> None:
    net, x = network(name), frames(2, generator)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    loss = aux_update_loss(net, x) if update == "aux" else td_update_loss(net, x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss.backward()
    optimizer.step()

    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert not any(key.startswith(f"heads.{rests}.") for key in moved)
    assert any(key.startswith(f"heads.{moves}.") for key in moved)
    assert {key for key in before if key.startswith("backbone.")} <= moved


def test_a_call_runs_the_backbone_and_only_the_head_that_is_asked_for() -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            ran.append(self)
            return super().forward(x)

    ran: list[nn.Module] = []
    f, g, h = Named(3, 3), Named(3, 2), Named(3, 4)
    net = MultiHeadNetwork(f, {"q": g, "aux": h})
    net(torch.zeros(1, 3), "aux")
    assert ran == [f, h]
    net(torch.zeros(1, 3), "q")
    assert ran == [f, h, f, g]


# Casting to bfloat16


def test_an_output_layer_does_not_round_two_close_q_values_to_one() -> None:
    layer = OutputLinear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [1.001]]))  # bfloat16 has steps of 1/128 here
        layer.bias.zero_()
    x = torch.ones(1, 1, dtype=torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.float32
    assert (y[0, 1] - y[0, 0]).item() == pytest.approx(0.001, rel=1e-3)
    rounded = F.linear(x, layer.weight.bfloat16())
    assert rounded[0, 1] == rounded[0, 0]


@EVERY_NETWORK
def test_cast_parameters_keep_exactly_the_last_layers_in_float32(name: str) -> None:
    net = network(name)
    last = len(layers(net, "heads.aux.logits")) - 1
    kept = {n for n, p in net.cast_parameters(torch.bfloat16).items() if p.dtype == torch.float32}
    assert kept == {
        f"heads.{branch}.{last}.{leaf}"
        for branch in ("q.advantage", "q.value", "aux.logits")
        for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize("head", ["q", "aux"])
@EVERY_NETWORK
def test_bfloat16_outputs_stay_within_two_percent_of_the_float32_ones(
    name: str, head: str, generator: torch.Generator
) -> None:
    net, x = network(name), frames(2, generator)
    with torch.no_grad():
        exact = net(x, head)
        rough = net.call_with(net.cast_parameters(torch.bfloat16), x, head)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).abs().max() <= 0.02 * exact.abs().max()


@EVERY_NETWORK
def test_a_call_with_the_modules_own_parameters_is_a_plain_call(
    name: str, generator: torch.Generator
) -> None:
    net, x = network(name), frames(2, generator)
    parameters = net.cast_parameters(torch.float32)
    assert torch.equal(net.call_with(parameters, x, "q"), net(x, "q"))


def test_a_call_with_other_parameters_uses_those_and_changes_none(
    generator: torch.Generator,
) -> None:
    net, other, x = network("nature"), network("nature", seed=1), frames(2, generator)
    parameters: dict[str, Tensor] = dict(other.named_parameters())
    assert torch.equal(net.call_with(parameters, x, "q"), other(x, "q"))
    assert torch.equal(net(x, "q"), network("nature")(x, "q"))


@EVERY_NETWORK
def test_gradients_flow_through_the_cast_to_the_float32_originals(
    name: str, generator: torch.Generator
) -> None:
    net, x = network(name), frames(2, generator)
    plain = torch.autograd.grad(net(x, "q").square().mean(), list(net.backbone.parameters()))
    net.call_with(net.cast_parameters(torch.bfloat16), x, "q").square().mean().backward()
    for p in [*net.backbone.parameters(), *net.heads["q"].parameters()]:
        assert p.grad is not None
        assert p.grad.dtype == torch.float32
        assert p.grad.any()
    assert all(p.grad is None for p in net.heads["aux"].parameters())
    cast = torch.cat([p.grad.flatten() for p in net.backbone.parameters() if p.grad is not None])
    cosine = F.cosine_similarity(cast, torch.cat([g.flatten() for g in plain]), dim=0)
    assert cosine > 0.99


# Errors


def test_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match=r"^Unknown network 'resnet'\. Available: nature, paper-code, paper-text\.$",
    ):
        make_atari_network("resnet", num_actions=6, aux_classes=4)


@pytest.mark.parametrize("name", ["nature", "paper-text"])
@pytest.mark.parametrize("size", [1, 7, 35])
def test_frames_too_small_for_the_convolutions_are_refused(name: str, size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^Frames of {size}x{size} are too small .* Use frame_size 36 or more"
    ):
        make_trunk(name, size=size)


def test_36_is_the_smallest_frame_that_unpadded_convolutions_take() -> None:
    # 36 -> 8 -> 3 -> 1
    assert [shape[1] for shape in conv_shapes(make_trunk("nature", size=36)[0], 36)] == [8, 3, 1]


def test_every_trunk_starts_with_the_convolutions_of_mnih_et_al() -> None:
    assert CONVOLUTIONS == ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    for name in TRUNKS:
        convs = [conv for conv in make_trunk(name)[0].convs if isinstance(conv, nn.Conv2d)]
        assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs] == [*CONVOLUTIONS]


def test_class_head_is_one_layer_or_two() -> None:
    assert layers(ClassHead(512, 10), "logits") == ["512 -> 10"]
    assert layers(ClassHead(9216, 10, 128), "logits") == ["9216 -> 128", "ReLU", "128 -> 10"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frames", [1, 4])
def test_frames_packed_into_words_are_cast_bit_for_bit(frames: int, dtype: torch.dtype) -> None:
    x = torch.arange(2 * frames * 36 * 36).remainder(256).to(torch.uint8).view(2, frames, 36, 36)
    last = torch.channels_last
    for view in (x, x.to(memory_format=last), x.rot90(1, (2, 3)), x.flip(1)[:, :, ::2, ::2]):
        cast = _channels_last(view, dtype)
        assert torch.equal(cast, view.to(dtype))
        assert cast.is_contiguous(memory_format=last)


@pytest.mark.parametrize("name", ["paper-code", "paper-text", "nature", "mnist"])
def test_features_of_the_feature_map_are_the_features(
    name: str, generator: torch.Generator
) -> None:
    if name == "mnist":
        network, shape = make_mnist_network(num_classes=10, mean=0.1, std=0.3), (3, 1, 28, 28)
    else:
        network, shape = make_atari_network(name, num_actions=3, aux_classes=4), (3, 4, 84, 84)
    head = "class" if name == "mnist" else "q"
    encoder = network.eval().encoder(dict(network.named_parameters()), head)
    x = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    found = encoder.features_of_map(encoder.feature_map(x))
    torch.testing.assert_close(found, encoder.features(x), rtol=0, atol=0)
