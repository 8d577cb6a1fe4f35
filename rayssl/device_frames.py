"""A replay's frames in the memory of the learner's device: batches need no copy from the host."""

import numpy as np
import torch
from torch import Tensor


class DeviceFrames:
    """Frames of a FrameReplay as one uint8 tensor on a device; `rayssl.replay.FrameStore`.

    Rows travel to the device once, when they are added. Stacks are rebuilt there and stay there.
    Slot numbers are all that a draw sends: 2 * B * stack of 8 bytes.

    Args:
      slots, pixels: shape of the tensor.
      device: where it lies.
    Raises:
      MemoryError: if the device has not as much free memory.
    """

    def __init__(self, slots: int, pixels: int, device: torch.device) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if slots * pixels > free:
                raise MemoryError(
                    f"Replay needs {slots * pixels / 1e9:.3g} GB for {slots:,} transitions, "
                    f"{self.device} has {free / 1e9:.3g} GB free. Lower --replay-capacity to "
                    f"{free // pixels}, or pass --replay-device host."
                )
        self._frames = torch.empty((slots, pixels), dtype=torch.uint8, device=self.device)

    @property
    def nbytes(self) -> int:
        """Bytes reserved for all slots."""
        return self._frames.nbytes

    def write(self, slots: np.ndarray, frames: np.ndarray) -> None:
        """Copies frames, uint8 `[..., H * W]`, into their slots, int64 `[...]`."""
        flat = np.ascontiguousarray(frames.reshape(-1, self._frames.shape[1]))
        self._frames[self._moved(slots.ravel())] = self._moved(flat)

    def read(self, slots: np.ndarray) -> np.ndarray:
        """Returns the frames in slots `[K]` as an array, uint8 `[K, H * W]`."""
        found: np.ndarray = self._frames[self._moved(slots)].cpu().numpy()
        return found

    def stacks(self, slots: np.ndarray, blank: np.ndarray) -> Tensor:
        """Returns new stacks on the device, uint8 `[..., H * W]`, zero where `blank` is set."""
        frames = self._frames.index_select(0, self._moved(slots.ravel()))
        if blank.any():
            frames[self._moved(np.flatnonzero(blank))] = 0
        return frames.view(*slots.shape, -1)

    def _moved(self, array: np.ndarray) -> Tensor:
        """The array on the device; to a GPU from page-locked memory, without waiting for it."""
        # A copy: a frame file's arrays are read-only, and the caller may reuse the others.
        tensor = torch.tensor(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
