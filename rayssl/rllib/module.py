"""The RLModule: a MultiHeadNetwork behind RLlib's Q-network, target-network and inference APIs."""

import copy
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from rayssl.networks import make_atari_network

QF_PREDS = "qf_preds"  # RLlib's name for Q-values, see ray.rllib QNetAPI


class AuxDQNModule(TorchRLModule, QNetAPI, TargetNetworkAPI, InferenceOnlyAPI):
    """A dueling Q-network with a pretext head on its trunk, and a frozen target copy.

    `model_config`: `network` (a name of rayssl.backbones.atari.TRUNKS), `aux_classes` (0: no aux
    head), `stack`, `frame_size`. Observations are uint8 `[B, stack, size, size]`.

    Attributes:
      net: the online network with heads "q" and "aux"; the one that acts.
      target: trunk and Q-head of the target network; gone on env runners, as is the aux head.
    """

    def setup(self) -> None:
        """Builds the online and the target network; both start with the same weights."""
        spec = self.model_config
        self.net = make_atari_network(
            spec["network"],
            num_actions=int(self.action_space.n),
            # RLlib 2.60 cannot delete nested attributes (torch_rl_module.py:71 asks `self` for it).
            aux_classes=0 if self.inference_only else spec["aux_classes"],
            stack=spec["stack"],
            size=spec["frame_size"],
        )
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not self.inference_only:
            self.make_target_networks()

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

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        """Returns the (online, target) pairs: trunk and Q-head."""
        return [
            (self.net.backbone, self.target.backbone),
            (self.net.heads["q"], self.target.heads["q"]),
        ]

    def get_non_inference_attributes(self) -> list[str]:
        """Returns what acting does not need: the target network and the aux head."""
        return ["target", "net.heads.aux"]

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
