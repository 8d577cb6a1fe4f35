"""The learner: a TD update, then the aux update when it is due, on batches that come ready.

    slot of the schedule      0        1        2        3          (alternate, every=2)
    updates                   TD       TD aux   TD       TD aux
    heads that move           q        q   aux  q        q   aux    (the trunk moves in all)

Of several tasks one after the other is trained, each with the head of its own (`cycle`), or all in
each aux update (`sum`).

RLlib's default update is bypassed on purpose: it back-propagates through the next observations,
checks every parameter for NaN twice, and reduces metrics per update (design.md, "The data path").
"""

import logging
import math
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.typing import StateDict
from torch import Tensor, nn
from torch.func import functional_call

from rayssl.augmentation import draw_shifts, shift
from rayssl.compiled_graphs import CompiledGraph, warn_uncompiled
from rayssl.cuda_graphs import CudaGraph
from rayssl.evaluation import load_trunk
from rayssl.losses import (
    combined_loss,
    double_q_td_error,
    gradient_cosine,
    mean_of_usable,
    td_loss,
)
from rayssl.memory import keep_freed_memory
from rayssl.networks import MultiHeadNetwork
from rayssl.optimizers import ADAM_STATE, adam_steps, clip_scales
from rayssl.rllib.aux_tasks import REWARDING_ROWS, TD_ROWS, AuxTask, make_aux_tasks, sequences_of
from rayssl.tasks import Sequences

logger = logging.getLogger(__name__)
DISCOUNTS, WEIGHTS = "discounts", "weights"
TD_COLUMNS = (
    Columns.OBS, Columns.NEXT_OBS, Columns.ACTIONS, Columns.REWARDS, DISCOUNTS, WEIGHTS,
)  # fmt: skip
TD_FIGURES = ("td_loss", "q_mean", "td_error_abs")
AUX_FIGURES = ("aux_left_out", "aux_loss", "aux_accuracy")
Params = dict[str, Tensor]


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype in which trunk and branches compute: `float32`, `bfloat16`, or `auto`.

    `auto` is bfloat16 where the device multiplies it natively (AVX512-BF16 or AMX, which implies
    it; CUDA from compute capability 8.0), float32 elsewhere: oneDNN takes bfloat16 on any CPU with
    AVX-512, and emulates it there, slower than float32. Parameters and last layers are float32
    always.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if platform.machine() in ("x86_64", "AMD64"):
            native = native and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def skip_filling_of_new_tensors() -> None:
    """Lets deterministic mode, which RLlib switches on with a seed, leave new tensors unwritten.

    It would fill the output of every convolution with NaN before it is computed. Results are the
    same: nothing here reads a tensor before it is written.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class _Due(NamedTuple):
    """A task that has its turn, its data, and which samples are learned from: bool `[B]`."""

    aux: AuxTask
    data: Sequences
    usable: Tensor
    total: float  # usable samples of all learners
    total_on_device: Tensor  # the same, without a look from Python


class _OnItsWay:
    """A tensor that travels to main memory; a GPU goes on with what it is asked to do next."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=True)  # of a GPU: page-locked memory
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> Tensor:
        """Returns the tensor in main memory, as soon as what came before it is done."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


class _Drawn(NamedTuple):
    """A task that has its turn, and what its loss takes."""

    aux: AuxTask
    inputs: tuple[Tensor, ...]  # usable, total, and what the task drew


class _Losses(NamedTuple):
    """Losses of one update; None for one that it has not."""

    td: Tensor | None
    aux: Tensor | None
    td_errors: Tensor | None  # [B]
    figures: Tensor  # [F, 2], sum and count of each figure that is logged

    @property
    def results(self) -> tuple[Tensor, ...]:
        """What an update returns of them: the figures and, with TD, the TD errors."""
        if self.td_errors is None:
            return (self.figures,)
        return self.figures, self.td_errors.detach()


@dataclass(frozen=True)
class _Parts:
    """Which losses an update has, and of how many tensors each takes its inputs.

    Attributes:
      with_td: whether the TD loss is among them.
      tasks: each aux task with the number of its inputs.
    """

    with_td: bool
    tasks: tuple[tuple[AuxTask, int], ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells one from another."""
        return (self.with_td, *((aux.head, count) for aux, count in self.tasks))

    @property
    def loss_name(self) -> str:
        """Whose optimizer makes the step, where each loss has its own."""
        return "td" if self.with_td else "aux"

    def __str__(self) -> str:
        return "+".join(["td"] * self.with_td + [aux.task.name for aux, _ in self.tasks])

    def split(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[_Drawn]]:
        """Returns the TD columns, and what each task drew."""
        given = iter(inputs)
        columns = list(islice(given, len(TD_COLUMNS))) if self.with_td else []
        return columns, [_Drawn(aux, tuple(islice(given, count))) for aux, count in self.tasks]


