# SPDX-License-Identifier: Apache-2.0
"""Our resource requests in Xenna's terms.

Xenna plans with CPUs and with shares of GPUs, and with nothing else. GPU memory and codec engines are
therefore asked for as the share of a GPU that holds them: a worker with half a GPU has half of its memory
and half of its decoders.
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
"""Hardware decoders (NVDEC) and encoders (NVENC) of each GPU model.

Source: NVIDIA's Video Encode and Decode Support Matrix, https://developer.nvidia.com/video-codec-sdk-support-matrix.
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of the cluster, as NVML names it.

    Attributes:
        name: Such as ``"NVIDIA H100 80GB HBM3"``.
        memory_gb: Its memory in GB (10**9 bytes); 0 where NVML does not say.
    """

    name: str
    memory_gb: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker needs in Xenna's terms.

    Attributes:
        cpus: CPU cores.
        gpus: Below 1 a share of one GPU; otherwise whole GPUs.
    """

    cpus: float
    gpus: float


def share_of(
    resources: Resources, gpus: Sequence[Gpu], stage: str, codec_engines: Mapping[str, tuple[int, int]] | None = None
) -> Share:
    """Translate a request.

    On a cluster of several GPU models the share is that of the model that offers least.

    Args:
        resources: The request.
        gpus: The models in the cluster.
        stage: Name of the stage, for errors.
        codec_engines: Adds to and overrides `CODEC_ENGINES`.

    Raises:
        ResourcesError: A request that cannot be expressed: a codec engine that the GPU does not have, a
            model whose engines or memory are not known, or no GPU to take a share of.
    """
    if not (resources.gpu_memory_gb or resources.nvdecs or resources.nvencs):
        return Share(resources.cpus, 1.0 if resources.entire_gpu else float(resources.gpus))
    if not gpus:
        raise ResourcesError(
            "asks for a part of a GPU, and there is none whose size is known",
            stage=stage,
            field="resources",
            given=resources,
            expected="a GPU that NVML reports",
            hint="install pynvml and the driver on the nodes, or ask for gpus=… instead",
        )
    table = {**CODEC_ENGINES, **(codec_engines or {})}
    asked = max(_share_on(resources, gpu, stage, table) for gpu in gpus)
    wanted = max(float(resources.gpus), asked, 1.0 if resources.entire_gpu else 0.0)
    if wanted > 1 and resources.entire_gpu:
        raise ResourcesError(
            "asks for more than one entire GPU holds",
            stage=stage,
            field="resources",
            given=resources,
            expected=f"at most what one {_names(gpus)} has",
            hint="use gpus=N for several whole GPUs",
        )
    # Above one GPU only whole ones can be had. A hair above, from the division, is not one more.
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
        f"asks for {field}, and {gpu.name} has none that is known",
        stage=stage,
        field=field,
        given=asked,
        expected=f"a GPU with {field}",
        hint="run the stage on another GPU model"
        if field == "gpu_memory_gb"
        else "run it on another model, or correct the table with XennaConfig(codec_engines={…})",
    )


def _engines(gpu: Gpu, stage: str, table: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    # The longest name first: "L40S" must not be taken for "L4".
    for model in sorted(table, key=len, reverse=True):
        if model.lower() in gpu.name.lower():
            decoders, encoders = table[model]
            return decoders, encoders
    raise ResourcesError(
        f"asks for codec engines, and it is not known how many {gpu.name} has",
        stage=stage,
        field="nvdecs, nvencs",
        given=gpu.name,
        expected=f"one of {', '.join(sorted(table))}",
        hint=f'XennaConfig(codec_engines={{"{gpu.name}": (decoders, encoders)}})',
    )


def _names(gpus: Sequence[Gpu]) -> str:
    return " or ".join(sorted({gpu.name for gpu in gpus}))
