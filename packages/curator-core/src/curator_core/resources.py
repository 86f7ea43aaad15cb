# SPDX-License-Identifier: Apache-2.0
"""What one worker of a stage requests from a machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from curator_core._numbers import is_amount, is_whole
from curator_core.errors import ResourcesError

__all__ = ["Resources"]


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources that one worker of a stage requests.

    Engines translate this into their own terms; a request that an engine cannot express is an error, never dropped.

    Attributes:
        cpus: CPU cores; may be fractional.
        gpus: GPUs: a fraction below 1 shares one device, otherwise a whole number of devices.
        gpu_memory_gb: GPU memory in GB, instead of ``gpus``: the share of a device that provides it.
        nvdecs: Hardware video decoders (NVDEC engines).
        nvencs: Hardware video encoders (NVENC engines).
        entire_gpu: One whole GPU with all its codec engines, not shared.

    Raises:
        ResourcesError: A negative, infinite, or NaN amount; ``gpus`` above 1 that is not whole; both
            ``gpus`` and ``gpu_memory_gb``; ``entire_gpu`` together with a share; nothing at all.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    gpu_memory_gb: float = 0.0
    nvdecs: int = 0
    nvencs: int = 0
    entire_gpu: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check_amount(field.name)
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ResourcesError(
                "invalid number of GPUs",
                field="gpus",
                given=self.gpus,
                expected="a fraction below 1 to share a GPU, or a whole number of GPUs",
                hint=f"use gpus={math.ceil(self.gpus)} or split the stage",
            )
        if self.gpus and self.gpu_memory_gb:
            raise ResourcesError(
                "gpus and gpu_memory_gb are mutually exclusive",
                field="gpus, gpu_memory_gb",
                given=(self.gpus, self.gpu_memory_gb),
                expected="at most one of the two",
                hint="remove one of them",
            )
        if self.entire_gpu and (self.gpu_memory_gb or self.gpus not in (0, 1)):
            raise ResourcesError(
                "entire_gpu requests exactly one whole GPU",
                field="entire_gpu",
                given=self,
                expected="gpus unset or 1, gpu_memory_gb unset",
                hint="use gpus=N for several whole GPUs, without entire_gpu",
            )
        if not (self.cpus or self.requires_gpu):
            raise ResourcesError(
                "a worker without resources cannot be placed",
                field="cpus",
                given=self,
                expected="cpus above 0, or a GPU",
                hint="use a small share such as cpus=0.1",
            )

    def _check_amount(self, name: str) -> None:
        value = getattr(self, name)
        if name == "entire_gpu":
            valid, expected = isinstance(value, bool), "True or False"
        elif name in ("nvdecs", "nvencs"):
            valid, expected = is_whole(value, 0), "a whole number, 0 or more"
        else:
            valid, expected = is_amount(value), "a finite number, 0 or more"
        if not valid:
            raise ResourcesError(
                "invalid amount", field=name, given=value, expected=expected, hint=f"change the value of {name}"
            )

    @property
    def requires_gpu(self) -> bool:
        """Whether a worker needs a GPU, or a share or codec engine of one."""
        return bool(self.gpus or self.gpu_memory_gb or self.nvdecs or self.nvencs or self.entire_gpu)
