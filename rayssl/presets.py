"""The settings of an Atari run, and the five presets, each value with its source."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rayssl.tasks import available_tasks

_TASKS = "{none," + ",".join(available_tasks()) + "}"  # how --help lists the choices


@dataclass(frozen=True)
class AtariRun:
    """Trains a dueling double DQN on an Atari game, with or without a self-supervised task.

    Steps are agent steps, 4 emulator frames each. Defaults are those of the preset `pong`.
    """

    preset: Literal["quick", "pong", "breakout", "paper-code", "atari-100k"] = "pong"
    """Starting values of everything below (rayssl/presets.py)."""
    game: str = "pong"
    """Any ALE game by its usual names: pong, Pong, ALE/Pong-v5, PongNoFrameskip-v4."""
    aux_task: Annotated[str, tyro.conf.arg(metavar=_TASKS)] = "permutation"
    """Self-supervised task on the trunk, or several: permutation+inverse; none: plain baseline."""
    aux_weight: float | str = 1.0
    """Weight of the aux loss, eq. (3), or one for each task: 0.5,0.1; 0 is the plain baseline."""
    aux_combine: Literal["cycle", "sum"] = "cycle"
    """Of several tasks an aux update trains one, in turn, or the weighted sum of all."""
    aux_samples: Literal["usable", "all"] = "usable"
    """Samples that the aux loss learns from: those that carry a label, or all of the batch."""
    aux_every: int = 1
    """One aux update after this many TD updates."""
    schedule: Literal["alternate", "joint", "pretrain", "aux-only"] = "alternate"
    """Alternate updates (the paper), add the losses (eq. 3), aux first, then TD, or never TD."""
    pretrain_updates: int = 0
    """Aux-only updates before the first TD update."""
    optimizers: Literal["shared", "separate"] = "shared"
    """One Adam for both losses, or one each."""
    policy: Path | None = None
    """With schedule aux-only: the run or checkpoint that plays; by default random actions."""
    init_from: Path | None = None
    """Run or checkpoint whose trunk this run starts from, e.g. one of pretrain.py atari."""
    freeze_trunk: bool = False
    """Train the heads only: the trunk stays what it is at the start."""
    steps: int = 400_000
    """Agent steps of the run."""
    seed: int = 0
    """Seeds weights, games, exploration, replay and task."""
    num_workers: int = 0
    """Env runner processes; 0 samples in the learner's process."""
    envs_per_worker: int = 8
    """Games that each env runner plays side by side."""
    num_learners: int = 0
    """Learner processes (data parallel); 0 learns in the algorithm's process."""
    num_gpus: int = 0
    """GPUs, shared evenly by the learners."""
    learner_cpus: int | None = None
    """CPU cores of the algorithm's process; by default what the workers leave, 8 at most."""
    address: str | None = None
    """Ray cluster: HOST:PORT, auto, or local; by default $RAY_ADDRESS, else local."""
    results_dir: Path = Path("results/local")
    """Folder of all runs; this run gets a folder below it."""
    name: str | None = None
    """Name of the run's folder; by default game, task and seed."""
    resume: Path | None = None
    """Folder of a run to go on with, from its newest whole checkpoint."""
    checkpoint_every: int = 50_000
    """Agent steps between checkpoints; there is a final one always."""
    save_replay: bool = True
    """Write the replay's contents into checkpoints."""
    network: Literal["nature", "paper-code", "paper-text"] = "nature"
    """Trunk, and what it shares with the aux head (rayssl/backbones/atari.py)."""
    frame_size: int = 84
    """Side of a frame, pixels."""
    sticky: float = 0.0
    """Probability that the console repeats the last action."""
    lr: float = 2e-4
    """Adam's learning rate."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon."""
    gamma: float = 0.99
    """Discount per agent step."""
    n_step: int = 10
    """Rewards in a return, agent steps."""
    double_q: bool = True
    """Choose the bootstrap action with the online network."""
    batch_size: int = 32
    """Transitions in an update."""
    replay_ratio: float = 0.25
    """TD updates per agent step, whatever the number of workers."""
    replay_capacity: int = 100_000
    """Transitions kept, 7.06 kB each."""
    replay_device: Literal["auto", "host", "learner"] = "auto"
    """Where their frames lie: main memory, the learner's GPU, or there if it has room (auto)."""
    learning_starts: int = 3_000
    """Agent steps before the first update."""
    target_every: int = 1_000
    """Period of the hard target update, in steps or updates (target_unit)."""
    target_unit: Literal["steps", "updates"] = "steps"
    """Unit of target_every: agent steps or TD updates."""
    grad_clip: float = 10.0
    """Largest gradient norm."""
    grad_clip_by: Literal["global_norm", "norm"] = "global_norm"
    """Clip all gradients together, or each tensor by itself."""
    epsilon_end: float = 0.01
    """Epsilon after epsilon_steps; it starts at 1."""
    epsilon_steps: int = 30_000
    """Agent steps over which epsilon falls."""
    augment: Literal["none", "shift"] = "none"
    """Shift the states of TD updates at random, by up to 4 pixels each way (DrQ)."""
    prioritized: bool = False
    """Prioritized replay, alpha 0.6, beta 0.4 to 1."""
    priority_beta_steps: int | None = None
    """Agent steps until beta is 1; by default the whole run, so shorter runs learn differently."""
    clip_rewards: bool = True
    """Learn from the sign of rewards (scores are never clipped)."""
    cut_on_life_loss: bool = True
    """No bootstrapping across a lost life."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of trunk and branches; auto: bfloat16 where the hardware has it."""
    compile: bool = True
    """Compile updates: on a CPU each as one graph, Adam included; costs time at the start."""
    cuda_graphs: bool = True
    """On a GPU, launch whole updates at once (CUDA graphs)."""
    steps_per_report: int = 2_000
    """Agent steps between two rows of the logs; fewer where evaluate_every is."""
    evaluate_every: int = 0
    """Agent steps between two evaluations of the trained agent over whole games; 0: none."""
    evaluation_games: int = 100
    """Whole games of an evaluation (100: section V-C)."""

    def __post_init__(self) -> None:
        """Makes paths absolute: a resume and a sweep's trials have other working directories."""
        for name in ("policy", "init_from"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)).resolve())


