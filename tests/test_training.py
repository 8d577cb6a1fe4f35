"""Supervised training with a pretext head: Table V, eqs. (1)-(3), protocols, and what is kept."""

import copy
import io
import math
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayssl.data import ImageSplits, load_dataset
from rayssl.data.splits import split_validation
from rayssl.networks import MultiHeadNetwork, make_mnist_network
from rayssl.training import EVAL_BATCH, PROTOCOLS, ClassifierSettings, ClassifierTraining

EVERY_PROTOCOL = pytest.mark.parametrize("protocol", list(PROTOCOLS))
CLOCK = ("seconds", "images_per_s")  # the only metrics that differ from run to run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-equality is promised for one number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def small() -> ImageSplits:
    """120 training and 40 test images of digits."""
    d = load_dataset("digits")
    return ImageSplits("small", d.train_x[:120], d.train_y[:120], d.test_x[:40], d.test_y[:40], 10)


def training(
    protocol: str = "paper",
    aux_task: str = "rotation",
    *,
    data: ImageSplits | None = None,
    **settings: Any,
) -> ClassifierTraining:
    values = {"epochs": 1, "batch_size": 32} | settings
    return ClassifierTraining(
        data or small(), ClassifierSettings(protocol=protocol, aux_task=aux_task, **values)
    )


def network(*, aux_classes: int = 4, relu_after_conv2: bool = True) -> MultiHeadNetwork:
    torch.manual_seed(0)
    return make_mnist_network(
        num_classes=10, aux_classes=aux_classes, mean=0.25, std=0.5,
        relu_after_conv2=relu_after_conv2,
    )  # fmt: skip


