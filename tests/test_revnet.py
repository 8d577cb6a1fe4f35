"""RevNet-50x4 and ResNet-50v2: sizes, the inverse, and gradients without kept activations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.backbones.resnet50v2 import Bottleneck, ResNet50V2, stem
from rayssl.backbones.revnet import (
    ReversibleBlock,
    RevNet50,
    _statistics_untouched,
    pool_and_double_channels,
)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shaken(module: nn.Module, generator: torch.Generator) -> None:
    """Draws every weight, gives BatchNorms values that do something, and casts all to float64."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, generator=generator)
        if isinstance(part, nn.BatchNorm2d):
            for name, tensor in part.state_dict().items():
                if name in ("weight", "running_var"):
                    tensor.uniform_(0.5, 2, generator=generator)
                elif name in ("bias", "running_mean"):
                    tensor.normal_(generator=generator)
    module.double()


def test_revnet50x4_has_85765632_parameters_and_8192_features() -> None:
    network = RevNet50(16)
    # By hand: a block of width h has 17 h^2 / 16 weights and 3 h of BatchNorm.
    blocks = {512: 3, 1024: 4, 2048: 6, 4096: 3}
    by_hand = sum(n * (17 * h * h // 16 + 3 * h) for h, n in blocks.items())
    assert count(network) == 7 * 7 * 3 * 1024 + by_hand + 2 * 8192 == 85_765_632
    assert network.out_features == 8192


def test_resnet50v2_has_torchvisions_convolutions_and_2048_features() -> None:
    network = ResNet50V2()
    assert network.out_features == 2048
    # Of v1's 25,557,032 the last layer goes, the BatchNorms of stem and shortcuts, and those behind
    # each block; one before each block comes, and a last one.
    behind = 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048
    before = 64 + 2 * 256 + 256 + 3 * 512 + 512 + 5 * 1024 + 1024 + 2 * 2048
    v1 = 25_557_032 - 2049 * 1000 - 2 * (64 + 256 + 512 + 1024 + 2048)
    assert count(network) == v1 - 2 * behind + 2 * before + 2 * 2048 == 23_500_352


def test_maps_have_the_sizes_of_the_source_at_256_pixels() -> None:
    with torch.device("meta"):
        network = RevNet50(16).eval()
        x = stem(network.stem, torch.empty(1, 3, 256, 256))
        sizes = [tuple(x.shape[1:])]
        for _ in range(3):
            x = pool_and_double_channels(x)
            sizes.append(tuple(x.shape[1:]))
    assert sizes == [(1024, 64, 64), (2048, 32, 32), (4096, 16, 16), (8192, 8, 8)]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_block_is_undone_by_its_inverse(training: bool, generator: torch.Generator) -> None:
    block = ReversibleBlock(32).train(training)  # four channels in its middle: not all of them dead
    shaken(block, generator)
    x1, x2 = torch.randn(2, 3, 32, 5, 5, generator=generator, dtype=torch.float64)
    y1, y2 = block(x1, x2)
    assert torch.equal(y1, x2)
    assert not torch.allclose(y2, x1)
    found1, found2 = block.inverse(y1, y2)
    assert torch.equal(found2, x2), "one half comes back bit for bit"
    assert (found1 - x1).abs().max() <= 2 * torch.finfo(torch.float64).eps * y2.abs().max()


def test_block_is_undone_exactly_where_sums_are_exact(generator: torch.Generator) -> None:
    block = ReversibleBlock(8).eval()
    for part in block.modules():  # small whole numbers all the way: no sum is rounded
        if isinstance(part, nn.BatchNorm2d):
            part.state_dict()["running_var"].fill_(1 - part.eps)
        if isinstance(part, nn.Conv2d):
            draws = torch.randint(-2, 3, part.weight.shape, generator=generator)
            part.weight.data.copy_(draws)
    x1, x2 = torch.randint(-8, 9, (2, 3, 8, 5, 5), generator=generator).float()
    with torch.no_grad():
        y1, y2 = block(x1, x2)
        assert torch.equal(y2, y2.round())
        assert (y2 - x1).abs().max() > 0
        found1, found2 = block.inverse(y1, y2)
    assert torch.equal(found1, x1)
    assert torch.equal(found2, x2)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradients_equal_plain_autograds(training: bool, generator: torch.Generator) -> None:
    networks = [RevNet50(1, (2, 1, 3, 1), reversible=r) for r in (True, False)]
    shaken(networks[0], generator)
    networks[1].double().load_state_dict(networks[0].state_dict())
    x = torch.randn(3, 3, 64, 64, generator=generator, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in networks]
    outputs = []
    for network, given in zip(networks, inputs, strict=True):
        out = network.train(training)(given)
        out.pow(2).sum().backward()
        outputs.append(out)
    assert torch.equal(*outputs)
    grads = [[p.grad for p in network.parameters()] for network in networks]
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None
        assert theirs is not None
        assert theirs.abs().max() > 0
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11 * float(theirs.abs().max()))
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert torch.allclose(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-12)
    # BatchNorm counts a batch once, although F is computed twice.
    for ours, theirs in zip(networks[0].buffers(), networks[1].buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(m.track_running_stats for m in networks[0].modules() if hasattr(m, "running_mean"))


def test_frozen_weights_still_pass_gradients_to_the_image(generator: torch.Generator) -> None:
    networks = [RevNet50(1, (1, 1, 1, 1), reversible=r).eval() for r in (True, False)]
    networks[1].load_state_dict(networks[0].state_dict())
    grads = []
    for network in networks:
        network.requires_grad_(False)
        x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        network(x).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert grads[0].abs().max() > 0
    assert torch.allclose(grads[0], grads[1], rtol=1e-3, atol=1e-5)


def kept_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes, besides weights, of what autograd keeps from the forward to the backward pass."""
    weights = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
    seen: dict[int, int] = {}
    alive: list[Tensor] = []  # else an address may be given out twice

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    return sum(seen.values())


def test_reversible_stage_keeps_the_same_whatever_its_depth(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 64, 64, generator=generator)
    kept = {
        (reversible, depth): kept_bytes(RevNet50(2, (depth,), reversible=reversible), x)
        for reversible in (True, False)
        for depth in (2, 6)
    }
    one_map = 4 * 2 * 128 * 16 * 16
    assert kept[True, 6] == kept[True, 2]
    assert kept[False, 6] - kept[False, 2] > 4 * one_map, "at least one map for each block"


def test_pooling_pads_channels_on_both_sides_and_rounds_odd_sides_up() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0], [9.0, 10.0, 11.0]]).expand(1, 2, 3, 3)
    found = pool_and_double_channels(x)
    assert found.shape == (1, 4, 2, 2)
    assert found[0, 0].abs().max() == found[0, 3].abs().max() == 0
    assert found[0, 1].tolist() == [[3.5, 5.0], [9.5, 11.0]]  # of 4, 2, 2 and 1 values
    assert torch.equal(found[0, 1], found[0, 2])


def test_stems_pooling_has_a_border_of_zeros_not_of_minus_infinity() -> None:
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(conv.weight, -1.0)
    x = torch.ones(1, 1, 4, 4)
    assert stem(conv, x).tolist() == [[[[0, 0], [0, -1]]]]
    assert F.max_pool2d(conv(x), 3, 2, 1).tolist() == [[[[-1, -1], [-1, -1]]]]


def test_bottleneck_shortcut_sees_the_normalized_input() -> None:
    block = Bottleneck(4, 8, 2).eval()
    assert block.shortcut is not None
    nn.init.zeros_(block.conv3.weight)
    x = -torch.ones(1, 4, 4, 4)
    assert block(x).abs().max() == 0, "ReLU(BN(-1)) is 0, and so is its shortcut"
    assert Bottleneck(8, 8, 1).shortcut is None


def test_second_pass_counts_no_batch_in_batch_norm_of_one_process_or_of_several() -> None:
    for norm in (nn.BatchNorm2d(3), nn.SyncBatchNorm(3)):
        counted = []
        with _statistics_untouched(nn.Sequential(norm)):
            counted.append(norm.track_running_stats)
        assert [*counted, norm.track_running_stats] == [False, True]
