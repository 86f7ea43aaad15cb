# SPDX-License-Identifier: Apache-2.0
"""Translation of resource requests for Xenna.

Xenna plans only with CPUs and shares of GPUs. Requests for GPU memory and codec engines are therefore translated to the
share of a GPU that has them: a worker with half a GPU has half of its memory and half of its decoders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curator_core import ResourcesError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from curator_core import Resources

__all__ = ["CODEC_ENGINES", "Gpu", "Share", "share_of"]

CODEC_ENGINES: Mapping[str, tuple[int, int]] = {
    "H100": (7, 0),
    "A100": (5, 0),
    "L40S": (3, 3),
    "L4": (4, 2),
    "T4": (2, 1),
}
"""The number of hardware decoders (NVDEC) and encoders (NVENC) of each GPU model.

Source: NVIDIA's Video Encode and Decode Support Matrix, https://developer.nvidia.com/video-codec-sdk-support-matrix.
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of the cluster.

    Attributes:
        name: The model name that NVML reports, such as ``"NVIDIA H100 80GB HBM3"``.
        memory_gb: Its memory in GB (10**9 bytes); 0 if NVML does not report it.
    """

    name: str
    memory_gb: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """The resources of a worker, in Xenna's terms.

    Attributes:
        cpus: The number of CPU cores.
        gpus: Below 1, a share of one GPU; otherwise a number of whole GPUs.
    """

    cpus: float
    gpus: float


def share_of(
    resources: Resources, gpus: Sequence[Gpu], stage: str, codec_engines: Mapping[str, tuple[int, int]] | None = None
) -> Share:
    """Translate a request.

    On a cluster with several GPU models, the share is computed for the model that needs the largest share.

    Args:
        resources: The request.
        gpus: The GPUs of the cluster.
        stage: The name of the stage, for errors.
        codec_engines: Extends and overrides `CODEC_ENGINES`.

    Raises:
        ResourcesError: The request cannot be translated: the GPU does not have the codec engine, the engines or the
            memory of the model are unknown, or there is no GPU.
    """
    if not (resources.gpu_memory_gb or resources.nvdecs or resources.nvencs):
        return Share(resources.cpus, 1.0 if resources.entire_gpu else float(resources.gpus))
    if not gpus:
        raise ResourcesError(
            "requests GPU memory or codec engines, but no GPU is known",
            stage=stage,
            field="resources",
            given=resources,
            expected="a GPU that NVML reports",
            hint="install pynvml and the GPU driver on the nodes, or request gpus=… instead",
        )
    table = {**CODEC_ENGINES, **(codec_engines or {})}
    asked = max(_share_on(resources, gpu, stage, table) for gpu in gpus)
    wanted = max(float(resources.gpus), asked, 1.0 if resources.entire_gpu else 0.0)
    if wanted > 1 and resources.entire_gpu:
        raise ResourcesError(
            "requests more than one entire GPU has",
            stage=stage,
            field="resources",
            given=resources,
            expected=f"at most the memory and codec engines of one {_names(gpus)}",
            hint="use gpus=N for several whole GPUs",
        )
    # Above one GPU, only whole GPUs can be requested. A rounding error of the division must not add another one.
    return Share(resources.cpus, wanted if wanted <= 1 else float(math.ceil(wanted - 1e-9)))


def _share_on(resources: Resources, gpu: Gpu, stage: str, table: Mapping[str, tuple[int, int]]) -> float:
    share = 0.0
    if resources.gpu_memory_gb:
        share = _part(resources.gpu_memory_gb, gpu.memory_gb, "gpu_memory_gb", gpu, stage)
    if resources.nvdecs or resources.nvencs:
        decoders, encoders = _engines(gpu, stage, table)
        if resources.nvdecs:
            share = max(share, _part(resources.nvdecs, decoders, "nvdecs", gpu, stage))
        if resources.nvencs:
            share = max(share, _part(resources.nvencs, encoders, "nvencs", gpu, stage))
    return share


def _part(asked: float, has: float, field: str, gpu: Gpu, stage: str) -> float:
    if has > 0:
        return asked / has
    raise ResourcesError(
        f"requests {field}, but {gpu.name} has no known {field}",
        stage=stage,
        field=field,
        given=asked,
        expected=f"a GPU with {field}",
        hint="run the stage on another GPU model"
        if field == "gpu_memory_gb"
        else "run the stage on another GPU model, or correct the table with XennaConfig(codec_engines={…})",
    )


def _engines(gpu: Gpu, stage: str, table: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    # The longest name first: "L40S" must not be taken for "L4".
    for model in sorted(table, key=len, reverse=True):
        if model.lower() in gpu.name.lower():
            decoders, encoders = table[model]
            return decoders, encoders
    raise ResourcesError(
        f"requests codec engines, but the number of engines of {gpu.name} is unknown",
        stage=stage,
        field="nvdecs, nvencs",
        given=gpu.name,
        expected=f"one of {', '.join(sorted(table))}",
        hint=f'pass XennaConfig(codec_engines={{"{gpu.name}": (decoders, encoders)}})',
    )


def _names(gpus: Sequence[Gpu]) -> str:
    return " or ".join(sorted({gpu.name for gpu in gpus}))
