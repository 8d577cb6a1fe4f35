"""The learner: a TD update, then the aux update when it is due, on batches that come ready.

    slot of the schedule      0        1        2        3          (alternate, every=2)
    updates                   TD       TD aux   TD       TD aux
    heads that move           q        q   aux  q        q   aux    (the trunk moves in all)

RLlib's default update is bypassed on purpose: it back-propagates through the next observations,
checks every parameter for NaN twice, and reduces metrics per update (design.md, "The data path").
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.typing import StateDict
from torch import Tensor, nn

from rayssl.evaluation import load_trunk
from rayssl.losses import combined_loss, double_q_td_error, gradient_cosine, pretext_loss, td_loss
from rayssl.networks import MultiHeadNetwork
from rayssl.tasks import make_task

logger = logging.getLogger(__name__)
DISCOUNTS, WEIGHTS = "discounts", "weights"
Params = dict[str, Tensor]


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype in which trunk and branches compute: `float32`, `bfloat16`, or `auto`.

    `auto` is bfloat16 where the device multiplies it natively (AVX512-BF16 or AMX, CUDA from
    compute capability 8.0), float32 elsewhere. Parameters and last layers are float32 always.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def skip_filling_of_new_tensors() -> None:
    """Lets deterministic mode, which RLlib switches on with a seed, leave new tensors unwritten.

    It would fill the output of every convolution with NaN before it is computed. Results are the
    same: nothing here reads a tensor before it is written.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class _Labels(NamedTuple):
    """Which samples of a minibatch carry a pretext label: bool `[B]`, and how many do in all."""

    usable: Tensor
    total: float  # over all learners