@dataclass(frozen=True)
class Setting:
    """A preset's value and where it comes from."""

    value: Any
    source: str


_CODE = "paper-code.md (the authors' code)"
_MNIH = "Mnih et al. 2015, Ext. Data Table 1"
_MNIH_TEXT = "Mnih et al. 2015, Methods"
_DRQ = "Agarwal et al. 2021: DrQ(eps), dopamine labs/atari_100k/configs/DrQ_eps.gin"
# Runs whose scores speak for the values together; each value by itself has no rival on file.
_OURS = (
    "ours, not compared with others: plain DQN, seeds 0 to 2, scores in Pong 19.5, 1.2 and 10.7 "
    "after 200,704 steps (results/paper-pong-second), in Breakout 22.6, 14.7 and 22.1 "
    "(results/paper-breakout-fourth); longer, seed 0: Pong 18.3 after 450,560 "
    "(results/pong-cpu-long)"
)
_RAINBOW = "Hessel et al. 2018 (Rainbow), Table 1"
_BREAKOUT = (
    "ours: plain DQN, seed 0, scores 16.4 in training games after 151,552 steps, 9.9 with n_step "
    "1, 13.3 (n_step 3) and 14.6 (1) with uniform replay (results/preset-breakout), 9.4 with "
    "uniform replay and n_step 10 (results/paper-breakout-second); one seed, a guide: 15.7 with "
    "beta's schedule over 200,000 steps (results/paper-breakout-third)"
)
_SEPARATE = (
    "ours: importance weights make plain DQN's TD loss 84 times smaller than uniform replay's "
    "(59,392 to 71,680 steps of results/preset-breakout), and an Adam that both losses share then "
    "follows the pretext loss (results/preset-breakout-order)"
)
_BUDGET = "ours: what 2 CPU cores can do"

