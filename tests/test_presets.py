"""Presets: every value pinned and sourced, every field explained, every config valid."""

import ast
import inspect
from dataclasses import asdict, fields, replace
from typing import Any, get_args, get_type_hints

import pytest

from experiments.atari import build_config
from rayssl.cli import parse_atari_run
from rayssl.presets import PRESETS, AtariRun, preset_values
from rayssl.tasks import available_tasks

# What a preset need not name: where and how a run is placed, stored and logged.
PLUMBING = {
    "preset", "seed", "num_workers", "num_learners", "num_gpus", "learner_cpus", "address",
    "results_dir", "name", "resume", "checkpoint_every", "save_replay", "replay_device",
    "compile", "cuda_graphs", "steps_per_report", "evaluate_every", "evaluation_games",
    "policy", "init_from",  # folders of one's own
}  # fmt: skip
# Fields that count something over time or data, and the words that say what.
UNITS = {
    "steps": "agent steps",
    "checkpoint_every": "agent steps",
    "learning_starts": "agent steps",
    "epsilon_steps": "agent steps",
    "priority_beta_steps": "agent steps",
    "steps_per_report": "agent steps",
    "evaluate_every": "agent steps",
    "evaluation_games": "whole games",
    "target_every": "steps or updates",
    "target_unit": "agent steps or td updates",
    "n_step": "agent steps",
    "gamma": "per agent step",
    "replay_ratio": "td updates per agent step",
    "aux_every": "td updates",
    "pretrain_updates": "updates",
    "batch_size": "transitions",
    "replay_capacity": "transitions",
    "frame_size": "pixels",
}
SETTINGS = [(name, key) for name, preset in PRESETS.items() for key in preset]


def help_texts() -> dict[str, str]:
    """Returns the text below each field of AtariRun, which --help prints."""
    body = ast.parse(inspect.getsource(AtariRun)).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = str(ast.literal_eval(text.value))
    return texts


def test_presets_are_the_choices_of_the_command_line() -> None:
    assert set(PRESETS) == set(get_args(get_type_hints(AtariRun)["preset"]))
    assert AtariRun().preset == "pong"


def test_paper_code_preset_is_the_table_of_paper_code_md() -> None:
    assert preset_values("paper-code") == {
        "preset": "paper-code",
        "num_workers": 0, "envs_per_worker": 1, "frame_size": 84, "sticky": 0.0,  # environment
        "cut_on_life_loss": True, "clip_rewards": True,
        "steps": 1_000_000,  # budget
        "network": "paper-code",
        "double_q": True, "n_step": 1, "gamma": 0.99,  # algorithm
        "prioritized": True, "priority_beta_steps": None, "replay_capacity": 10_000,
        "lr": 1e-4, "adam_epsilon": 1e-8, "optimizers": "separate", "freeze_trunk": False,
        "grad_clip": 10.0, "grad_clip_by": "norm", "compute_dtype": "float32",
        "learning_starts": 10_000, "replay_ratio": 1 / 4, "batch_size": 32,  # schedule
        "schedule": "alternate", "aux_every": 1, "aux_weight": 1.0, "pretrain_updates": 0,
        "target_every": 1_000, "target_unit": "steps",
        "epsilon_end": 0.01, "epsilon_steps": 100_000,  # exploration
        "augment": "none",
        "aux_task": "permutation-6", "aux_combine": "cycle", "aux_samples": "all",  # sequence
    }  # fmt: skip


def test_paper_code_preset_reaches_the_config_with_what_has_no_option() -> None:
    config = build_config(AtariRun(**preset_values("paper-code")))
    config.validate()
    assert (config.priority_alpha, config.priority_beta) == (0.6, 0.4)
    assert config.priority_beta_steps == 1_000_000  # beta is 1 at the end of the run
    assert config.target_period_updates == 250  # 1,000 steps at an update every 4
    assert [config.epsilon_at(step) for step in (0, 50_000, 100_000)] == [1.0, 0.505, 0.01]
    assert config.num_lanes == 1
    settings = config.atari_settings()
    assert (settings.noop_max, settings.frame_skip, settings.stack) == (30, 4, 4)
    assert settings.fire_at_start


def test_paper_code_preset_names_every_field_that_learning_depends_on() -> None:
    # Complete, so that a new default of AtariRun does not move it; the paper has two games.
    assert {field.name for field in fields(AtariRun)} - set(PRESETS["paper-code"]) == (
        PLUMBING - {"num_workers"} | {"game"}
    )


def test_pong_preset_equals_the_defaults_and_names_all_that_learning_depends_on() -> None:
    assert AtariRun(**preset_values("pong")) == AtariRun()
    assert {field.name for field in fields(AtariRun)} - set(PRESETS["pong"]) == PLUMBING


