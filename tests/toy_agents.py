"""Small agents without training, as checkpoints that attribution, probes and runs can read."""

import json
from pathlib import Path

import torch

from rayssl.envs.atari import action_set
from rayssl.networks import make_atari_network

SIZE = 42  # pixels: small, but not too small for three convolutions


def save_agent(
    folder: Path,
    task: str | None = "rotation",
    game: str = "breakout",
    seed: int = 0,
    network: str = "nature",
    size: int = SIZE,
) -> Path:
    """Writes the two files of a checkpoint that can be read without Ray."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make_atari_network(
            network, num_actions=len(action_set(game)), size=size, aux_task=task
        )
    torch.save(net.state_dict(), folder / "model.pt")
    settings = {"game": game, "network": network, "aux_task": task, "stack": 4,
                "frame_size": size, "env_steps": 0}  # fmt: skip
    (folder / "model.json").write_text(json.dumps(settings))
    return folder