# A default stands once, in AtariRun; here stands where each comes from.
_PONG_SOURCES = {
    "game": "section V-A",
    "aux_task": "section IV-B, sequence prediction: the better of the paper's two tasks",
    "aux_weight": "eq. (3): the losses are added",
    "aux_combine": "ours: each update costs what one task costs",
    "aux_samples": "ours: where two classes look alike there is no right answer",
    "aux_every": "section IV-B: alternate",
    "schedule": "section IV-B: alternate",
    "pretrain_updates": "Fig. 11: pretraining is for its maps alone",
    "freeze_trunk": "section IV-B: all losses train the trunk",
    "optimizers": "ours: one Adam, one memory of the shared trunk's gradients",
    "steps": _BUDGET,
    "envs_per_worker": "ours: one forward pass serves 8 games",
    "network": _MNIH_TEXT + ", Model architecture",
    "frame_size": "section V-A",
    "sticky": _CODE + ": NoFrameskip-v4 has none",
    "lr": _OURS,
    "adam_epsilon": _OURS,
    "gamma": _MNIH,
    "n_step": _DRQ,
    "double_q": _DRQ,
    "batch_size": _MNIH,
    "replay_ratio": _MNIH + ": an update every 4 steps",
    "replay_capacity": "ours: 706 MB of memory",
    "learning_starts": _OURS,
    "target_every": _CODE,
    "target_unit": _CODE,
    "grad_clip": _CODE,
    "grad_clip_by": "ours: keeps the gradient's direction",
    "epsilon_end": _CODE,
    "epsilon_steps": _OURS,
    "augment": "ours: the paper has none",
    "prioritized": _DRQ + ": uniform",
    "priority_beta_steps": _CODE + ": over the run",
    "clip_rewards": _MNIH_TEXT,
    "cut_on_life_loss": _CODE + ": an episode per life",
    "compute_dtype": "ours: speed",
}
_DEFAULTS = {field.name: field.default for field in fields(AtariRun)}