def test_pong_preset_has_the_values_that_its_sources_give() -> None:
    expected: dict[str, Any] = {
        "batch_size": 32, "gamma": 0.99, "replay_ratio": 0.25, "network": "nature",  # Mnih 2015
        "n_step": 10, "double_q": True, "prioritized": False,  # DrQ(eps)
        "target_every": 1_000, "target_unit": "steps", "grad_clip": 10.0, "epsilon_end": 0.01,
        "lr": 2e-4, "adam_epsilon": 1e-5, "epsilon_steps": 30_000, "learning_starts": 3_000,
        "replay_capacity": 100_000,
    }  # fmt: skip
    values = preset_values("pong")
    assert {key: values[key] for key in expected} == expected


def test_quick_and_breakout_presets_change_what_they_say_and_nothing_else() -> None:
    assert preset_values("quick") == {
        "preset": "quick", "steps": 20_000, "learning_starts": 2_000, "epsilon_steps": 15_000,
        "replay_capacity": 20_000, "checkpoint_every": 10_000, "steps_per_report": 1_000,
    }  # fmt: skip
    assert preset_values("breakout") == {
        "preset": "breakout", "game": "breakout", "steps": 1_000_000, "epsilon_steps": 100_000,
        "n_step": 3, "prioritized": True,  # Rainbow
        "optimizers": "separate",  # the authors' code
    }  # fmt: skip


def test_atari_100k_preset_is_the_configuration_of_drq_eps() -> None:
    assert preset_values("atari-100k") == {
        "preset": "atari-100k", "steps": 100_000,  # Runner.training_steps
        "n_step": 10, "replay_ratio": 1, "learning_starts": 1_600,  # JaxDQNAgent
        "target_every": 1, "target_unit": "updates",
        "epsilon_end": 0.01, "epsilon_steps": 5_000,
        "lr": 1e-4, "adam_epsilon": 1.5e-4,  # create_optimizer
        "prioritized": False, "augment": "shift",  # replay_scheme, data_augmentation
        "cut_on_life_loss": True, "envs_per_worker": 1,
        "replay_capacity": 100_000,
    }  # fmt: skip
    run = AtariRun(**preset_values("atari-100k"))
    assert (run.batch_size, run.gamma, run.double_q, run.sticky) == (32, 0.99, True, 0)
    assert run.network == "nature"


def test_unknown_preset_lists_the_known_ones() -> None:
    text = r"^Unknown preset 'atari'\. Available: atari-100k, breakout, paper-code, pong, quick\.$"
    with pytest.raises(ValueError, match=text):
        preset_values("atari")


@pytest.mark.parametrize(("name", "key"), SETTINGS)
def test_every_value_of_a_preset_has_a_source(name: str, key: str) -> None:
    assert key in AtariRun.__dataclass_fields__
    assert PRESETS[name][key].source.strip()


@pytest.mark.parametrize("task", [None, "none", "rotation"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_builds_a_valid_config_with_and_without_a_task(name: str, task: str | None) -> None:
    run = AtariRun(**preset_values(name))
    config = build_config(run if task is None else replace(run, aux_task=task))
    config.validate()
    assert (config.aux_task is None) == (task == "none")
    assert (config.lr, config.n_step, config.seed) == (run.lr, run.n_step, run.seed)
    assert config.learning_starts_steps == run.learning_starts < run.steps


@pytest.mark.parametrize("task", ["none", "permutation"])
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_checkpoint_names_every_option_that_its_agent_learned_with(name: str, task: str) -> None:
    run = AtariRun(**preset_values(name) | {"aux_task": task})
    known = build_config(run).training_options
    assert known.items() <= asdict(run).items()
    # What else model.json has by itself, or is how long and with how many games a run goes on.
    own = {"network", "aux_task", "aux_weight", "frame_size", "sticky", "envs_per_worker",
           "steps", "priority_beta_steps"}  # fmt: skip
    of_task = {"schedule", "aux_combine", "aux_samples", "aux_every", "pretrain_updates",
               "optimizers"}  # fmt: skip
    void = set() if task == "permutation" else of_task
    assert (
        set(known) == {field.name for field in fields(AtariRun)} - PLUMBING - {"game"} - own - void
    )


@pytest.mark.parametrize("field", [field.name for field in fields(AtariRun)])
def test_every_field_has_a_help_text_and_a_duration_its_unit(field: str) -> None:
    text = help_texts().get(field, "")
    assert len(text.split()) >= 2
    assert text.endswith(".")
    assert UNITS.get(field, "") in text.lower()


def test_every_field_that_sounds_like_a_duration_is_checked_for_its_unit() -> None:
    words = {"steps", "every", "starts", "updates", "capacity", "per"}
    durations = {
        f.name
        for f in fields(AtariRun)
        if words & set(f.name.split("_")) and "worker" not in f.name
    }
    assert durations <= set(UNITS)
    assert set(UNITS) <= set(AtariRun.__dataclass_fields__)


def test_help_lists_the_tasks_of_the_folder_and_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_atari_run(["--help"])
    help_text = "".join(capsys.readouterr().out.split())
    assert "--aux-task{none," + ",".join(available_tasks()) + "}" in help_text