class AuxDQNLearner(TorchLearner):
    """Double Q-learning with an auxiliary task on the trunk.

    `update` takes K minibatches at once and returns plain numbers. With several learners each
    holds a shard of every minibatch, and gradients are averaged before they are clipped.
    """

    def build(self) -> None:
        """Builds module and optimizers, then the (compiled) losses and the task."""
        torch.set_num_threads(self.config.learner_threads)
        skip_filling_of_new_tensors()
        super().build()
        config = self.config
        self._net: MultiHeadNetwork = self._module[DEFAULT_MODULE_ID].net
        self._dtype = resolve_dtype(config.compute_dtype, self._device)
        self._task = make_task(config.aux_task) if config.aux_task else None
        self._generator = torch.Generator(self._device)
        self._generator.manual_seed((config.seed or 0) + 7919)  # the same in every learner
        self._slot = 0  # slots of the schedule that are done
        self._td_updates = 0
        self._aux_updates = 0
        self._since_target_sync = 0
        self._td_fn = _Compiled(self._td_forward, config.compile_learner)
        self._aux_fn = _Compiled(self._aux_forward, config.compile_learner)
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
        adam = {"eps": config.adam_epsilon, "fused": True}
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
            lr = config.lr * (config.aux_weight if name == "aux" else 1)
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

    def _make_modules_ddp_if_necessary(self) -> None:
        """Leaves the module unwrapped: gradients are averaged in `_step`, idle heads and all."""

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
            discounts and weights (float32 `[.]`). Or the same inside `training_data`.
        Returns:
          {"td_errors": float32 `[num_updates * B]` (0 in aux-only slots), "stats": {name: (sum,
          count)}, "counts": lifetime counters, "compiled": whether the losses run compiled}.
        Raises:
          ValueError: if the rows cannot be shared by the slots evenly.
          FloatingPointError: if a loss is not finite; the weights are then of no use.
        """
        self._check_is_built()
        batch = (training_data.batch if batch is None else batch)[DEFAULT_MODULE_ID]
        columns = {
            key: self._moved(batch[key])
            for key in (
                Columns.OBS,
                Columns.NEXT_OBS,
                Columns.ACTIONS,
                Columns.REWARDS,
                DISCOUNTS,
                WEIGHTS,
            )
        }
        self._stats: dict[str, list[Tensor]] = defaultdict(list)
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
        labels = self._labels_of([minibatch[Columns.OBS] for minibatch in minibatches])
        td_errors = [self._run_slot(*slot) for slot in zip(minibatches, labels, strict=True)]
        self._weights_seq_no += num_updates
        return {
            "td_errors": torch.cat(td_errors).cpu().numpy(),
            "stats": self._reduced_stats(),
            "counts": {
                "td_updates": self._td_updates,
                "aux_updates": self._aux_updates,
                "slots": self._slot,
            },
            "compiled": self._td_fn.compiled and self._aux_fn.compiled,
        }

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Returns the TD loss of a batch, for RLlib's tools; `update` does not go through it."""
        return self._td_loss(batch)[0]

    def _moved(self, column: Any) -> Tensor:
        """A column on the learner's device; to a GPU from page-locked memory, without waiting."""
        tensor = torch.as_tensor(column)
        if self._device.type == "cuda" and not tensor.is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _labels_of(self, observations: list[Tensor]) -> list[_Labels | None]:
        """The labels of each coming slot; None where it makes no aux update.

        For all slots at once: each look at a number on a GPU waits for all work queued there.
        """
        rule = self.config.aux_schedule_rule
        due = [
            not {"aux", "joint"}.isdisjoint(rule.updates(self._slot + i))
            for i in range(len(observations))
        ]
        if self._task is None or not any(due):
            return [None] * len(observations)
        usable = [
            self._task.usable(obs) for obs, is_due in zip(observations, due, strict=True) if is_due
        ]
        totals = torch.stack([each.sum() for each in usable]).float()
        if self.distributed:
            torch.distributed.all_reduce(totals)
        found = iter(map(_Labels, usable, totals.tolist()))
        return [next(found) if is_due else None for is_due in due]

    def _run_slot(self, batch: dict[str, Tensor], labels: _Labels | None) -> Tensor:
        """Makes the updates that the schedule has for this slot; returns TD errors `[B]`."""
        rule = self.config.aux_schedule_rule
        updates = rule.updates(self._slot)
        if rule.pretrain_updates and self._slot == rule.pretrain_updates:
            self._sync_target()  # else the first TD updates bootstrap from the trunk before
        self._slot += 1
        td_errors = torch.zeros_like(batch[Columns.REWARDS])
        if self._cosine_due(updates):
            self._log_cosine(batch, labels)
        if "td" in updates:
            td_errors = self._td_update(batch)
        if "joint" in updates:
            td_errors = self._joint_update(batch, labels)
        if "aux" in updates:
            self._aux_update(batch[Columns.OBS], labels)
        return td_errors

    def _td_update(self, batch: dict[str, Tensor]) -> Tensor:
        loss, td_errors = self._td_loss(batch)
        self._step(loss, "td")
        self._count_td_update()
        return td_errors

    def _joint_update(self, batch: dict[str, Tensor], labels: _Labels | None) -> Tensor:
        loss, td_errors = self._td_loss(batch)
        pretext = self._aux_loss(batch[Columns.OBS], labels)
        if pretext is not None:
            loss = combined_loss(loss, pretext, self.config.aux_weight)
            self._aux_updates += 1
        self._step(loss, "td")
        self._count_td_update()
        return td_errors

    def _aux_update(self, obs: Tensor, labels: _Labels | None) -> None:
        loss = self._aux_loss(obs, labels)
        if loss is None:
            return  # a step would still move the weights: by Adam's momentum
        # An Adam of its own divides a factor of the loss away again: there the weight is in its
        # learning rate (configure_optimizers_for_module), with the shared one in the loss.
        shared = self.config.optimizers == "shared"
        self._step(loss * self.config.aux_weight if shared else loss, "aux")
        self._aux_updates += 1

    def _td_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, td_errors, q_mean = self._td_fn(
            self._target_params,
            batch[Columns.OBS],
            batch[Columns.NEXT_OBS],
            batch[Columns.ACTIONS],
            batch[Columns.REWARDS],
            batch[DISCOUNTS],
            batch[WEIGHTS],
        )
        self._log(td_loss=loss, q_mean=q_mean, td_error_abs=td_errors.abs().mean())
        return loss, td_errors.detach()

    def _aux_loss(self, obs: Tensor, labels: _Labels | None) -> Tensor | None:
        """This learner's part of the pretext loss; None if no learner's sample carries a label."""
        assert labels is not None  # the schedule has an aux update here
        usable, total = labels
        x_hat, y_hat = self._draw(obs)
        own = usable.sum().float()
        self._log(aux_left_out=1 - own / len(usable))
        if not total:  # all learners see the same total, so all skip the step or none does
            return None
        # From the mean over own usable samples to a part of the mean over all learners' ones: the
        # mean of these parts is what gradients are averaged to.
        loss, correct = self._aux_fn(x_hat, y_hat, usable, own * (self._world_size() / total))
        self._log(aux_loss=loss)
        self._stats["aux_accuracy"].append(torch.stack([correct, own]))
        return loss

    def _draw(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """The task's transforms of this learner's shard, and their labels.

        Every learner draws for all shards in turn and keeps its own: together they draw what one
        learner draws for the joint batch.
        """
        assert self._task is not None
        shards = [self._task(obs, generator=self._generator) for _ in range(self._world_size())]
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

    def _aux_forward(
        self, x_hat: Tensor, y_hat: Tensor, usable: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and number of right guesses among the usable samples."""
        logits = self._net.call_with(self._net.cast_parameters(self._dtype), x_hat, "aux")
        correct = ((logits.argmax(dim=1) == y_hat) & usable).sum().float()
        return pretext_loss(logits, y_hat, usable) * scale, correct

    def _step(self, loss: Tensor, optimizer: str) -> None:
        """Back-propagates, averages over learners, clips, and steps the loss's optimizer."""
        name = "shared" if self.config.optimizers == "shared" else optimizer
        adam = self.get_optimizer(DEFAULT_MODULE_ID, name)
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
        with torch.no_grad():
            params = self._module[DEFAULT_MODULE_ID].target.cast_parameters(self._dtype)
            self._target_params = {k: v.detach().clone() for k, v in params.items()}

    def _cosine_due(self, updates: tuple[str, ...]) -> bool:
        every = self.config.cosine_every
        both = "joint" in updates or ("td" in updates and "aux" in updates)
        both = both and not self.config.freeze_trunk  # a frozen trunk has no gradients
        return bool(every and both and (self._slot - 1) % every < self.config.aux_every)

    def _log_cosine(self, batch: dict[str, Tensor], labels: _Labels | None) -> None:
        """Logs the cosine of TD and aux gradients on the trunk, both at the present weights."""
        state, kept = self._generator.get_state(), self._stats
        self._stats = defaultdict(list)  # what the measurement logs itself is dropped
        losses = [self._td_loss(batch)[0], self._aux_loss(batch[Columns.OBS], labels)]
        grads = [
            list(torch.autograd.grad(loss, self._trunk)) for loss in losses if loss is not None
        ]
        self._generator.set_state(state)  # the updates draw as if nothing had been measured
        self._stats = kept
        if len(grads) == 2:
            self._log(gradient_cosine=gradient_cosine(*grads))

    def _log(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._stats[name].append(torch.stack([value.detach(), torch.ones_like(value)]))

    def _reduced_stats(self) -> dict[str, tuple[float, float]]:
        """{name: (sum, count)} of this call; refuses losses that are not finite."""
        if not self._stats:
            return {}
        sums = torch.stack([torch.stack(pairs).sum(dim=0) for pairs in self._stats.values()])
        stats = {}
        for name, (total, count) in zip(self._stats, sums.tolist(), strict=True):
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"{name} is {total} after {self._td_updates} TD and {self._aux_updates} aux "
                    "updates. Lower --lr or --aux-weight, or use --compute-dtype float32."
                )
            stats[name] = (total, count)
        return stats

    def _rank(self) -> int:
        return torch.distributed.get_rank() if self.distributed else 0

    def _world_size(self) -> int:
        return torch.distributed.get_world_size() if self.distributed else 1

    def _broadcast_parameters(self) -> None:
        for tensor in self._module[DEFAULT_MODULE_ID].state_dict().values():
            torch.distributed.broadcast(tensor, src=0)

    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        """Returns RLlib's learner state and ours: counters, aux parity, the task's generator."""
        state = super().get_state(*args, **kwargs)
        state["rayssl"] = {
            **{name: getattr(self, name) for name in _COUNTERS},
            "generator": self._generator.get_state().cpu().numpy(),
        }
        return state

    def set_state(self, state: StateDict) -> None:
        """Restores what `get_state` returned."""
        super().set_state(state)
        if "rayssl" in state:
            for name in _COUNTERS:
                setattr(self, name, state["rayssl"][name])
            self._generator.set_state(torch.from_numpy(state["rayssl"]["generator"].copy()))
        self._cast_target()

    def _set_optimizer_state(self, state: StateDict) -> None:
        """Restores Adam's moments, each laid out in memory as its parameter is.

        Fused Adam walks both side by side without a look at strides, and channels-last arrays come
        out of pickle protocol 4 in another layout: moments would go to other weights, silently.
        """
        super()._set_optimizer_state(state)
        for adam in self._named_optimizers.values():
            for param, values in adam.state.items():
                for name, value in values.items():
                    if value.shape == param.shape:
                        values[name] = torch.empty_like(param).copy_(value)


_COUNTERS = ("_slot", "_td_updates", "_aux_updates", "_since_target_sync")


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
            logger.warning(
                "torch.compile failed (%s: %s); updates run uncompiled and slower. "
                "Install a C++ compiler, or pass --no-compile to silence this.",
                type(error).__name__,
                str(error).splitlines()[0] if str(error) else "",
            )
            self._call, self.compiled = self._plain, False
            result = self._plain(*args)
        self._proven = True
        return result
