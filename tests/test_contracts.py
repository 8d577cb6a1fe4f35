"""What every task must hold: runs over each name in the folder, a new file included."""

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rayssl.tasks
from rayssl.networks import MultiHeadNetwork, as_sequence_task, make_atari_network
from rayssl.tasks import (
    PretextTask,
    Sequences,
    SequenceTask,
    available_image_tasks,
    available_pretext_tasks,
    available_tasks,
    make_any_task,
    make_image_task,
    make_task,
)

EVERY_TASK = pytest.mark.parametrize("name", available_pretext_tasks())
EVERY_SEQUENCE_TASK = pytest.mark.parametrize(
    "name", sorted(set(available_tasks()) - set(available_pretext_tasks()))
)
EVERY_KIND = pytest.mark.parametrize("name", available_tasks())
SIZE, ACTIONS = 36, 5
DTYPES = [torch.uint8, torch.float32, torch.bfloat16]

NEW_TASK = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Flip:
    name: str
    num_classes: int = 2

    def __call__(self, x, *, generator):
        raise NotImplementedError

    def every_class(self, x):
        raise NotImplementedError

    def usable(self, x):
        raise NotImplementedError
"""


def stacks(batch: int, generator: torch.Generator, size: int = 4) -> Tensor:
    return torch.randint(1, 256, (batch, 4, size, size), dtype=torch.uint8, generator=generator)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def extra_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that counts as part of rayssl/tasks/ for one test."""
    monkeypatch.setattr(rayssl.tasks, "__path__", [*rayssl.tasks.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for module_name in set(sys.modules) - before:
        if module_name.startswith("rayssl.tasks."):
            del sys.modules[module_name]
            delattr(rayssl.tasks, module_name.rpartition(".")[2])
    importlib.invalidate_caches()


@EVERY_TASK
def test_task_is_a_pretext_task_that_knows_its_name(name: str) -> None:
    task = make_task(name)
    assert isinstance(task, PretextTask)
    assert task.name == name
    assert task.num_classes >= 2


@EVERY_TASK
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_task_keeps_shape_and_dtype_and_labels_are_int64_in_range(
    name: str, dtype: torch.dtype, batch: int, generator: torch.Generator
) -> None:
    task = make_task(name)
    x = stacks(batch, generator).to(dtype)
    x_hat, y_hat = task(x, generator=generator)
    assert (x_hat.shape, x_hat.dtype, x_hat.device) == (x.shape, dtype, x.device)
    assert (y_hat.shape, y_hat.dtype, y_hat.device) == ((batch,), torch.int64, x.device)
    assert all(0 <= label < task.num_classes for label in y_hat.tolist())


@EVERY_TASK
def test_every_class_gives_each_sample_once_under_each_label_as_a_draw_would(
    name: str, generator: torch.Generator
) -> None:
    task = make_task(name)
    x = stacks(3, generator)
    x_hat, y_hat = task.every_class(x)
    assert y_hat.tolist() == [k for k in range(task.num_classes) for _ in range(3)]
    assert (x_hat.shape[1:], x_hat.dtype) == (x.shape[1:], x.dtype)
    drawn, labels = task(x.repeat(50 * task.num_classes, 1, 1, 1), generator=generator)
    for i, label in enumerate(y_hat.tolist()):
        of_sample, of_label = drawn[i % 3 :: 3], labels[i % 3 :: 3] == label
        same = (of_sample == x_hat[i]).flatten(1).all(1)
        assert same.any(), "some draw gives this very x_hat"
        assert not (same & ~of_label).any(), "and no draw gives it under another label"


@EVERY_TASK
def test_task_draws_all_classes_equally_often(name: str, generator: torch.Generator) -> None:
    task = make_task(name)
    expected = 1000
    x = stacks(expected * task.num_classes, generator, size=3)
    counts = torch.bincount(task(x, generator=generator)[1], minlength=task.num_classes)
    assert counts.shape == (task.num_classes,)
    assert ((counts - expected).abs() < 5 * expected**0.5).all(), counts  # five deviations


@EVERY_TASK
def test_task_draws_for_each_sample_of_a_batch_on_its_own(
    name: str, generator: torch.Generator
) -> None:
    x = stacks(1, generator).repeat(64, 1, 1, 1)
    x_hat, y_hat = make_task(name)(x, generator=generator)
    assert len(set(y_hat.tolist())) > 1
    assert len(x_hat.unique(dim=0)) > 1


@EVERY_TASK
def test_task_repeats_its_draw_for_the_same_seed_only(
    name: str, generator: torch.Generator
) -> None:
    task = make_task(name)
    x = stacks(64, generator)
    x_hat, y_hat = task(x, generator=seeded(1))
    x_hat_again, y_hat_again = task(x, generator=seeded(1))
    assert torch.equal(x_hat, x_hat_again)
    assert torch.equal(y_hat, y_hat_again)
    assert not torch.equal(y_hat, task(x, generator=seeded(2))[1])


@EVERY_TASK
def test_task_draws_anew_at_the_next_call(name: str, generator: torch.Generator) -> None:
    task = make_task(name)
    x = stacks(64, generator)
    labels = [task(x, generator=generator)[1] for _ in range(2)]
    assert not torch.equal(*labels)


@EVERY_TASK
def test_task_neither_changes_nor_aliases_its_input(name: str, generator: torch.Generator) -> None:
    task = make_task(name)
    x = stacks(32, generator)
    before = x.clone()
    task.usable(x)
    x_hat, _ = task(x, generator=generator)
    x_hat.zero_()
    assert torch.equal(x, before)


@EVERY_TASK
def test_task_leaves_the_global_random_state_alone(name: str, generator: torch.Generator) -> None:
    task = make_task(name)
    x = stacks(8, generator)
    before = torch.get_rng_state()
    task(x, generator=generator)
    task.usable(x)
    assert torch.equal(torch.get_rng_state(), before)


@EVERY_TASK
def test_task_survives_pickling_as_an_equal(name: str) -> None:
    task = make_task(name)
    assert pickle.loads(pickle.dumps(task)) == task


@EVERY_TASK
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_usable_says_yes_or_no_for_each_sample(
    name: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    x = stacks(6, generator).to(dtype)
    x[2:] = 0  # says nothing about any transform
    usable = make_task(name).usable(x)
    assert usable.dtype == torch.bool
    assert usable.tolist() == [True, True, False, False, False, False]
    assert make_task(name).usable(x[:0]).shape == (0,)


# Tasks of either kind, as the learner of a game sees them


def sequences(task: SequenceTask, generator: torch.Generator, batch: int = 6) -> Sequences:
    """Random steps; those of the last two samples do not exist."""
    steps = task.num_steps
    shape = (batch, steps + 1, 4, SIZE, SIZE)
    mask = torch.ones(batch, steps, dtype=torch.bool)
    mask[-2:] = False
    return Sequences(
        torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator),
        torch.randint(ACTIONS, (batch, steps), generator=generator),
        torch.randint(-1, 2, (batch, steps), generator=generator).float(),
        mask,
    )


def network_of(name: str) -> MultiHeadNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_atari_network("nature", num_actions=ACTIONS, aux_task=name, size=SIZE)


@EVERY_SEQUENCE_TASK
def test_task_on_sequences_knows_its_name_and_is_refused_where_images_need_labels(
    name: str,
) -> None:
    task = make_any_task(name)
    assert not isinstance(task, PretextTask)
    assert task.name == name
    on_images = name in available_image_tasks()
    refusal = "puts no label" if on_images else "works on games alone .*For images: .*rotation"
    with pytest.raises(ValueError, match=f"Task '{name}' {refusal}"):
        make_task(name)
    if on_images:
        assert task.num_steps == 0
        assert make_image_task(name) == task
    else:
        with pytest.raises(ValueError, match=f"Task '{name}' works on games alone"):
            make_image_task(name)


@EVERY_KIND
def test_task_says_what_it_needs_and_what_guessing_gives(name: str) -> None:
    task = as_sequence_task(make_any_task(name))
    assert isinstance(task, SequenceTask)
    assert task.num_steps >= 0
    assert task.target_rate is None or 0 < task.target_rate <= 1
    assert task.rewarding_share is None or 0 < task.rewarding_share < 1
    assert 0 < task.chance(num_actions=6, batch_size=32) <= 0.5


@EVERY_KIND
def test_usable_says_for_each_sequence_whether_it_can_be_learned_from(
    name: str, generator: torch.Generator
) -> None:
    task = as_sequence_task(make_any_task(name))
    usable = task.usable(sequences(task, generator))
    assert usable.dtype == torch.bool
    assert usable.tolist() == [True] * 4 + [task.num_steps == 0] * 2


@EVERY_KIND
def test_draw_repeats_for_the_same_seed_and_neither_changes_nor_reads_anything_else(
    name: str, generator: torch.Generator
) -> None:
    task = as_sequence_task(make_any_task(name))
    data = sequences(task, generator)
    before, state = [each.clone() for each in data], torch.get_rng_state()
    first, same = (task.draw(data, generator=seeded(1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert all(len(each) == len(data.obs) for each in first)
    assert all(torch.equal(a, b) for a, b in zip(data, before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@EVERY_KIND
def test_loss_is_one_number_a_sample_and_moves_trunk_and_head_but_not_the_target(
    name: str, generator: torch.Generator
) -> None:
    task = as_sequence_task(make_any_task(name))
    online, follower = network_of(name), network_of(name).requires_grad_(False)
    drawn = task.draw(sequences(task, generator), generator=generator)
    encoders = [
        net.encoder(net.cast_parameters(torch.float32), "aux") for net in (online, follower)
    ]
    target = encoders[1] if task.target_rate else None
    found = task.loss(encoders[0], target, drawn)
    assert found.loss.shape == found.correct.shape == (6,)
    assert found.loss.dtype == found.correct.dtype == torch.float32
    assert found.loss.isfinite().all()
    assert ((found.correct >= 0) & (found.correct <= 1)).all()
    assert torch.equal(found.loss, task.loss(encoders[0], target, drawn).loss)
    found.loss[:4].mean().backward()
    assert online.backbone.convs[0].weight.grad.abs().sum() > 0  # type: ignore[index, union-attr]
    for parameter in online.heads["aux"].parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert all(p.grad is None for p in follower.parameters())


@EVERY_KIND
def test_head_computes_in_float32_over_a_trunk_in_bfloat16(
    name: str, generator: torch.Generator
) -> None:
    task = as_sequence_task(make_any_task(name))
    network = network_of(name)
    drawn = task.draw(sequences(task, generator), generator=generator)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        encoder = network.encoder(network.cast_parameters(dtype), "aux")
        losses.append(task.loss(encoder, encoder if task.target_rate else None, drawn).loss)
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.1)


@EVERY_KIND
def test_task_of_either_kind_survives_pickling_as_an_equal(name: str) -> None:
    task = make_any_task(name)
    assert pickle.loads(pickle.dumps(task)) == task


def test_new_file_in_the_folder_is_a_new_task(extra_folder: Path) -> None:
    before = available_tasks()
    (extra_folder / "flip_both.py").write_text(
        NEW_TASK + "TASKS = {'flip-both': lambda: Flip('flip-both'), 'flip-up': lambda: Flip('up')}"
    )
    assert available_tasks() == tuple(sorted([*before, "flip-both", "flip-up"]))
    assert isinstance(make_task("flip-both"), PretextTask)
    assert make_task("flip-up").name == "up"


def test_name_that_two_files_define_is_refused(extra_folder: Path) -> None:
    (extra_folder / "spin.py").write_text(
        NEW_TASK + "TASKS = {'spin': lambda: Flip('spin'), 'rotation': lambda: Flip('rotation')}"
    )
    text = r"got 'rotation' again in rayssl/tasks/spin\.py\. Rename one"
    with pytest.raises(ValueError, match=text):
        available_tasks()


@pytest.mark.parametrize("source", ["", "TASKS = {'jigsaw': int}"])
def test_file_whose_first_task_has_another_name_is_refused(extra_folder: Path, source: str) -> None:
    (extra_folder / "puzzle.py").write_text(source)
    text = r"Expected rayssl/tasks/puzzle\.py to define TASKS with first name 'puzzle', got \["
    with pytest.raises(ValueError, match=text):
        make_task("rotation")
