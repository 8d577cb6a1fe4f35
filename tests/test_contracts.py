"""What every pretext task must hold: runs over each name in the folder, a new file included."""

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rayssl.tasks
from rayssl.tasks import PretextTask, available_tasks, make_task

EVERY_TASK = pytest.mark.parametrize("name", available_tasks())
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
    drawn, labels = task(x.repeat(200, 1, 1, 1), generator=generator)
    for i, label in enumerate(y_hat.tolist()):
        of_sample, of_label = drawn[i % 3 :: 3], labels[i % 3 :: 3] == label
        same = (of_sample == x_hat[i]).flatten(1).all(1)
        assert same.any(), "some draw gives this very x_hat"
        assert not (same & ~of_label).any(), "and no draw gives it under another label"


@EVERY_TASK
def test_task_draws_all_classes_equally_often(name: str, generator: torch.Generator) -> None:
    task = make_task(name)
    expected = 1000
    x = stacks(expected * task.num_classes, generator, size=2)
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
