"""The RLModule: a MultiHeadNetwork behind RLlib's Q-network, target-network and inference APIs."""

import copy
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from rayssl.networks import MultiHeadNetwork, make_atari_network
from rayssl.rllib.aux_tasks import AuxTask, make_aux_tasks

QF_PREDS = "qf_preds"  # RLlib's name for Q-values, see ray.rllib QNetAPI


class AuxDQNModule(TorchRLModule, QNetAPI, TargetNetworkAPI, InferenceOnlyAPI):
    """A dueling Q-network with a pretext head on its trunk, and a frozen target copy.

    `model_config`: `network` (a name of rayssl.backbones.atari.TRUNKS), `aux_classes` (of the class
    head; 0: none), `stack`, `frame_size`; `aux_task` instead of aux_classes where that is no
    number: for tasks with a head of their own, or several. Observations are uint8
    `[B, stack, size, size]`.

    Attributes:
      net: the online network with heads "q" and "aux"; the one that acts.
      target: trunk and Q-head of the target network; gone on env runners, as is the aux head.
      followers: task -> the slowly moving copy of trunk and aux head, for those that have one.
    """

    def setup(self) -> None:
        """Builds the online and the target network; both start with the same weights."""
        spec = self.model_config
        self.net = make_atari_network(
            spec["network"],
            num_actions=int(self.action_space.n),
            # RLlib 2.60 cannot delete nested attributes (torch_rl_module.py:71 asks `self` for it).
            aux_classes=0 if self.inference_only else spec["aux_classes"],
            aux_task=None if self.inference_only else spec.get("aux_task"),
            stack=spec["stack"],
            size=spec["frame_size"],
        )
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not self.inference_only:
            self.make_target_networks()
            self.followers = torch.nn.ModuleDict()
            for aux in make_aux_tasks(spec.get("aux_task"), (1.0,)):
                if aux.task.target_rate is not None:
                    parts = self.net.backbone, {"aux": self.net.head_at(aux.head)}
                    copied = copy.deepcopy(MultiHeadNetwork(*parts))
                    self.followers[aux.task.name] = copied.requires_grad_(False)

    def make_target_networks(self) -> None:
        """Makes the target network: a copy of trunk and Q-head without gradients."""
        self.target = copy.deepcopy(self.net)
        if "aux" in self.target.heads:
            del self.target.heads["aux"]
        self.target.requires_grad_(False)

    def sync_target(self) -> None:
        """Copies the online trunk and Q-head into the target network."""
        online = self.net.state_dict()
        self.target.load_state_dict({k: online[k] for k in self.target.state_dict()})

    def follow(self, aux: AuxTask, rate: float) -> None:
        """Moves a task's follower, if it has one: follower += rate * (online - follower)."""
        if aux.task.name not in self.followers:
            return
        follower = self.followers[aux.task.name]
        head = self.net.head_at(aux.head)
        online: list[Tensor] = [*self.net.backbone.parameters(), *head.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_([*follower.parameters()], online, rate)

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        """Returns the (online, target) pairs: trunk and Q-head."""
        return [
            (self.net.backbone, self.target.backbone),
            (self.net.heads["q"], self.target.heads["q"]),
        ]

    def get_non_inference_attributes(self) -> list[str]:
        """Returns what acting does not need: target network, followers and aux head."""
        return ["target", "followers", "net.heads.aux"]

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Returns {"qf_preds": Q-values of the online network, float32 `[B, A]`}."""
        return {QF_PREDS: self.net(batch[Columns.OBS], "q")}

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Returns {"qf_preds": Q-values of the target network, float32 `[B, A]`}."""
        return {QF_PREDS: self.target(batch[Columns.OBS], "q")}

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Greedy actions and their Q-values; exploration is the env runner's."""
        q = self.compute_q_values(batch)[QF_PREDS]
        return {QF_PREDS: q, Columns.ACTIONS: q.argmax(dim=1)}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return self.compute_q_values(batch)
