"""Crops the faces of many videos at once as Ray tasks, one video a task."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from rayssl.data.face_crops import CropSettings, crop_video
from rayssl.data.face_videos import Problem

IN_FLIGHT = 4  # tasks for each CPU: all at once would be 100,000 objects


def crop_videos(
    root: Path,
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    settings: CropSettings,
    weights: Path | None = None,
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any] | Problem]]:
    """Yields each row with the result of `crop_video`, in the order in which they are done.

    Ray must be up. A video that brings its process down (decoders are native code) or its node is
    tried once more, and is a Problem then.

    Raises:
      OSError: if crops cannot be written.
    """
    task = ray.remote(num_cpus=1, max_retries=1)(crop_video)
    room = max(1, int(ray.cluster_resources().get("CPU", 1))) * IN_FLIGHT
    waiting = list(reversed(rows))
    running: dict[ray.ObjectRef, Mapping[str, Any]] = {}
    # On other nodes the working directory is another one.
    root, out = root.resolve(), out.resolve()
    weights = weights.resolve() if weights else None
    while waiting or running:
        while waiting and len(running) < room:
            row = waiting.pop()
            running[task.remote(root, out, row, settings, weights)] = row
        done, _ = ray.wait(list(running), num_returns=1)
        row = running.pop(done[0])
        try:
            result = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # a full disk, not a fault of the video
        except ray.exceptions.RayError as error:
            result = Problem(row["video"], "process died", " ".join(str(error).split())[:300])
        yield row, result
