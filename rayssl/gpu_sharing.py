"""A GPU that several trials share: none of them should hold a core while it waits for its turn."""

import ctypes

CU_CTX_SCHED_BLOCKING_SYNC = 4


def wait_asleep() -> bool:
    """Lets this process sleep until its work on the first GPU is done; CUDA's own way is to spin.

    To be called before the process uses the GPU.

    Returns:
      whether the driver took it; False where there is no driver.
    Source: CUDA driver API, `cuDevicePrimaryCtxSetFlags`.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0):
            return False
        return not driver.cuDevicePrimaryCtxSetFlags_v2(0, CU_CTX_SCHED_BLOCKING_SYNC)
    except (OSError, AttributeError):  # no driver, or one without this function
        return False
