# SPDX-License-Identifier: Apache-2.0
"""Runtime environments of stages, passed through Xenna unchanged."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import ray.runtime_env

from curator_xenna.compat import RuntimeEnv

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StageEnvironment"]


class StageEnvironment(RuntimeEnv):
    """Any Ray runtime environment. Xenna's own class supports only conda and environment variables.

    Xenna copies it for each worker and adds its own variables (``CUDA_VISIBLE_DEVICES``, ranks). Variables of
    the stage take precedence.

    Args:
        declared: A Ray runtime environment: ``env_vars``, ``pip``, ``conda``, ``working_dir`` …
    """

    def __init__(self, declared: Mapping[str, Any]) -> None:
        rest = {name: copy.deepcopy(value) for name, value in declared.items() if name != "env_vars"}
        super().__init__(extra_env_vars=dict(declared.get("env_vars") or {}))
        self._rest = rest

    def to_ray_runtime_env(self) -> ray.runtime_env.RuntimeEnv:
        """Return the environment as a Ray `RuntimeEnv`."""
        return ray.runtime_env.RuntimeEnv(**self._rest, env_vars=dict(self.extra_env_vars))

    def format(self) -> str:  # the name is Xenna's
        """Return the names of all settings, without values: they may be secrets, and this text is logged."""
        return ", ".join([*sorted(self._rest), *(f"env_vars[{name}]" for name in sorted(self.extra_env_vars))])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.format()})"

    __str__ = __repr__

    def __deepcopy__(self, memo: dict[int, Any]) -> StageEnvironment:
        return StageEnvironment({**self._rest, "env_vars": self.extra_env_vars})

    def __reduce__(self) -> tuple[Any, ...]:
        return StageEnvironment, ({**self._rest, "env_vars": self.extra_env_vars},)
