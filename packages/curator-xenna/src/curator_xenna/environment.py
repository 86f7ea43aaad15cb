# SPDX-License-Identifier: Apache-2.0
"""A stage's runtime environment, carried through Xenna whole."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import ray.runtime_env

from curator_xenna.compat import RuntimeEnv

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StageEnvironment"]


class StageEnvironment(RuntimeEnv):
    """Any Ray runtime environment. Xenna's own class knows conda and environment variables only.

    Xenna copies it for each worker and writes its own variables (``CUDA_VISIBLE_DEVICES``, ranks) under
    those of the stage, which win.

    Args:
        declared: A Ray runtime environment: ``env_vars``, ``pip``, ``conda``, ``working_dir`` …
    """

    def __init__(self, declared: Mapping[str, Any]) -> None:
        rest = {name: copy.deepcopy(value) for name, value in declared.items() if name != "env_vars"}
        super().__init__(extra_env_vars=dict(declared.get("env_vars") or {}))
        self._rest = rest

    def to_ray_runtime_env(self) -> ray.runtime_env.RuntimeEnv:
        """The environment as Ray takes it."""
        return ray.runtime_env.RuntimeEnv(**self._rest, env_vars=dict(self.extra_env_vars))

    def format(self) -> str:  # the name is Xenna's
        """Names only: values may be secrets, and this is logged."""
        return ", ".join([*sorted(self._rest), *(f"env_vars[{name}]" for name in sorted(self.extra_env_vars))])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.format()})"

    __str__ = __repr__

    def __deepcopy__(self, memo: dict[int, Any]) -> StageEnvironment:
        return StageEnvironment({**self._rest, "env_vars": self.extra_env_vars})

    def __reduce__(self) -> tuple[Any, ...]:
        return StageEnvironment, ({**self._rest, "env_vars": self.extra_env_vars},)
