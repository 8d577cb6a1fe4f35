"""The pretext tasks, sentence by sentence as section IV of the paper has them."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rayssl.tasks import available_tasks, draw_per_sample, make_any_task, make_task
from rayssl.tasks.permutation import (
    PAPER_CLASSES,
    PAPER_CODE_CLASSES,
    Order,
    Permutation,
    inverse,
    permutation,
    permutation_6,
    reorder,
)
from rayssl.tasks.rotation import Rotation, rotate

Classes = tuple[tuple[Order, Order], ...]
Apply = Callable[[Order, tuple[int, ...]], tuple[int, ...]]

BOTH_TABLES = pytest.mark.parametrize(
    "classes", [PAPER_CLASSES, PAPER_CODE_CLASSES], ids=["4", "6"]
)


def scatter(order: Order, frames: tuple[int, ...]) -> tuple[int, ...]:
    """Frame i goes to place order[i]."""
    placed = dict(zip(order, frames, strict=True))
    return tuple(placed[place] for place in range(4))


def gather(order: Order, frames: tuple[int, ...]) -> tuple[int, ...]:
    """Place j shows frame order[j]."""
    return tuple(frames[source] for source in order)


def kept_by_reversed_input(classes: Classes, apply: Apply) -> list[int]:
    """The classes whose set of outputs is the same for the frames (0, 1, 2, 3) and (3, 2, 1, 0)."""
    return [
        index
        for index, orders in enumerate(classes)
        if {apply(order, (0, 1, 2, 3)) for order in orders}
        == {apply(order, (3, 2, 1, 0)) for order in orders}
    ]


def moving_stacks(batch: int, generator: torch.Generator) -> Tensor:
    """Frames that all differ: pixel [0, 0] of frame i holds i + 1, the rest is noise."""
    x = torch.randint(1, 256, (batch, 4, 8, 8), dtype=torch.uint8, generator=generator)
    x[:, :, 0, 0] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    return x


# Rotation: "rotated by an angle in {0, 90, 180, 270} degrees"


def test_marked_corner_visits_four_corners_in_counter_clockwise_order() -> None:
    x = torch.tensor([[[[7, 0], [0, 0]]]]).repeat(4, 1, 1, 1)
    turned = rotate(x, torch.tensor([0, 1, 2, 3]))
    assert turned.squeeze(1).tolist() == [
        [[7, 0], [0, 0]],  # upper left
        [[0, 0], [7, 0]],  # lower left
        [[0, 0], [0, 7]],  # lower right
        [[0, 7], [0, 0]],  # upper right
    ]


def test_four_quarter_turns_are_the_identity(generator: torch.Generator) -> None:
    x = torch.rand(3, 2, 5, 5, generator=generator)
    one = torch.ones(3, dtype=torch.int64)
    assert torch.equal(rotate(rotate(rotate(rotate(x, one), one), one), one), x)
    assert not torch.equal(rotate(x, one), x)


@pytest.mark.parametrize("size", [1, 2, 7, 84])
def test_rotation_equals_rot90_of_each_sample_by_its_label(
    size: int, generator: torch.Generator
) -> None:
    x = torch.randint(256, (9, 4, size, size), dtype=torch.uint8, generator=generator)
    x_hat, y_hat = Rotation()(x, generator=generator)
    slow = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(x, y_hat, strict=True)])
    assert torch.equal(x_hat, slow)


def test_rotation_of_channels_last_images_is_the_same(generator: torch.Generator) -> None:
    x = torch.rand(6, 3, 5, 5, generator=generator)
    quarter_turns = torch.tensor([0, 1, 2, 3, 2, 1])
    channels_last = x.to(memory_format=torch.channels_last)
    assert torch.equal(rotate(channels_last, quarter_turns), rotate(x, quarter_turns))


def test_rotation_is_unusable_exactly_where_two_angles_look_the_same(
    generator: torch.Generator,
) -> None:
    half_turn_symmetric = torch.tensor([[1, 2, 3], [4, 5, 4], [3, 2, 1]])
    images = {
        "constant": (torch.full((3, 3), 9), False),
        "blank": (torch.zeros(3, 3, dtype=torch.int64), False),
        "half-turn symmetric": (half_turn_symmetric, False),
        "mirror symmetric": (torch.tensor([[1, 2, 1], [3, 4, 3], [5, 6, 5]]), True),
        "one marked edge": (torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0]]), True),
        "one marked corner": (torch.tensor([[0, 0, 1], [0, 0, 0], [0, 0, 0]]), True),
    }
    x = torch.stack([image for image, _ in images.values()])[:, None].repeat(1, 4, 1, 1)
    assert Rotation().usable(x).tolist() == [usable for _, usable in images.values()]

    noise = torch.randint(2, (200, 1, 2, 2), dtype=torch.uint8, generator=generator)
    told = [
        len({tuple(image.rot90(k, (1, 2)).flatten().tolist()) for k in range(4)}) == 4
        for image in noise
    ]
    assert Rotation().usable(noise).tolist() == told
    assert len(set(told)) == 2


def test_rotation_is_usable_when_only_one_frame_of_the_stack_tells_the_angle() -> None:
    x = torch.zeros(1, 4, 6, 6)
    assert not Rotation().usable(x)
    x[0, 2, 5, 3] = 1
    assert Rotation().usable(x)


def test_rotation_refuses_images_that_are_not_square(generator: torch.Generator) -> None:
    text = r"Rotation needs square images \[B, C, H, W\] .* got shape \(2, 4, 84, 80\)\. Crop"
    with pytest.raises(ValueError, match=text):
        Rotation()(torch.zeros(2, 4, 84, 80), generator=generator)
    with pytest.raises(ValueError, match=r"got shape \(84, 84\)"):
        Rotation().usable(torch.zeros(84, 84))


# Permutation: "We use the following permutations with the corresponding class label"


def test_permutation_classes_are_the_papers() -> None:
    assert PAPER_CLASSES == (
        ((0, 1, 2, 3), (3, 2, 1, 0)),
        ((0, 2, 1, 3), (3, 1, 2, 0)),
        ((0, 3, 2, 1), (1, 2, 3, 0)),
        ((1, 3, 0, 2), (2, 0, 3, 1)),
    )
    assert make_task("permutation").num_classes == 4


def test_permutation_6_classes_are_the_papers_and_two_more() -> None:
    assert PAPER_CODE_CLASSES[:4] == PAPER_CLASSES
    assert PAPER_CODE_CLASSES[4:] == (
        ((2, 3, 1, 0), (0, 1, 3, 2)),
        ((1, 3, 2, 0), (0, 2, 3, 1)),
    )
    assert make_task("permutation-6").num_classes == 6


@BOTH_TABLES
def test_permutation_orders_are_all_different(classes: Classes) -> None:
    orders = list(itertools.chain.from_iterable(classes))
    assert len(set(orders)) == len(orders) == 2 * len(classes)
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


@BOTH_TABLES
def test_permutation_classes_are_closed_under_reversal(classes: Classes) -> None:
    assert all(first == second[::-1] for first, second in classes)


@BOTH_TABLES
def test_reversed_input_keeps_every_class_when_orders_are_scatters(classes: Classes) -> None:
    # "rev(x) and x are both valid input sequences, and alpha(rev(x)) = (rev(alpha))(x)"
    frames = (10, 11, 12, 13)
    for order in itertools.chain.from_iterable(classes):
        reversed_order: Order = (order[3], order[2], order[1], order[0])
        assert scatter(order, frames[::-1]) == scatter(reversed_order, frames)
    assert kept_by_reversed_input(classes, scatter) == list(range(len(classes)))


@BOTH_TABLES
def test_gathers_turn_reversed_input_into_3_minus_order_and_reversed_order_into_reversed_output(
    classes: Classes,
) -> None:
    frames = (10, 11, 12, 13)
    for order in itertools.chain.from_iterable(classes):
        a, b, c, d = order
        assert gather(order, frames[::-1]) == gather((3 - a, 3 - b, 3 - c, 3 - d), frames)
        assert gather((d, c, b, a), frames) == gather(order, frames)[::-1]


def test_reversed_input_breaks_both_orders_of_class_2_when_orders_are_gathers() -> None:
    assert kept_by_reversed_input(PAPER_CLASSES, gather) == [0, 1, 3]
    shown = {gather(order, (0, 1, 2, 3)) for order in PAPER_CLASSES[2]}
    assert not any(gather(order, (3, 2, 1, 0)) in shown for order in PAPER_CLASSES[2])


def test_reversed_input_keeps_three_of_the_six_gathered_classes() -> None:
    assert kept_by_reversed_input(PAPER_CODE_CLASSES, gather) == [0, 1, 3]
    # A reversed input then shows, for the other classes, what no order of the table shows:
    shown = {gather(order, (0, 1, 2, 3)) for order in itertools.chain(*PAPER_CODE_CLASSES)}
    for label in (2, 4, 5):
        assert all(gather(o, (3, 2, 1, 0)) not in shown for o in PAPER_CODE_CLASSES[label])


@pytest.mark.parametrize("task", [permutation(), permutation_6()], ids=lambda task: task.name)
def test_no_stack_gets_two_labels_whether_the_input_runs_forwards_or_backwards(
    task: Permutation,
) -> None:
    label_of: dict[tuple[int, ...], int] = {}
    for label, sources in enumerate(task.sources):
        for source, frames in itertools.product(sources, [(0, 1, 2, 3), (3, 2, 1, 0)]):
            assert label_of.setdefault(gather(source, frames), label) == label


def test_inverse_turns_a_scatter_into_the_gather_with_the_same_effect() -> None:
    frames = (7, 8, 9, 99)
    for a, b, c, d in itertools.permutations(range(4)):
        assert gather(inverse((a, b, c, d)), frames) == scatter((a, b, c, d), frames)


def test_permutation_sends_frame_i_to_channel_alpha_i() -> None:
    # Class 2, alpha = [1, 2, 3, 0], by hand: f1 to channel 1, f2 to 2, f3 to 3, f4 to 0.
    # The gather with the same numbers would give (f2, f3, f4, f1).
    f1, f2, f3, f4 = torch.arange(1, 5).repeat_interleave(4).view(4, 2, 2)
    x = torch.stack([f1, f2, f3, f4])[None]
    x_hat = reorder(x, torch.tensor([permutation().sources[2][1]]))
    assert torch.equal(x_hat[0], torch.stack([f4, f1, f2, f3]))


def test_permutation_6_shows_frame_order_j_in_channel_j() -> None:
    # Class 4, order = [2, 3, 1, 0], by hand; the scatter would give (f4, f3, f1, f2).
    f1, f2, f3, f4 = torch.arange(1, 5).repeat_interleave(4).view(4, 2, 2)
    x = torch.stack([f1, f2, f3, f4])[None]
    x_hat = reorder(x, torch.tensor([permutation_6().sources[4][0]]))
    assert torch.equal(x_hat[0], torch.stack([f3, f4, f2, f1]))


@pytest.mark.parametrize(
    ("name", "classes", "apply"),
    [("permutation", PAPER_CLASSES, scatter), ("permutation-6", PAPER_CODE_CLASSES, gather)],
)
def test_permutation_draws_every_order_of_its_label_equally_often(
    name: str, classes: Classes, apply: Apply, generator: torch.Generator
) -> None:
    per_order = 200
    batch = 2 * len(classes) * per_order
    x = moving_stacks(batch, generator)
    x_hat, y_hat = make_task(name)(x, generator=generator)
    counts = dict.fromkeys(itertools.chain.from_iterable(classes), 0)
    for stack, stack_hat, label in zip(x, x_hat, y_hat.tolist(), strict=True):
        shown = tuple(stack_hat[:, 0, 0].tolist())
        (order,) = [o for o in classes[label] if apply(o, (1, 2, 3, 4)) == shown]
        counts[order] += 1
        assert torch.equal(stack_hat, stack[[frame - 1 for frame in shown]])
    spread = 5 * per_order**0.5  # five standard deviations of a count
    assert all(abs(count - per_order) < spread for count in counts.values()), counts


def test_permutation_is_usable_on_a_moving_stack_only(generator: torch.Generator) -> None:
    moving, static = moving_stacks(2, generator), moving_stacks(2, generator)
    static[0] = static[0, 0]  # nothing moves
    static[1, 3] = static[1, 0]  # the last frame shows the first again
    padded = moving_stacks(3, generator)
    padded[0, :3] = 0  # a game's first step
    padded[1, 0] = 0  # its third
    padded[2, 2] = 0  # a blank frame amid the game
    for task in (permutation(), permutation_6()):
        usable = task.usable(torch.cat([moving, static, padded]))
        assert usable.tolist() == [True, True, False, False, False, False, False]


def test_permutation_is_usable_when_every_frame_differs_in_a_single_pixel() -> None:
    x = torch.full((1, 4, 84, 84), 50, dtype=torch.uint8)
    x[0, 1, 83, 83], x[0, 2, 83, 83], x[0, 3, 0, 0] = 51, 52, 51
    assert permutation().usable(x)
    x[0, 2, 83, 83] = 51
    assert not permutation().usable(x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(300, 4, 1, 2), (300, 4, 2, 4), (40, 4, 3, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every second sample", "offset"])
def test_permutation_usable_equals_a_slow_loop_for_every_dtype_and_layout(
    dtype: torch.dtype, shape: tuple[int, ...], layout: str, generator: torch.Generator
) -> None:
    x = torch.randint(3, shape, generator=generator).to(dtype)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "every second sample":
        x = x[::2]
    elif layout == "offset":
        x = torch.cat([x.new_ones(1), x.flatten()])[1:].view(shape)  # not at a multiple of 8 bytes
    slow = [
        all(frame.any() for frame in stack)
        and not any(torch.equal(a, b) for a, b in itertools.combinations(stack, 2))
        for stack in x
    ]
    assert permutation().usable(x).tolist() == slow


def test_negative_zero_is_blank_and_equal_to_zero() -> None:
    x = torch.arange(1.0, 5.0).view(1, 4, 1, 1).repeat(1, 1, 2, 2)
    assert permutation().usable(x)
    x[0, 1] = -0.0
    assert not permutation().usable(x)


def test_permutation_refuses_anything_but_four_frames(generator: torch.Generator) -> None:
    text = (
        r"Permutation needs 4 stacked frames in dim 1, got shape \(32, 3, 84, 84\)\. "
        r"For single images use the rotation task\."
    )
    with pytest.raises(ValueError, match=text):
        permutation()(torch.zeros(32, 3, 84, 84), generator=generator)
    with pytest.raises(ValueError, match=r"got shape \(4, 84, 84\)"):
        permutation_6().usable(torch.zeros(4, 84, 84))


# The registry


def test_unknown_task_names_the_available_ones_and_the_way_to_add_one() -> None:
    with pytest.raises(ValueError) as error:
        make_task("rotate")
    assert str(error.value).startswith(
        f"Unknown task 'rotate'. Available: {', '.join(available_tasks())}. "
        "To add one, create rayssl/tasks/<name>.py."
    )
    assert str(error.value).endswith("Did you mean 'rotation'?")
    with pytest.raises(ValueError, match=r"<name>\.py\.$"):
        make_task("zzz")


def test_available_tasks_are_sorted_and_hold_the_papers() -> None:
    assert list(available_tasks()) == sorted(available_tasks())
    assert {"permutation", "permutation-6", "rotation"} <= set(available_tasks())


def test_equal_names_give_equal_tasks_and_other_names_other_tasks() -> None:
    tasks = [make_any_task(name) for name in available_tasks()]
    assert tasks == [make_any_task(name) for name in available_tasks()]
    assert len(set(tasks)) == len(tasks)


def test_generator_on_another_device_is_refused_by_name(generator: torch.Generator) -> None:
    text = r"Expected a generator on x's device meta, got one on cpu\. Create it with"
    with pytest.raises(ValueError, match=text):
        draw_per_sample(torch.zeros(2, 4, 8, 8, device="meta"), 4, generator=generator)