def weights(of: ClassifierTraining) -> dict[str, Tensor]:
    return copy.deepcopy(of.network.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def without_clock(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key not in CLOCK}


def seen_by_loss(of: ClassifierTraining, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The batches of images that every later update gets, in order."""
    batches: list[Tensor] = []
    loss = of.loss

    def spy(x: Tensor, y: Tensor) -> Any:
        batches.append(x.clone())
        return loss(x, y)

    monkeypatch.setattr(of, "loss", spy)
    return batches


def inputs_of(module: nn.Module) -> list[Tensor]:
    """What the module gets in every later forward pass."""
    got: list[Tensor] = []
    module.register_forward_pre_hook(lambda _module, args: got.append(args[0].detach().clone()))
    return got


# Table V


def test_table_v_walks_through_the_printed_sizes() -> None:
    net, sizes = network(), []
    f = net.backbone
    for name in ("conv1", "conv2", "dropout_channels", "fc"):
        f.get_submodule(name).register_forward_hook(
            lambda _module, args, out: sizes.append((tuple(args[0].shape[1:]), out.shape[1:]))
        )
    x = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    assert net(x, "class").shape == (2, 10)
    assert sizes == [
        ((1, 28, 28), (32, 26, 26)),  # Layer 1: Input: 28x28; Output: 26x26x32
        ((32, 26, 26), (64, 24, 24)),  # Layer 2: Input: 26x26x32; Output: 24x24x64
        ((64, 12, 12), (64, 12, 12)),  # Layer 3: Output: 12x12x64
        ((9216,), (128,)),  # Layer 4: Input: 9216; Output: 128
    ]
    assert f(x).shape == (2, 128)
    assert net(x, "aux").shape == (2, 4)  # Layer 5b: Input: 128; Output: 4


def test_table_v_has_1199882_parameters_and_the_pretext_head_516_more() -> None:
    conv1, conv2 = 32 * (3 * 3 * 1 + 1), 64 * (3 * 3 * 32 + 1)
    fc, class_head, aux_head = 128 * (9216 + 1), 10 * (128 + 1), 4 * (128 + 1)
    assert conv1 + conv2 + fc + class_head == 1_199_882
    assert aux_head == 516
    plain = sum(p.numel() for p in network(aux_classes=0).parameters())
    assert plain == 1_199_882
    assert sum(p.numel() for p in network().parameters()) == 1_199_882 + 516


@pytest.mark.parametrize("relu_after_conv2", [True, False])
def test_network_equals_one_typed_from_table_v(
    relu_after_conv2: bool, generator: torch.Generator
) -> None:
    net = network(relu_after_conv2=relu_after_conv2).eval()
    plain = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(),
        nn.Conv2d(32, 64, 3), *([nn.ReLU()] if relu_after_conv2 else []),
        nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip
    classifier = {k: v for k, v in net.state_dict().items() if not k.startswith("heads.aux")}
    plain.load_state_dict(dict(zip(plain.state_dict(), classifier.values(), strict=True)))
    x = torch.randint(256, (5, 1, 28, 28), dtype=torch.uint8, generator=generator)
    torch.testing.assert_close(net(x, "class"), plain((x / 255 - 0.25) / 0.5))


@pytest.mark.parametrize(("relu_after_conv2", "pooled"), [(True, 0.0), (False, -1.0)])
def test_relu_after_conv2_cuts_what_is_negative_there(
    relu_after_conv2: bool, pooled: float
) -> None:
    net = network(relu_after_conv2=relu_after_conv2).eval()
    conv2 = net.backbone.get_submodule("conv2")
    assert isinstance(conv2, nn.Conv2d)
    assert conv2.bias is not None
    nn.init.zeros_(conv2.weight)
    nn.init.constant_(conv2.bias, -1.0)
    got = inputs_of(net.backbone.get_submodule("fc"))
    net(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), "class")
    assert got[0].unique().tolist() == [pooled]


def test_first_training_images_alone_train_the_network_and_the_test_set_stays_whole() -> None:
    d = small()
    cut = d._replace(train_x=d.train_x[:50], train_y=d.train_y[:50])
    first, same, whole = training(train_images=50), training(data=cut), training()
    metrics = [t.run_epoch() for t in (first, same, whole)]
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, same.network.state_dict()[name]), name
    assert metrics[0]["test_confusion"] == metrics[1]["test_confusion"]
    assert metrics[0]["loss"] != metrics[2]["loss"]
    for count in (0, 121):
        with pytest.raises(ValueError, match=rf"small has 120 training images, got .* {count}\."):
            training(train_images=count)


def test_images_are_normalized_once_with_the_mean_and_deviation_given() -> None:
    net = network()
    got = inputs_of(net.backbone.get_submodule("conv1"))
    x = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    x[0, 0, 0, :3] = torch.tensor([0, 51, 255])
    net(x, "class")
    expected = [(0 - 0.25) / 0.5, (0.2 - 0.25) / 0.5, (1 - 0.25) / 0.5]
    assert got[0][0, 0, 0, :3].tolist() == pytest.approx(expected)


def test_dropout_takes_a_quarter_of_the_channels_and_half_of_the_features() -> None:
    rates = {name: m.p for name, m in network().named_modules() if isinstance(m, nn.Dropout2d)}
    assert rates == {"backbone.dropout_channels": 0.25}
    rates = {name: m.p for name, m in network().named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {"backbone.dropout": 0.5}


@pytest.mark.parametrize(("protocol", "relu"), [("paper", 1), ("paper-code", 0), ("strict", 1)])
def test_protocols_differ_in_the_relu_after_conv2(protocol: str, relu: int) -> None:
    assert training(protocol).network.backbone.relu_after_conv2 == bool(relu)


# Eqs. (1)-(3)


@pytest.mark.parametrize(
    ("protocol", "aux_task", "weight", "loss"),
    [
        ("paper", "none", 1.0, math.log(10)),
        ("paper", "rotation", 1.0, math.log(10) + math.log(4)),
        ("paper", "rotation", 0.5, math.log(10) + math.log(4) / 2),
        ("strict", "rotation", 1.0, math.log(10) + math.log(4)),
        ("paper-code", "none", 1.0, math.log(10)),  # no second loss, so no mean of two
        ("paper-code", "rotation", 1.0, (math.log(10) + math.log(4)) / 2),
    ],
)
def test_loss_of_an_ignorant_network_is_log_10_for_digits_and_log_4_for_angles(
    protocol: str, aux_task: str, weight: float, loss: float
) -> None:
    ignorant = training(protocol, aux_task, aux_weight=weight)
    for p in ignorant.network.parameters():
        nn.init.zeros_(p)
    value, (class_loss, aux_loss, _) = ignorant.loss(small().train_x[:8], small().train_y[:8])
    assert value.item() == pytest.approx(loss)
    assert class_loss.item() == pytest.approx(math.log(10))
    assert aux_loss.item() == pytest.approx(0 if aux_task == "none" else math.log(4))


def cross_entropy(net: MultiHeadNetwork, image: Tensor, head: str, label: int) -> float:
    """-log softmax(logits)[label] of one image."""
    logits = net(image[None], head)[0].double()
    return float(logits.exp().sum().log() - logits[label])


@pytest.mark.parametrize("weight", [1.0, 0.25])
@EVERY_PROTOCOL
def test_loss_equals_a_slow_loop_over_images(protocol: str, weight: float) -> None:
    made = training(protocol, aux_weight=weight)
    net = made.network.eval()  # without dropout
    x, y = small().train_x[:6], small().train_y[:6].tolist()
    drawn = torch.Generator()
    drawn.set_state(made._draws.get_state())
    angles = torch.randint(4, (6,), generator=drawn).tolist()
    with torch.no_grad():
        loss, (class_loss, aux_loss, accuracy) = made.loss(x, torch.tensor(y))
        if protocol == "paper-code":  # all four copies of each image, for both heads
            copies = [(k, i) for k in range(4) for i in range(6)]
            class_terms = [
                cross_entropy(net, x[i].rot90(k, (1, 2)), "class", y[i]) for k, i in copies
            ]
        else:  # upright images for the class head, one drawn angle each for the other
            copies = list(zip(angles, range(6), strict=True))
            class_terms = [cross_entropy(net, x[i], "class", y[i]) for i in range(6)]
        turned = [(x[i].rot90(k, (1, 2)), k) for k, i in copies]
        aux_terms = [cross_entropy(net, image, "aux", k) for image, k in turned]
        hits = [int(net(image[None], "aux").argmax()) == k for image, k in turned]
    slow_class, slow_aux = np.mean(class_terms), np.mean(aux_terms)
    slow = slow_class + weight * slow_aux
    assert class_loss.item() == pytest.approx(slow_class, rel=1e-5)
    assert aux_loss.item() == pytest.approx(slow_aux, rel=1e-5)
    assert loss.item() == pytest.approx(slow / 2 if protocol == "paper-code" else slow, rel=1e-5)
    assert accuracy.item() == pytest.approx(np.mean(hits))


def test_aux_copies_all_shows_every_rotation_to_the_pretext_head_alone() -> None:
    made = training("paper", aux_copies="all")
    made.network.eval()
    class_got, aux_got = (inputs_of(made.network.heads[head]) for head in ("class", "aux"))
    made.loss(small().train_x[:6], small().train_y[:6])
    assert (len(class_got[0]), len(aux_got[0])) == (6, 24)


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_class_head_never_sees_a_rotated_image_in(protocol: str) -> None:
    made = training(protocol)
    made.network.eval()
    x, y = small().train_x[:8], small().train_y[:8]
    upright = made.network.backbone(x)
    got = inputs_of(made.network.heads["class"])
    for _ in range(3):  # three draws of angles
        made.loss(x, y)
    assert len(got) == 3
    for features in got:
        torch.testing.assert_close(features, upright)


def test_class_head_sees_all_four_rotations_under_the_same_label_in_paper_code() -> None:
    made = training("paper-code")
    made.network.eval()
    x, y = small().train_x[:8], small().train_y[:8]
    got = inputs_of(made.network.heads["class"])
    made.loss(x, y)
    expected = torch.cat([made.network.backbone(x.rot90(k, (2, 3))) for k in range(4)])
    torch.testing.assert_close(got[0], expected)


def head_gradients(weight: float) -> dict[str, Tensor]:
    made = training(aux_weight=weight)
    made.network.eval()
    made.loss(small().train_x[:8], small().train_y[:8])[0].backward()
    heads = made.network.heads.named_parameters()
    return {name: p.grad for name, p in heads if p.grad is not None}


def test_each_loss_reaches_its_own_head_only() -> None:
    once, twice = head_gradients(1.0), head_gradients(2.0)
    assert len(once) == 4
    for name, gradient in once.items():
        assert gradient.any()
        # Any share of the class loss in the pretext head's gradient would not double.
        times = 2 if name.startswith("aux.") else 1
        torch.testing.assert_close(twice[name], times * gradient)


def test_both_losses_reach_the_backbone() -> None:
    def gradient(**settings: Any) -> Tensor:
        made = training(**settings)
        made.network.eval()
        made.loss(small().train_x[:8], small().train_y[:8])[0].backward()
        found = made.network.backbone.get_submodule("conv1").weight.grad
        assert isinstance(found, Tensor)
        return found

    plain, with_1, with_2 = (
        gradient(aux_task="none"), gradient(aux_weight=1.0), gradient(aux_weight=2.0)
    )  # fmt: skip
    assert (with_1 - plain).abs().max() > 1e-4
    torch.testing.assert_close(with_2 - plain, 2 * (with_1 - plain), rtol=1e-3, atol=1e-6)


@EVERY_PROTOCOL
def test_image_that_looks_the_same_turned_is_left_out_of_the_aux_loss(protocol: str) -> None:
    made = training(protocol)
    made.network.eval()
    x, y = small().train_x[:6].clone(), small().train_y[:6]
    x[3:] = 77  # three constant images
    aux_got = inputs_of(made.network.heads["aux"])
    _, (_, aux_loss, _) = made.loss(x, y)
    logits = made.network.heads["aux"](aux_got[0]).view(-1, 6, 4)  # [copies, images, angles]
    state = training(protocol)._draws
    angles = torch.arange(4)[:, None].repeat(1, 6)
    if protocol != "paper-code":
        angles = torch.randint(4, (1, 6), generator=state)
    expected = F.cross_entropy(logits[:, :3].flatten(0, 1), angles[:, :3].flatten())
    assert aux_loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_batch_without_any_label_has_aux_loss_0_and_moves_no_pretext_head() -> None:
    made = training()
    x = torch.full((4, 1, 28, 28), 9, dtype=torch.uint8)
    loss, (class_loss, aux_loss, accuracy) = made.loss(x, small().train_y[:4])
    loss.backward()
    assert (aux_loss.item(), accuracy.item()) == (0, 0)
    assert loss.item() == class_loss.item()
    gradients = [p.grad for p in made.network.heads["aux"].parameters()]
    assert not any(g.any() for g in gradients if g is not None)


# Arms of one seed


@EVERY_PROTOCOL
def test_weight_0_is_the_plain_training_bit_for_bit(protocol: str) -> None:
    plain, zero, one = (
        training(protocol, "none"), training(protocol, aux_weight=0.0), training(protocol)
    )  # fmt: skip
    rows = [without_clock(made.run_epoch()) for made in (plain, zero)]
    assert rows[0] == rows[1]
    assert same(weights(plain), weights(zero))
    one.run_epoch()
    moved = weights(one)
    assert not torch.equal(moved["backbone.fc.weight"], weights(plain)["backbone.fc.weight"])


def test_arms_of_one_seed_start_from_the_same_backbone_and_class_head() -> None:
    plain, rotation, other = (
        weights(training(aux_task="none")), weights(training()), weights(training(seed=1))
    )  # fmt: skip
    assert same(plain, {k: v for k, v in rotation.items() if not k.startswith("heads.aux.")})
    assert not torch.equal(rotation["backbone.fc.weight"], other["backbone.fc.weight"])


def test_arms_of_one_seed_see_the_images_in_the_same_order_and_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arms = training(aux_task="none"), training(), training(seed=1)
    first, second, other = (seen_by_loss(arm, monkeypatch) for arm in arms)
    for arm in arms:
        arm.run_epoch()
    assert [len(batch) for batch in first] == [32, 32, 32, 24]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    assert sorted(torch.cat(first).flatten(1).tolist()) == sorted(
        small().train_x.flatten(1).tolist()
    )


def test_every_epoch_has_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = training(aux_task="none", epochs=2)
    batches = seen_by_loss(made, monkeypatch)
    list(made.epochs())
    assert not torch.equal(batches[0], batches[4])


def test_rotations_are_drawn_independently_of_the_images_place_in_the_data_set() -> None:
    # One seed for both generators would give half of all images whose place is k mod 4 the angle
    # k (a mean of 1.5 times as many as by chance), in the first epoch.
    made = training()
    order = torch.randperm(60_000, generator=made._order)
    angles = torch.randint(4, (60_000,), generator=made._draws)
    counts = torch.bincount(order % 4 * 4 + angles, minlength=16) / (60_000 / 16)
    assert (counts - 1).abs().max() < 0.07  # 4 standard deviations; 0.5 with one seed


def test_same_seed_gives_the_same_training_and_another_seed_another() -> None:
    one, again, other = training(), training(), training(seed=1)
    rows = [without_clock(made.run_epoch()) for made in (one, again, other)]
    assert rows[0] == rows[1] != rows[2]
    assert same(weights(one), weights(again))


@EVERY_PROTOCOL
def test_global_random_state_is_left_alone(protocol: str) -> None:
    def next_draws() -> tuple[float, float, float]:
        """What the next draws would be, each from its library's global state."""
        state, numbers = torch.get_rng_state(), np.random.get_state()
        python = random.getstate()
        drawn = float(torch.rand(())), float(np.random.rand()), random.random()
        torch.set_rng_state(state)
        np.random.set_state(numbers)
        random.setstate(python)
        return drawn

    before = next_draws()
    training(protocol).run_epoch()
    assert next_draws() == before


def test_global_random_state_has_no_influence() -> None:
    torch.manual_seed(1)
    first = without_clock(training().run_epoch())
    torch.manual_seed(2)
    assert without_clock(training().run_epoch()) == first


def test_dropout_differs_from_epoch_to_epoch() -> None:
    made = training(aux_task="none", epochs=2)
    made.run_epoch()
    state = made._dropout_state
    made.run_epoch()
    assert not torch.equal(state, made._dropout_state)


# Epochs


def test_learning_rate_is_1_times_0_7_after_each_epoch() -> None:
    made = training(aux_task="none", epochs=3)
    used: list[float] = []
    made.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"])
    )
    rows = [row["lr"] for row in made.epochs()]
    assert rows == pytest.approx([1, 0.7, 0.49])
    assert used == [rate for rate in rows for _ in range(4)]
    assert made.optimizer.defaults["rho"] == 0.9
    assert made.optimizer.defaults["eps"] == 1e-6


def test_settings_are_those_of_the_authors_code_where_the_paper_is_silent() -> None:
    given = ClassifierSettings()
    assert (given.epochs, given.batch_size, given.lr, given.lr_decay) == (14, 64, 1.0, 0.7)
    assert given.aux_weight == 1  # eq. (3)


@pytest.mark.parametrize("aux_task", ["none", "rotation"])
def test_a_few_epochs_teach_digits_and_angles(aux_task: str) -> None:
    d = load_dataset("digits")
    data = d._replace(train_x=d.train_x[:300], train_y=d.train_y[:300])
    *_, row = training(aux_task=aux_task, data=data, epochs=3).epochs()
    assert row["test_accuracy"] > 0.6
    assert aux_task == "none" or row["aux_accuracy"] > 0.4  # chance is 0.25


def test_metrics_of_an_epoch_equal_those_of_slow_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    made = training()
    parts: list[tuple[float, ...]] = []
    loss = made.loss

    def spy(x: Tensor, y: Tensor) -> Any:
        value, others = loss(x, y)
        parts.append((value.item(), *(other.item() for other in others)))
        return value, others

    monkeypatch.setattr(made, "loss", spy)
    row = made.run_epoch()
    names = ("loss", "class_loss", "aux_loss", "aux_train_accuracy")
    assert [row[name] for name in names] == pytest.approx(np.mean(parts, axis=0))
    assert row["images_per_s"] * row["seconds"] == pytest.approx(120)
    assert row["epoch"] == 1

    net, confusion = made.network.eval(), np.zeros((10, 10), int)
    hits: dict[int, list[bool]] = {digit: [] for digit in range(10)}
    with torch.no_grad():
        for image, label in zip(small().test_x, small().test_y.tolist(), strict=True):
            confusion[label, int(net(image[None], "class").argmax())] += 1
            for k in range(4):
                told = int(net(image.rot90(k, (1, 2))[None], "aux").argmax())
                hits[label].append(told == k)
    assert row["test_confusion"] == confusion.tolist()  # rows are labels
    assert row["test_accuracy"] == confusion.trace() / 40
    assert row["aux_accuracy"] == pytest.approx(np.mean(sum(hits.values(), [])))
    per_class = [np.mean(hits[digit]) for digit in range(10)]
    assert row["aux_accuracy_per_class"] == pytest.approx(per_class)


def test_testing_shows_the_network_no_more_copies_at_once_than_images() -> None:
    made = training("strict", "jigsaw", data=small())
    seen = inputs_of(made.network.backbone)
    told = made._test()
    assert max(map(len, seen)) <= EVAL_BATCH  # 40 images under 30 labels are 1,200
    assert made.task is not None
    copies, labels = made.task.every_class(made._test_set[0])
    with torch.no_grad():
        found = made.network(copies, "aux").argmax(1)
    assert told["aux_accuracy"] == pytest.approx(float((found == labels).double().mean()))


def test_plain_training_reports_nothing_about_a_pretext_task() -> None:
    row = training(aux_task="none").run_epoch()
    assert not [key for key in row if key.startswith("aux")]


def test_testing_changes_neither_weights_nor_draws() -> None:
    made = training()
    before, draws = weights(made), made._draws.get_state()
    made._test()
    assert same(before, weights(made))
    assert torch.equal(draws, made._draws.get_state())


def test_bfloat16_rounds_activations_and_keeps_weights_in_float32() -> None:
    exact, rough = training(aux_task="none"), training(aux_task="none", compute_dtype="bfloat16")
    x, y = small().train_x[:32], small().train_y[:32]
    exact.network.eval()
    rough.network.eval()
    one, other = exact.loss(x, y)[0], rough.loss(x, y)[0]
    assert one.item() != other.item()
    assert other.item() == pytest.approx(one.item(), rel=0.02)
    assert other.dtype == torch.float32
    rough.run_epoch()
    assert {p.dtype for p in rough.network.parameters()} == {torch.float32}


# Which epoch counts. A learning rate of 30 from the second epoch on undoes what the first taught.

RUINED: dict[str, Any] = {"epochs": 3, "lr_decay": 30.0}


@pytest.mark.parametrize(("protocol", "selected"), [("paper", 1), ("paper-code", 3)])
def test_paper_reports_the_best_test_epoch_and_paper_code_the_last(
    protocol: str, selected: int
) -> None:
    rows = list(training(protocol, "none", **RUINED).epochs())
    accuracies = [row["test_accuracy"] for row in rows]
    assert accuracies[0] == max(accuracies) > accuracies[2]
    assert rows[-1]["selected_epoch"] == selected
    assert rows[0]["selected_epoch"] == 1


def test_of_two_equally_good_epochs_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = training(aux_task="none", epochs=3)
    found = iter([0.5, 0.8, 0.8])
    monkeypatch.setattr(made, "_test", lambda: {"test_accuracy": next(found)})
    assert [row["selected_epoch"] for row in made.epochs()] == [1, 2, 2]


def test_strict_trains_on_eleven_twelfths_and_never_on_a_validation_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = training("strict", seed=3)
    batches = seen_by_loss(made, monkeypatch)
    made.run_epoch()
    kept, held_out = split_validation(small().train_y, 1 / 12, seed=3)
    assert (len(kept), len(held_out)) == (110, 10)
    trained = torch.cat(batches).flatten(1).tolist()
    assert sorted(trained) == sorted(small().train_x[kept].flatten(1).tolist())
    assert not any(image in trained for image in small().train_x[held_out].flatten(1).tolist())


@pytest.mark.parametrize("protocol", ["paper", "paper-code"])
def test_other_protocols_train_on_all_images(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training(protocol)
    batches = seen_by_loss(made, monkeypatch)
    row = made.run_epoch()
    assert sum(map(len, batches)) == 120
    assert "validation_accuracy" not in row


def test_strict_reads_the_test_set_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made = training("strict", epochs=3)
    test_x, reads = made._test_set[0], []
    features = made._features
    pixels = {image.numpy().tobytes() for image in test_x}

    def spy(x: Tensor) -> Tensor:
        if any(image.numpy().tobytes() in pixels for image in x):
            reads.append(made.epoch)
        return features(x)

    monkeypatch.setattr(made, "_features", spy)
    rows = list(made.epochs())
    assert reads == [3, 3]  # upright for the class head, all rotations for the other
    assert ["test_accuracy" in row for row in rows] == [False, False, True]
    assert all("validation_accuracy" in row for row in rows)


def test_strict_reports_the_test_figures_of_the_best_validation_epochs_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = training("strict", **RUINED)
    kept: list[dict[str, Tensor]] = []
    rows = []
    for row in made.epochs():
        rows.append(row)
        kept.append(weights(made))
    scores = [row["validation_accuracy"] for row in rows]
    assert scores[0] == max(scores) > scores[2]
    assert rows[-1]["selected_epoch"] == 1
    assert not same(kept[0], kept[2])  # the training itself goes on with the last weights

    def test_figures(state: dict[str, Tensor]) -> dict[str, Any]:
        made.network.load_state_dict(state)
        return made._test()

    best, last = test_figures(kept[0]), test_figures(kept[2])
    assert {key: rows[-1][key] for key in best} == best
    assert best["test_confusion"] != last["test_confusion"]


# Saved and restored


def saved(of: ClassifierTraining) -> dict[str, Any]:
    """The state after a way through a file that may hold no code."""
    file = io.BytesIO()
    torch.save(of.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert isinstance(state, dict)
    return state


@EVERY_PROTOCOL
def test_restored_training_goes_on_bit_for_bit(protocol: str) -> None:
    whole = training(protocol, epochs=3)
    whole.run_epoch()
    state = saved(whole)
    rest = [without_clock(row) for row in whole.epochs()]

    restored = training(protocol, epochs=3)
    restored.load_state_dict(state)
    assert (restored.epoch, restored.done) == (1, False)
    assert [without_clock(row) for row in restored.epochs()] == rest
    assert same(weights(restored), weights(whole))

    anew = training(protocol, epochs=3)
    assert [without_clock(row) for row in anew.epochs()][1:] == rest  # and the first is repeated


def test_restored_training_remembers_the_best_epoch_before() -> None:
    for protocol in ("paper", "strict"):
        whole = training(protocol, **RUINED)
        whole.run_epoch()
        restored = training(protocol, **RUINED)
        restored.load_state_dict(saved(whole))
        assert [row["selected_epoch"] for row in restored.epochs()] == [1, 1]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"aux_weight": 2.0}, "aux_weight 2.0, got 1.0"),
        ({"seed": 1}, "seed 1, got 0"),
        ({"epochs": 9}, "epochs 9, got 1"),
    ],
)
def test_state_of_other_settings_is_refused(changed: dict[str, Any], text: str) -> None:
    other, state = training(**changed), saved(training())
    before = weights(other)
    with pytest.raises(
        ValueError,
        match=rf"^Expected the state of a training with {text}\. Resume with the settings that it",
    ):
        other.load_state_dict(state)
    assert same(before, weights(other))