# Every preset starts from AtariRun's defaults, which are those of `pong`, and names what differs.
PRESETS: dict[str, dict[str, Setting]] = {
    "pong": {key: Setting(_DEFAULTS[key], source) for key, source in _PONG_SOURCES.items()},
    "breakout": {
        "game": Setting("breakout", "section V-A"),
        "steps": Setting(1_000_000, _CODE),
        "epsilon_steps": Setting(100_000, _CODE),
        "n_step": Setting(3, _RAINBOW + "; " + _BREAKOUT),
        "prioritized": Setting(True, _CODE + ", and " + _RAINBOW + "; " + _BREAKOUT),
        "optimizers": Setting("separate", _CODE + "; " + _SEPARATE),
    },
    "quick": {
        "steps": Setting(20_000, "ours: under 5 minutes of training on 2 cores"),
        "learning_starts": Setting(2_000, "ours: see the aux accuracy rise early"),
        "epsilon_steps": Setting(15_000, "ours, for the short run"),
        "replay_capacity": Setting(20_000, "ours: as long as the run"),
        "checkpoint_every": Setting(10_000, "ours: one half-way, one at the end"),
        "steps_per_report": Setting(1_000, "ours: 20 points in the curve"),
    },
    # DrQ(eps) on 100k steps; its evaluation: evaluate.py --episodes 100 --epsilon 0.001.
    "atari-100k": {
        "steps": Setting(100_000, _DRQ),
        "envs_per_worker": Setting(1, _DRQ),
        "lr": Setting(1e-4, _DRQ),
        "adam_epsilon": Setting(1.5e-4, _DRQ),
        "n_step": Setting(10, _DRQ),
        "replay_ratio": Setting(1.0, _DRQ + ": update_period 1"),
        "replay_capacity": Setting(100_000, _DRQ + ": more than the run has"),
        "learning_starts": Setting(1_600, _DRQ),
        "target_every": Setting(1, _DRQ),
        "target_unit": Setting("updates", _DRQ),
        "epsilon_end": Setting(0.01, _DRQ),
        "epsilon_steps": Setting(5_000, _DRQ),
        "augment": Setting("shift", _DRQ + ", whose jitter of the intensity is left out"),
        "prioritized": Setting(False, _DRQ + ": uniform"),
        "cut_on_life_loss": Setting(True, _DRQ),
    },
    # Complete, so that no later change of a default can move it.
    "paper-code": {
        "aux_task": Setting("permutation-6", _CODE + ": 6 classes of two orders"),
        "aux_weight": Setting(1.0, _CODE),
        "aux_combine": Setting("cycle", _CODE + ": a single task"),
        "aux_samples": Setting("all", _CODE + ": the TD batch's 32 observations"),
        "aux_every": Setting(1, _CODE + ": one TD update, then one aux update"),
        "schedule": Setting("alternate", _CODE),
        "pretrain_updates": Setting(0, _CODE),
        "freeze_trunk": Setting(False, _CODE),
        "optimizers": Setting("separate", _CODE + ": a second Adam for the aux loss"),
        "steps": Setting(1_000_000, _CODE),
        "num_workers": Setting(0, _CODE + ": one environment"),
        "envs_per_worker": Setting(1, _CODE + ": one environment"),
        "network": Setting("paper-code", _CODE),
        "frame_size": Setting(84, _CODE),
        "sticky": Setting(0.0, _CODE),
        "lr": Setting(1e-4, _CODE),
        "adam_epsilon": Setting(1e-8, _CODE + ": TensorFlow's default"),
        "gamma": Setting(0.99, _CODE),
        "n_step": Setting(1, _CODE),
        "double_q": Setting(True, _CODE),
        "batch_size": Setting(32, _CODE),
        "replay_ratio": Setting(0.25, _CODE + ": an update every 4 steps"),
        "replay_capacity": Setting(10_000, _CODE),
        "learning_starts": Setting(10_000, _CODE),
        "target_every": Setting(1_000, _CODE),
        "target_unit": Setting("steps", _CODE),
        "grad_clip": Setting(10.0, _CODE),
        "grad_clip_by": Setting("norm", _CODE + ": each gradient tensor by itself"),
        "epsilon_end": Setting(0.01, _CODE),
        "epsilon_steps": Setting(100_000, _CODE),
        "augment": Setting("none", _CODE),
        "prioritized": Setting(True, _CODE + ": alpha 0.6, beta 0.4 to 1"),
        "priority_beta_steps": Setting(None, _CODE + ": over the run"),
        "clip_rewards": Setting(True, _CODE),
        "cut_on_life_loss": Setting(True, _CODE + ": an episode per life"),
        "compute_dtype": Setting("float32", "TensorFlow's default"),
    },
}


def weights_of(text: float | str) -> tuple[float, ...]:
    """Returns the weights in `--aux-weight`: one, or one for each task, as in 0.5,0.1.

    Raises:
      ValueError: for a word that is no number.
    """
    try:
        return tuple(float(word) for word in str(text).split(","))
    except ValueError:
        raise ValueError(
            f"--aux-weight must be a number of 0 or more, or one for each task, got {text!r}. "
            "Write e.g. 1 or 0.5,0.1."
        ) from None


def preset_values(name: str) -> dict[str, Any]:
    """Returns the values of a preset, `preset` itself included.

    Raises:
      ValueError: for an unknown name; the text lists the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"Unknown preset '{name}'. Available: {', '.join(sorted(PRESETS))}.")
    return {"preset": name} | {key: setting.value for key, setting in PRESETS[name].items()}