class _Calls(nn.Module):
    """A function that uses a module, as a module: for `functional_call` with other parameters."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self._function = function

    def forward(self, *args: Any) -> Any:
        return self._function(*args)


class AuxDQNLearner(TorchLearner):
    """Double Q-learning with an auxiliary task on the trunk.

    `update` takes K minibatches at once and returns plain numbers. With several learners each
    holds a shard of every minibatch, and gradients are averaged before they are clipped.
    """

    def build(self) -> None:
        """Builds module and optimizers, then the (compiled) losses and the task."""
        torch.set_num_threads(self.config.learner_threads)
        skip_filling_of_new_tensors()
        keep_freed_memory()
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32
        super().build()
        config = self.config
        self._net: MultiHeadNetwork = self._module[DEFAULT_MODULE_ID].net
        self._dtype = resolve_dtype(config.compute_dtype, self._device)
        self._tasks = make_aux_tasks(config.aux_task, config.aux_weights)
        self._generator = torch.Generator(self._device)
        self._generator.manual_seed((config.seed or 0) + 7919)  # the same in every learner
        self._shifts = torch.Generator(self._device)  # of the TD batch
        self._shifts.manual_seed((config.seed or 0) + 104729)
        self._slot = 0  # slots of the schedule that are done
        self._turn = 0  # aux updates that were due: whose turn it is
        self._td_updates = 0
        self._aux_updates = 0
        self._since_target_sync = 0
        self._target_params: Params = {}
        self._late_stats: tuple[list[str], _OnItsWay] | None = None  # of a GPU's last update
        compile_it = config.compile_learner and not self._compiles_steps
        self._td_fn = _Compiled(self._td_forward, compile_it)
        self._aux_fns = {
            aux.head: _Compiled(self._aux_forward(aux), compile_it) for aux in self._tasks
        }
        self._steps: dict[tuple[Any, ...], CudaGraph | CompiledGraph] = {}
        self._trunk = list(self._net.backbone.parameters())
        if config.init_from:
            self._start_from(config.init_from)
        if self.distributed:
            self._broadcast_parameters()
        self._cast_target()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers one Adam for everything, or one for each loss (paper-code.md, "optimizer")."""
        net = self._module[module_id].net
        config = config or self.config
        adam = {"eps": config.adam_epsilon, "fused": True, "capturable": self._replays_graphs}
        if config.freeze_trunk:
            net.backbone.requires_grad_(False)
        groups = {"shared": [p for p in net.parameters() if p.requires_grad]}
        if config.optimizers == "separate":
            trunk = [p for p in net.backbone.parameters() if p.requires_grad]
            groups = {
                "td": trunk + list(net.heads["q"].parameters()),
                "aux": trunk + list(net.heads["aux"].parameters()),
            }
        for name, params in groups.items():
            lr = config.lr * (config.top_aux_weight if name == "aux" else 1)
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(params, lr=lr, **adam),
                params=params,
                lr_or_lr_schedule=lr,
            )

    def _start_from(self, checkpoint: str) -> None:
        """Copies the trunk of a checkpoint into the online and the target network."""
        settings = self.config.atari_settings()
        trunk = load_trunk(checkpoint, self.config.network, settings.stack, settings.frame_size)
        self._net.backbone.load_state_dict(trunk.weights)
        self._module[DEFAULT_MODULE_ID].sync_target()
        for aux in self._tasks:
            self._module[DEFAULT_MODULE_ID].follow(aux, rate=1.0)

    def _make_modules_ddp_if_necessary(self) -> None:
        """Leaves the module unwrapped: gradients are averaged in `_descend`, idle heads and all."""

    def update(
        self,
        batch: Any = None,
        *,
        training_data: Any = None,
        num_updates: int = 1,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Makes the updates of `num_updates` slots and returns what they gave.

        Args:
          batch: MultiAgentBatch of `num_updates * B` rows, minibatch after minibatch, with columns
            obs, new_obs (uint8 `[., 4, H, W]`), actions (int64), rewards (n-step returns),
            discounts and weights (float32 `[.]`), and those of rayssl.rllib.aux_tasks that the
            tasks need. Or the same inside `training_data`.
        Returns:
          {"td_errors": float32 `[num_updates * B]` (0 in aux-only slots), "stats": {name: (sum,
          count)} (on a GPU of the call before, so that none waits for its last update), "counts":
          lifetime counters, "compiled": whether the losses run compiled, "cuda_graphs": whether
          updates are replayed as graphs, "bfloat16": whether trunk and branches compute in
          bfloat16}.
        Raises:
          ValueError: if the rows cannot be shared by the slots evenly.
          FloatingPointError: if a loss is not finite (on a GPU: of the call before); the weights
            are then of no use.
        """
        self._check_is_built()
        batch = (training_data.batch if batch is None else batch)[DEFAULT_MODULE_ID]
        columns = {
            key: self._moved(batch[key])
            for key in (
                *TD_COLUMNS,
                *(key for key in batch if key.startswith((f"{TD_ROWS}/", f"{REWARDING_ROWS}/"))),
            )
        }
        self._stats: dict[tuple[str, ...], list[Tensor]] = defaultdict(list)
        size, left_over = divmod(len(columns[Columns.ACTIONS]), num_updates)
        if left_over or not size:
            raise ValueError(
                f"Expected a batch of num_updates={num_updates} minibatches of one size, got "
                f"{len(columns[Columns.ACTIONS])} rows."
            )
        minibatches = [
            {k: v[i * size : (i + 1) * size] for k, v in columns.items()}
            for i in range(num_updates)
        ]
        due = self._due_tasks(minibatches)
        td_errors = [self._run_slot(*slot) for slot in zip(minibatches, due, strict=True)]
        self._weights_seq_no += num_updates
        whole = not any(step.refused for step in self._steps.values())
        return {
            "stats": self._reduced_stats(),
            "td_errors": torch.cat([each.wait() for each in td_errors]).numpy(),
            "counts": {
                "td_updates": self._td_updates,
                "aux_updates": self._aux_updates,
                "slots": self._slot,
            },
            "compiled": whole
            if self._compiles_steps
            else all(fn.compiled for fn in (self._td_fn, *self._aux_fns.values())),
            "cuda_graphs": self._replays_graphs and whole,
            "bfloat16": self._dtype == torch.bfloat16,
        }

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Returns the TD loss of a batch, for RLlib's tools; `update` does not go through it."""
        loss = self._losses([batch[key] for key in TD_COLUMNS], ()).td
        assert loss is not None
        return loss

    @property
    def _replays_graphs(self) -> bool:
        """Whether updates run as CUDA graphs: on a GPU, and without others to average with."""
        on_gpu: bool = self._device.type == "cuda"
        return on_gpu and self.config.cuda_graphs and not self.distributed

    @property
    def _compiles_steps(self) -> bool:
        """Whether updates run as one compiled graph: on a CPU, and without others to average with.

        A GPU has the fused Adam and CUDA graphs for that.
        """
        compile_it: bool = self.config.compile_learner
        return compile_it and self._device.type == "cpu" and not self.distributed

    def _moved(self, column: Any) -> Tensor:
        """A column on the learner's device; to a GPU from page-locked memory, without waiting."""
        tensor = torch.as_tensor(column)
        if self._device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _due_tasks(self, minibatches: list[dict[str, Tensor]]) -> list[list[_Due]]:
        """The tasks that each coming slot trains; none where it makes no aux update.

        For all slots at once: each look at a number on a GPU waits for all work queued there.
        """
        rule, turn = self.config.aux_schedule_rule, self._turn
        slots: list[list[tuple[AuxTask, Sequences]]] = []
        for i, minibatch in enumerate(minibatches):
            tasks: tuple[AuxTask, ...] = ()
            if not {"aux", "joint"}.isdisjoint(rule.updates(self._slot + i)):
                place = turn % max(1, len(self._tasks))
                cycle = self.config.aux_combine == "cycle"
                tasks = self._tasks[place : place + 1] if cycle else self._tasks
                turn += 1
            obs = minibatch[Columns.OBS]
            slots.append([(aux, sequences_of(aux, minibatch, obs)) for aux in tasks])
        pairs = [pair for slot in slots for pair in slot]
        if not pairs:
            return [[] for _ in slots]
        usable = [self._usable(*pair) for pair in pairs]
        totals = torch.stack([each.sum() for each in usable]).float()
        if self.distributed:
            torch.distributed.all_reduce(totals)
        if self.config.aux_samples == "all":  # known: no look at the device
            numbers = [float(len(each) * self._world_size()) for each in usable]
        else:
            numbers = totals.tolist()
        found = [
            _Due(*pair, *rest) for pair, *rest in zip(pairs, usable, numbers, totals, strict=True)
        ]
        for each in found:
            if not each.total:
                left_out = torch.ones((1, 2), device=self._device)
                self._stats[(f"aux_left_out{each.aux.suffix}",)].append(left_out)
        in_order = iter(found)
        return [[next(in_order) for _ in slot] for slot in slots]

    def _usable(self, aux: AuxTask, data: Sequences) -> Tensor:
        """Which samples the task learns from, bool `[B]`: by its own word, or all."""
        if self.config.aux_samples == "all":
            return torch.ones(len(data.obs), dtype=torch.bool, device=data.obs.device)
        return aux.task.usable(data)

    def _run_slot(self, batch: dict[str, Tensor], due: list[_Due]) -> _OnItsWay:
        """Makes the updates that the schedule has for this slot; returns TD errors `[B]`.

        They set out before the aux update: priorities need not wait for it.
        """
        rule = self.config.aux_schedule_rule
        updates = rule.updates(self._slot)
        if rule.pretrain_updates and self._slot == rule.pretrain_updates:
            self._sync_target()  # else the first TD updates bootstrap from the trunk before
        self._slot += 1
        self._turn += not {"aux", "joint"}.isdisjoint(updates)
        td_errors = torch.zeros(len(batch[Columns.REWARDS]))
        if updates != ("aux",):
            batch = self._augmented(batch)
        if self._cosine_due(updates):
            self._log_cosine(batch, due)
        if "td" in updates:
            td_errors = self._td_update(batch)
        if "joint" in updates:
            td_errors = self._joint_update(batch, due)
        sent = _OnItsWay(td_errors)
        if "aux" in updates:
            self._aux_update(due)
        return sent

    def _augmented(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The TD batch with observations and next observations shifted, each by its own draw.

        As for the tasks, every learner draws for all shards in turn.
        """
        if self.config.augment == "none":
            return batch
        shifted = {}
        for key in (Columns.OBS, Columns.NEXT_OBS):
            draws = [
                draw_shifts(batch[key], generator=self._shifts) for _ in range(self._world_size())
            ]
            shifted[key] = shift(batch[key], draws[self._rank()])
        return batch | shifted

    def _td_update(self, batch: dict[str, Tensor]) -> Tensor:
        td_errors = self._step(batch, ())
        assert td_errors is not None
        self._count_td_update()
        return td_errors

    def _joint_update(self, batch: dict[str, Tensor], due: list[_Due]) -> Tensor:
        drawn = self._drawn(due)
        td_errors = self._step(batch, drawn)
        assert td_errors is not None
        if drawn:
            self._count_aux_update(due)
        self._count_td_update()
        return td_errors

    def _aux_update(self, due: list[_Due]) -> None:
        drawn = self._drawn(due)
        if drawn:  # else a step would still move the weights: by Adam's momentum
            self._step(None, drawn)
            self._count_aux_update(due)

    def _count_aux_update(self, due: list[_Due]) -> None:
        """Counts an aux update; the target encoders of its tasks follow the trained weights."""
        self._aux_updates += 1
        for each in due:
            if each.total and each.aux.task.target_rate is not None:
                self._module[DEFAULT_MODULE_ID].follow(each.aux, each.aux.task.target_rate)

    def _drawn(self, due: list[_Due]) -> tuple[_Drawn, ...]:
        """What the tasks draw; without those of which no learner's sample is usable.

        All learners see the same total, so all skip a task or none does.
        """
        drawn = [(each, self._draw(each.aux, each.data)) for each in due]
        return tuple(
            _Drawn(each.aux, tuple(map(_dense, (each.usable, each.total_on_device, *inputs))))
            for each, inputs in drawn
            if each.total
        )

    def _draw(self, aux: AuxTask, data: Sequences) -> tuple[Tensor, ...]:
        """The inputs that the task draws from this learner's shard.

        Every learner draws for all shards in turn and keeps its own: together they draw what one
        learner draws for the joint batch. (A task that compares the samples of a batch compares
        those of a shard.)
        """
        shards = [aux.task.draw(data, generator=self._generator) for _ in range(self._world_size())]
        return shards[self._rank()]

    def _td_forward(
        self,
        target: Params,
        obs: Tensor,
        next_obs: Tensor,
        actions: Tensor,
        returns: Tensor,
        discounts: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, TD errors and mean Q of one batch; the next states' forwards build no graph."""
        params = self._net.cast_parameters(self._dtype)
        with torch.no_grad():
            q_t_value = self._net.call_with(target, next_obs, "q")
            q_t_selector = q_t_value
            if self.config.double_q:
                q_t_selector = self._net.call_with(params, next_obs, "q")
        q_tm1 = self._net.call_with(params, obs, "q")
        td_errors = double_q_td_error(q_tm1, actions, returns, discounts, q_t_value, q_t_selector)
        return td_loss(td_errors, weights), td_errors, q_tm1.detach().mean()

    def _aux_forward(self, aux: AuxTask) -> Callable[..., tuple[Tensor, Tensor]]:
        """Returns the function of a task's loss and number of right guesses among the usable."""
        module = self._module[DEFAULT_MODULE_ID]

        def forward(usable: Tensor, scale: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
            online = self._net.encoder(self._net.cast_parameters(self._dtype), aux.head)
            target = None
            if aux.task.target_rate is not None:
                follower: MultiHeadNetwork = module.followers[aux.task.name]
                target = follower.encoder(follower.cast_parameters(self._dtype), "aux")
            found = aux.task.loss(online, target, drawn)
            correct = torch.where(usable, found.correct, 0.0).sum()
            return mean_of_usable(found.loss, usable) * scale, correct

        return forward

    def _step(self, batch: dict[str, Tensor] | None, drawn: tuple[_Drawn, ...]) -> Tensor | None:
        """One gradient step on the TD loss, the aux losses, or both; returns TD errors `[B]`."""
        figures, *td_errors = self._run("update", batch, drawn)
        names: tuple[str, ...] = () if batch is None else TD_FIGURES
        names += tuple(f"{name}{each.aux.suffix}" for each in drawn for name in AUX_FIGURES)
        self._stats[names].append(figures)
        return td_errors[0] if td_errors else None

    def _run(
        self,
        what: Literal["update", "cosine"],
        batch: dict[str, Tensor] | None,
        drawn: tuple[_Drawn, ...],
    ) -> tuple[Tensor, ...]:
        """Runs `_make_step`'s function or `_make_cosine`'s, in the fastest way that there is."""
        parts = _Parts(batch is not None, tuple((each.aux, len(each.inputs)) for each in drawn))
        kind = (what, *parts.key)
        if kind not in self._steps:
            makers = {
                "update": (self._make_step, self._make_whole_step),
                "cosine": (self._make_cosine, self._make_whole_cosine),
            }
            plain, whole = (make(parts) for make in makers[what])
            if self._compiles_steps:
                state = self._state_of(self._adam(parts.loss_name))
                self._steps[kind] = CompiledGraph(whole, state, plain, f"{what} {parts}")
            else:
                replays = self._replays_graphs and what == "update"  # the cosine is rare
                self._steps[kind] = CudaGraph(plain, replays, f"{what} {parts}")
        columns = [] if batch is None else [batch[name] for name in TD_COLUMNS]
        return self._steps[kind](*columns, *(x for each in drawn for x in each.inputs))

    def _make_step(self, parts: _Parts) -> Callable[..., tuple[Tensor, ...]]:
        """Returns a gradient step as a function of tensors alone: the TD columns, then each task's.

        It returns `_Losses.results`.
        """

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            losses = self._losses(*parts.split(inputs))
            self._descend(self._combined(losses), parts.loss_name)
            return losses.results

        return step

    def _make_whole_step(self, parts: _Parts) -> Callable[..., tuple[Tensor, ...]]:
        """Returns `_make_step`'s function with all that it changes as an argument (`_state_of`)."""
        adam = self._adam(parts.loss_name)
        (group,) = adam.param_groups
        names = self._names_of(group["params"])

        def step(state: Params, *inputs: Tensor) -> tuple[Tensor, ...]:
            leaves = {name: state[name].detach().requires_grad_() for name in names}
            with torch.enable_grad():
                losses = self._losses_with(state | leaves, parts.split(inputs))
                found = torch.autograd.grad(
                    self._combined(losses), list(leaves.values()), allow_unused=True
                )
            trained = {n: grad for n, grad in zip(names, found, strict=True) if grad is not None}
            grads = list(trained.values())
            adam_steps(
                [state[name] for name in trained],
                grads,
                clip_scales(grads, self.config.grad_clip, self.config.grad_clip_by),
                [{key: state[f"{name}/{key}"] for key in ADAM_STATE} for name in trained],
                lr=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
            )
            return losses.results

        return step

    def _make_cosine(self, parts: _Parts) -> Callable[..., tuple[Tensor, ...]]:
        """Returns the cosine of TD and aux gradients on the trunk as a function of tensors alone.

        It takes what `_make_step`'s takes and returns sum and count of one figure, `[1, 2]`.
        """

        def cosine(*inputs: Tensor) -> tuple[Tensor, ...]:
            return (_cosine_of(self._losses(*parts.split(inputs)), self._trunk),)

        return cosine

    def _make_whole_cosine(self, parts: _Parts) -> Callable[..., tuple[Tensor, ...]]:
        """Returns `_make_cosine`'s function with all that it reads as an argument."""
        names = self._names_of(self._trunk)

        def cosine(state: Params, *inputs: Tensor) -> tuple[Tensor, ...]:
            leaves = {name: state[name].detach().requires_grad_() for name in names}
            with torch.enable_grad():
                losses = self._losses_with(state | leaves, parts.split(inputs))
                return (_cosine_of(losses, list(leaves.values())),)

        return cosine

    def _losses_with(
        self, state: Params, given: tuple[Sequence[Tensor], Sequence[_Drawn]]
    ) -> _Losses:
        """`_losses` with the networks' tensors taken from `state`."""
        target = {
            name.removeprefix("target."): tensor
            for name, tensor in state.items()
            if name.startswith("target.")
        }
        calls = _Calls(self._module[DEFAULT_MODULE_ID], self._losses)
        own = (*calls.named_parameters(), *calls.named_buffers())
        bound = {name: state[name] for name, _ in own if name in state}
        found: _Losses = functional_call(calls, bound, (*given, target))
        return found

    def _adam(self, loss_name: str) -> torch.optim.Optimizer:
        """The optimizer of the loss of that name: "td" (with or without aux losses) or "aux"."""
        name = "shared" if self.config.optimizers == "shared" else loss_name
        return self.get_optimizer(DEFAULT_MODULE_ID, name)

    def _names_of(self, params: Sequence[Tensor]) -> list[str]:
        """Names of parameters in `_state_of`, in their order."""
        module = self._module[DEFAULT_MODULE_ID]
        names = {param: f"module.{name}" for name, param in module.named_parameters()}
        return [names[param] for param in params]

    def _state_of(self, adam: torch.optim.Optimizer) -> Params:
        """All tensors that updates read and change: of all networks, and Adam's states.

        Those of Adam that are not there yet are made, as its first step would make them.
        """
        module = self._module[DEFAULT_MODULE_ID]
        state = {f"module.{name}": param for name, param in module.named_parameters()}
        state |= {f"module.{name}": buffer for name, buffer in module.named_buffers()}
        state |= {f"target.{name}": tensor for name, tensor in self._target_params.items()}
        params = [param for group in adam.param_groups for param in group["params"]]
        for name, param in zip(self._names_of(params), params, strict=True):
            if not adam.state[param]:
                adam.state[param] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    **{key: torch.zeros_like(param) for key in ADAM_STATE[1:]},
                }
            state |= {f"{name}/{key}": adam.state[param][key] for key in ADAM_STATE}
        return {name: tensor.detach() for name, tensor in state.items()}

    def _losses(
        self,
        td_columns: Sequence[Tensor],
        drawn: Sequence[_Drawn],
        target: Params | None = None,
    ) -> _Losses:
        """The losses of one update at the present weights, and the figures that are logged of it.

        The aux loss is this learner's part of the tasks' losses; each has its weight relative to
        the largest one. `target` are the target network's cast weights, by default the newest.
        """
        td, td_errors, aux_loss = None, None, None
        figures: list[tuple[Tensor, Tensor]] = []  # sum and count of each
        one = torch.ones((), device=self._device)
        if td_columns:
            td, td_errors, q_mean = self._td_fn(target or self._target_params, *td_columns)
            figures += [(td, one), (q_mean, one), (td_errors.abs().mean(), one)]
        for aux, (usable, total, *inputs) in drawn:
            own = usable.sum().float()
            # From the mean over own usable samples to a part of the mean over all learners' ones:
            # the mean of these parts is what gradients are averaged to.
            scale = own * (self._world_size() / total)
            loss, correct = self._aux_fns[aux.head](usable, scale, *inputs)
            figures += [(1 - own / len(usable), one), (loss, one), (correct, own)]
            part = loss * (aux.weight / self.config.top_aux_weight)
            aux_loss = part if aux_loss is None else aux_loss + part
        pairs = torch.stack([torch.stack(pair) for pair in figures]).detach()
        return _Losses(td, aux_loss, td_errors, pairs)

    def _combined(self, losses: _Losses) -> Tensor:
        """The loss of an update, eq. (3).

        An Adam of the aux loss's own divides a factor of the loss away again: there the weight is
        in its learning rate (configure_optimizers_for_module), with the shared one in the loss.
        """
        weight = self.config.top_aux_weight
        if losses.aux is None:
            assert losses.td is not None
            return losses.td
        if losses.td is None:
            return losses.aux * weight if self.config.optimizers == "shared" else losses.aux
        return combined_loss(losses.td, losses.aux, weight)

    def _descend(self, loss: Tensor, optimizer: str) -> None:
        """Back-propagates, averages over learners, clips, and steps the loss's optimizer."""
        adam = self._adam(optimizer)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        params = [p for group in adam.param_groups for p in group["params"] if p.grad is not None]
        if self.distributed:
            _average_gradients(params)
        _clip_gradients(params, self.config.grad_clip, self.config.grad_clip_by)
        adam.step()

    def _count_td_update(self) -> None:
        """Counts a TD update and copies the target network when its period is over."""
        self._td_updates += 1
        self._since_target_sync += 1
        if self._since_target_sync >= self.config.target_period_updates:
            self._sync_target()

    def _sync_target(self) -> None:
        """Copies the online network into the target network."""
        self._module[DEFAULT_MODULE_ID].sync_target()
        self._cast_target()
        self._since_target_sync = 0

    def _cast_target(self) -> None:
        """Casts the target's weights once, for all updates until it changes again."""
        self._module[DEFAULT_MODULE_ID].target.cast_into(self._target_params, self._dtype)

    def _cosine_due(self, updates: tuple[str, ...]) -> bool:
        every = self.config.cosine_every
        both = "joint" in updates or ("td" in updates and "aux" in updates)
        both = both and not self.config.freeze_trunk  # a frozen trunk has no gradients
        return bool(every and both and (self._slot - 1) % every < self.config.aux_every)

    def _log_cosine(self, batch: dict[str, Tensor], due: list[_Due]) -> None:
        """Logs the cosine of TD and aux gradients on the trunk, both at the present weights."""
        state = self._generator.get_state()
        drawn = self._drawn(due)
        self._generator.set_state(state)  # the updates draw as if nothing had been measured
        if drawn:
            self._stats[("gradient_cosine",)] += self._run("cosine", batch, drawn)

    @property
    def _reads_later(self) -> bool:
        """Whether an update's figures are read by the next one: where work is queued."""
        return self._device.type == "cuda"

    def _reduced_stats(self) -> dict[str, tuple[float, float]]:
        """{name: (sum, count)} of this call, on a GPU of the one before."""
        newest = None
        if self._stats:
            names = [name for group in self._stats for name in group]
            sums = torch.cat([torch.stack(pairs).sum(dim=0) for pairs in self._stats.values()])
            newest = names, _OnItsWay(sums)
        if self._reads_later:
            newest, self._late_stats = self._late_stats, newest
        return self._finite(newest)

    def _finite(self, sent: tuple[list[str], _OnItsWay] | None) -> dict[str, tuple[float, float]]:
        """{name: (sum, count)} of figures that were sent; refuses losses that are not finite."""
        stats: dict[str, tuple[float, float]] = {}
        names, sums = (sent[0], sent[1].wait().tolist()) if sent else ([], [])
        for name, (total, count) in zip(names, sums, strict=True):
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"{name} is {total} after {self._td_updates} TD and {self._aux_updates} aux "
                    "updates. Lower --lr or --aux-weight, or use --compute-dtype float32."
                )
            before = stats.get(name, (0.0, 0.0))
            stats[name] = (before[0] + total, before[1] + count)
        return stats

    def _rank(self) -> int:
        return torch.distributed.get_rank() if self.distributed else 0

    def _world_size(self) -> int:
        return torch.distributed.get_world_size() if self.distributed else 1

    def _broadcast_parameters(self) -> None:
        for tensor in self._module[DEFAULT_MODULE_ID].state_dict().values():
            torch.distributed.broadcast(tensor, src=0)

    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        """Returns RLlib's learner state and ours: counters, aux parity, the task's generator.

        Raises:
          FloatingPointError: if a loss was not finite that no `update` has looked at yet.
        """
        self._finite(self._late_stats)
        state = super().get_state(*args, **kwargs)
        state["rayssl"] = {
            **{name: getattr(self, name) for name in _COUNTERS},
            "generator": self._generator.get_state().cpu().numpy(),
            "shifts": self._shifts.get_state().cpu().numpy(),
        }
        return state

    def set_state(self, state: StateDict) -> None:
        """Restores what `get_state` returned."""
        self._weights_seq_no = 0  # else RLlib leaves the weights out of an older state
        super().set_state(state)
        if "rayssl" in state:
            own = state["rayssl"]
            for name in _COUNTERS:  # before there were several tasks, nobody counted turns
                setattr(self, name, own.get(name, 0) if name == "_turn" else own[name])
            self._go_on(self._generator, own["generator"])
            if "shifts" in own:
                self._go_on(self._shifts, own["shifts"])
        self._steps.clear()  # graphs know the optimizers' old states by their addresses
        self._late_stats = None  # of the weights before
        self._cast_target()

    def _go_on(self, generator: torch.Generator, saved: np.ndarray) -> None:
        """Restores a generator; one of another kind of device starts anew, from the slots done."""
        if len(saved) == len(generator.get_state()):
            generator.set_state(torch.from_numpy(saved.copy()))
        else:  # 5,056 bytes on a CPU, 16 on a GPU
            logger.warning(
                "The checkpoint is of another kind of device: draws start from a new seed."
            )
            generator.manual_seed(generator.initial_seed() + self._slot)

    def _set_optimizer_state(self, state: StateDict) -> None:
        """Restores Adam's moments, each laid out in memory as its parameter is.

        Learning rate, betas and epsilon stay this learner's own: a resumed run may have others.

        Fused Adam walks both side by side without a look at strides, and channels-last arrays come
        out of pickle protocol 4 in another layout: moments would go to other weights, silently.
        """
        own = {
            name: [
                {key: group[key] for key in ("lr", "betas", "eps")} for group in adam.param_groups
            ]
            for name, adam in self._named_optimizers.items()
        }
        super()._set_optimizer_state(state)
        for name, adam in self._named_optimizers.items():
            for group, kept in zip(adam.param_groups, own[name], strict=True):
                group |= kept
                group["capturable"] = self._replays_graphs  # not that of the device it was saved on
            for param, values in adam.state.items():
                for key, value in values.items():
                    if value.shape == param.shape:
                        values[key] = torch.empty_like(param).copy_(value)


_COUNTERS = ("_slot", "_turn", "_td_updates", "_aux_updates", "_since_target_sync")


def _cosine_of(losses: _Losses, trunk: Sequence[Tensor]) -> Tensor:
    """Cosine of both losses' gradients on the trunk, as sum and count of one figure: `[1, 2]`."""
    assert losses.td is not None
    assert losses.aux is not None
    grads = [
        torch.autograd.grad(loss, trunk, allow_unused=True) for loss in (losses.td, losses.aux)
    ]
    # A task may stand on an inner layer and leave those above it alone.
    both = [pair for pair in zip(*grads, strict=True) if None not in pair]
    cosine = gradient_cosine(*map(list, zip(*both, strict=True)))
    return torch.stack([cosine, torch.ones_like(cosine)])[None]


def _clip_gradients(params: list[nn.Parameter], limit: float | None, by: str) -> None:
    """Clips in place: `global_norm` of all gradients, or `norm` of each tensor by itself."""
    if limit is None:
        return
    if by == "global_norm":
        nn.utils.clip_grad_norm_(params, limit)
        return
    for param in params:
        nn.utils.clip_grad_norm_(param, limit)


def _average_gradients(params: list[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over all learners, in one collective call."""
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def _dense(x: Tensor) -> Tensor:
    """The tensor without gaps: a view of another layout would be compiled for once more."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


class _Compiled:
    """A function that runs compiled; where no compiler works, as it is, after one warning."""

    def __init__(self, function: Callable[..., Any], compile_it: bool) -> None:
        self._plain = function
        self._call = torch.compile(function, dynamic=False) if compile_it else function
        self._proven = not compile_it
        self.compiled = compile_it

    def __call__(self, *args: Any) -> Any:
        if self._proven:
            return self._call(*args)
        try:
            result = self._call(*args)
        except Exception as error:  # torch raises many kinds: no compiler, no headers, a bug
            warn_uncompiled("the losses", error)
            self._call, self.compiled = self._plain, False
            result = self._plain(*args)
        self._proven = True
        return result
