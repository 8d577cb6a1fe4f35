"""One process of a joint pretraining of a tiny network; test_pretraining.py starts two of them.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python pretraining_worker.py IMAGES OUT
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import rayssl.pretraining
from rayssl.backbones.images import BackboneSpec, Preprocessing
from rayssl.data.class_folders import ClassFolders
from rayssl.pretraining import Pretraining, PretrainSettings


class Tiny(nn.Module):
    """Two convolutions with BatchNorm, and a dense layer: `[B, 3, 32, 32]` -> `[B, 24]`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 5, 2, 2), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(12 * 16, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor, layer: str = "dense") -> Tensor:
        features: Tensor = self.layers(x)
        return features


SPEC = BackboneSpec(
    build=Tiny, layers={"dense": 24}, layer="dense", head=("last.",),
    preprocessings={"standard": Preprocessing(32, 32)},
)  # fmt: skip
SETTINGS = PretrainSettings(
    arch="resnet50",
    image_size=32,
    epochs=2,
    batch_size=12,
    lr=0.02,
    lr_steps=(1,),
    seed=3,
    checkpoint_every=1,
)


def put_tiny_network_in_place() -> None:
    """The architecture resnet50 is Tiny from now on."""
    rayssl.pretraining.BACKBONES["resnet50"] = ("tiny", "last.")
    rayssl.pretraining.image_backbone_spec = lambda name: SPEC


KEPT: list[Pretraining] = []


def main(images: Path, out: Path) -> None:
    """Trains and saves, as every process does, weights and rows."""
    put_tiny_network_in_place()
    dist.init_process_group("gloo")
    training = Pretraining(
        SETTINGS, ClassFolders(images, 32, SETTINGS.seed), ClassFolders(images, 32)
    )
    rows = list(training.progress())
    for row in rows:
        del row["images_per_s"]
    dist.barrier()  # none ends while another still sums
    name = f"{dist.get_rank()}.pt"
    torch.save({"network": training.network.state_dict(), "rows": rows}, out / name)
    KEPT.append(training)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # without the end of DDP, which can wait for ever: see rayssl/pretraining_job.py
