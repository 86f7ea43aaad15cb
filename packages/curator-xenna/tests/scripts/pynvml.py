# SPDX-License-Identifier: Apache-2.0
"""Simulated hardware: NVML as on a machine with the GPUs in FAKE_GPUS.

Only the hardware is simulated. With this module on PYTHONPATH, the real Xenna on a real Ray plans for these GPUs,
starts its workers, and sets their CUDA_VISIBLE_DEVICES.
"""

import os
import uuid
from types import SimpleNamespace


class NVMLError(Exception):
    pass


def _names() -> list[str]:
    return [name for name in os.environ.get("FAKE_GPUS", "").split(",") if name]


def nvmlDeviceGetCount() -> int:
    return len(_names())


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetName(handle: int) -> str:
    return _names()[handle]


def nvmlDeviceGetUUID(handle: int) -> str:
    return f"GPU-{uuid.UUID(int=handle + 1)}"


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    return SimpleNamespace(total=16_000_000_000, used=0, free=16_000_000_000)


def __getattr__(name: str):
    if name.startswith("nvml"):
        return lambda *args, **kwargs: 0
    raise AttributeError(name)
