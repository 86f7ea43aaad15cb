# SPDX-License-Identifier: Apache-2.0
"""Run curator pipelines on Cosmos-Xenna, NVIDIA's streaming executor on Ray.

    from curator_xenna import XennaExecutor

    result = pipeline.run(executor=XennaExecutor({"logging_interval": 30}))

Importing this package loads neither Ray nor Xenna; using one of its names does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from curator_xenna.__about__ import __version__

if TYPE_CHECKING:
    from curator_xenna.adapter import XennaStageAdapter, create_named_xenna_stage_adapter
    from curator_xenna.capacity import CapacityPlan, ClusterSpec, GroupCapacity, LimitKind, plan_capacity
    from curator_xenna.config import XennaConfig
    from curator_xenna.executor import XennaExecutor

__all__ = [
    "CapacityPlan",
    "ClusterSpec",
    "GroupCapacity",
    "LimitKind",
    "XennaConfig",
    "XennaExecutor",
    "XennaStageAdapter",
    "__version__",
    "create_named_xenna_stage_adapter",
    "plan_capacity",
]

_WHERE = {
    "CapacityPlan": "curator_xenna.capacity",
    "ClusterSpec": "curator_xenna.capacity",
    "GroupCapacity": "curator_xenna.capacity",
    "LimitKind": "curator_xenna.capacity",
    "plan_capacity": "curator_xenna.capacity",
    "XennaConfig": "curator_xenna.config",
    "XennaExecutor": "curator_xenna.executor",
    "XennaStageAdapter": "curator_xenna.adapter",
    "create_named_xenna_stage_adapter": "curator_xenna.adapter",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