def test_state_of_other_images_is_refused_and_one_that_names_none_is_taken() -> None:
    data = small()
    state = training(aux_task="none").state_dict()
    other = data._replace(test_x=data.test_x.flip(0))
    with pytest.raises(ValueError, match="Expected the state of a training on the images .*, got"):
        training(aux_task="none", data=other).load_state_dict(state)
    training(aux_task="none", data=data._replace(name="moved")).load_state_dict(state)
    del state["images"]  # as states were before
    training(aux_task="none", data=other).load_state_dict(state)


# Errors


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_loss_that_is_not_finite_ends_the_training_with_advice(protocol: str) -> None:
    made = training(protocol, "none", lr=1e30)
    with pytest.raises(
        FloatingPointError,
        match=r"^The loss was (nan|inf) in epoch 1\. Lower lr or aux_weight\.$",
    ):
        made.run_epoch()
    assert made.epoch == 0


def test_epoch_after_the_last_is_refused() -> None:
    made = training(aux_task="none")
    assert len(list(made.epochs())) == 1
    assert list(made.epochs()) == []
    with pytest.raises(ValueError, match=r"^All 1 epochs have run\. Start a new training\.$"):
        made.run_epoch()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"protocol": "papr"}, r"Unknown protocol 'papr'\. Available: paper, paper-code, strict\."),
        ({"aux_task": "rotate"}, r"Unknown task 'rotate'\. Available: .*rotation.*Did you mean"),
        ({"epochs": 0}, r"epochs must be 1 or more, got 0\."),
        ({"batch_size": -1}, r"batch_size must be 1 or more, got -1\."),
        ({"lr": 0.0}, r"lr must be a finite number above 0, got 0\.0\."),
        ({"lr": -1.0}, r"lr must be a finite number above 0, got -1\.0\."),
        ({"lr": math.inf}, r"lr must be a finite number above 0, got inf\."),
        ({"lr_decay": 0.0}, r"lr_decay must be a finite number above 0, got 0\.0\."),
        ({"aux_weight": -0.5}, r"aux_weight must be a finite number 0 or more, got -0\.5\."),
        ({"aux_weight": math.nan}, r"aux_weight must be a finite number 0 or more, got nan\."),
        ({"seed": -1}, r"seed must be 0 or more, got -1\."),
        ({"aux_copies": "two"}, r"aux_copies must be one of None, one, all, got 'two'\."),
        ({"compute_dtype": "half"}, r"compute_dtype must be one of float32, bfloat16, got 'half'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_no_training_can_have_are_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        training(**wrong)


def test_task_that_needs_stacked_frames_refuses_single_images() -> None:
    with pytest.raises(ValueError, match=r"^Permutation needs 4 stacked frames .*\(1, 1, 28, 28\)"):
        training(aux_task="permutation")


def test_images_that_are_all_one_colour_are_refused() -> None:
    black = small()._replace(train_x=torch.full_like(small().train_x, 7))
    with pytest.raises(ValueError, match="got 120 with every pixel 7. Check the data set's files"):
        ClassifierSettings().check_data(black)
    ClassifierSettings(protocol="strict").check_data(small())


def test_one_choice_changes_one_field_of_the_protocol() -> None:
    assert ClassifierSettings().resolved_protocol() == PROTOCOLS["paper"]
    changed = ClassifierSettings(aux_copies="all").resolved_protocol()
    assert (changed.aux_copies, changed.class_on) == ("all", "upright")
    assert PROTOCOLS["paper"].aux_copies == "one"


def test_jigsaw_trains_beside_a_classifier_and_tasks_on_games_are_refused() -> None:
    row = training(aux_task="jigsaw", epochs=1).run_epoch()
    assert row["aux_loss"] > 0
    assert len(row["aux_accuracy_per_class"]) == 10
    with pytest.raises(ValueError, match="Task 'spr' works on games alone .*For images: curl, jig"):
        training(aux_task="spr")


# CURL beside a classifier: two shifted views of an image, the others of the batch as negatives


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_curl_learns_beside_a_classifier_which_two_views_are_of_one_image(protocol: str) -> None:
    digits = load_dataset("digits")
    classifier = training(protocol, "curl", data=digits, epochs=3)
    rows = list(classifier.epochs())
    assert rows[-1]["aux_accuracy"] > 3 / 32  # chance is 1 / 32
    assert rows[-1]["aux_loss"] < rows[0]["aux_loss"]
    assert len(rows[-1]["aux_accuracy_per_class"]) == 10


def test_curl_has_one_loss_of_eq_3_and_a_follower_without_gradients() -> None:
    classifier = training(aux_task="curl", aux_weight=0.5)
    loss, (class_loss, aux_loss, _) = classifier.loss(small().train_x[:32], small().train_y[:32])
    assert float(loss.detach()) == pytest.approx(float(class_loss + 0.5 * aux_loss))
    loss.backward()
    assert classifier.follower is not None
    assert all(p.grad is None for p in classifier.follower.parameters())
    assert classifier.network.heads["aux"].bilinear.grad is not None


def test_curls_follower_moves_by_a_thousandth_of_the_way_after_each_update() -> None:
    classifier = training(aux_task="curl", batch_size=120)  # one update an epoch
    before = copy.deepcopy(classifier.network.state_dict())
    classifier.run_epoch()
    assert classifier.follower is not None
    for name, found in classifier.follower.named_parameters():
        moved = before[name].lerp(classifier.network.state_dict()[name], 0.001)
        torch.testing.assert_close(found.detach(), moved)


def test_curl_resumes_with_its_follower_bit_for_bit() -> None:
    whole, first = (training(aux_task="curl", epochs=2) for _ in range(2))
    expected = list(whole.epochs())[-1]
    first.run_epoch()
    resumed = training(aux_task="curl", epochs=2)
    resumed.load_state_dict(first.state_dict())
    found = resumed.run_epoch()
    assert {k: v for k, v in found.items() if k not in CLOCK} == {
        k: v for k, v in expected.items() if k not in CLOCK
    }


def test_curl_skips_a_last_batch_of_one_image() -> None:
    data = small().first(33)
    row = training(aux_task="curl", data=data).run_epoch()
    assert math.isfinite(row["loss"])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"protocol": "paper-code"}, "Task 'curl' has no labelled copies of an image, which proto"),
        ({"aux_copies": "all"}, "with aux_copies all trains on. Use protocol paper or strict"),
        ({"batch_size": 1}, "Task 'curl' compares the images of a batch: use batch_size 2"),
    ],
)
def test_curl_refuses_what_has_no_meaning_for_it(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        training(aux_task="curl", **settings)
