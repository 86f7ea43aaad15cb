# SPDX-License-Identifier: Apache-2.0
"""Settings of `XennaExecutor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from curator_core import ExecutorError
from curator_core.backends import MAX_BUNDLE_BYTES, is_whole, unknown_name

__all__ = ["XennaConfig"]

_SHARE_OF_OTHERS = 0.95  # of the CPUs of a cluster that others may also use
_PASSED_ON = {  # options that look like settings, and the setting that passes them on
    "enable_backlog_aware_scaledown": "xenna",
    "max_queued_lower_bound": "xenna",
    "max_queued_multiplier": "xenna",
    "num_gpus": "ray",
    "object_store_memory": "ray",
    "runtime_env": "ray",
    "saturation_aware": "xenna",
    "scale_down_grace_after_ready_s": "xenna",
    "scheduler": "xenna",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class XennaConfig:
    """Settings of a run on Xenna. Names that NeMo Curator's executor also has mean the same here.

    Attributes:
        logging_interval: Seconds between Xenna's status tables, which are shown if ``verbose`` is set.
        ignore_failures: Drop and count failed tasks and continue: the same as ``on_error="skip"``. The adapter
            handles failures, so that they are counted; Xenna never sees them.
        max_workers_per_stage: The maximum number of workers of each stage. Xenna's autoscaler has no such
            limit, so if this is set, the workers are distributed evenly at the start and their number is fixed.
            If a stage has a smaller ``max_workers``, that counts.
        execution_mode: ``"streaming"`` runs all stages at once; ``"batch"`` runs one after the other and keeps
            all tasks in memory in between.
        fuse: Let adjacent stages with equal requirements share a worker; see `Plan.explain`.
        bundle: Send several tasks at once from worker to worker.
        max_bundle_bytes: The maximum size of a bundle. Only a single task, or a batch that must be full, can exceed it.
        cpu_allocation_percentage: The share of each node's CPUs to plan with, above 0 and up to 1; None means all
            CPUs of an embedded Ray, and 0.95 on an existing cluster.
        autoscale_interval_s: Seconds between two decisions of Xenna's autoscaler; None means 180 on an existing
            cluster, and 5 on an embedded Ray, where a finished stage occupies a large part of the machine.
        slots_per_actor: The number of tasks that Xenna assigns to a worker at a time, including the running one.
        max_restarts: How often to restart Xenna in the same Ray session, with the unfinished source tasks, after a
            worker died or tasks were lost.
        address: The address of an existing Ray cluster; None means the one in ``RAY_ADDRESS`` if set, or an
            embedded Ray.
        num_cpus: The number of CPUs that the embedded Ray declares; None means all that the machine has, or more if
            the stages need more.
        dashboard: Whether to start the dashboard of the embedded Ray, which then takes longer to start.
        codec_engines: Hardware codec engines of each GPU model, such as ``{"H100": (7, 0)}`` (decoders,
            encoders). Extends and overrides the built-in table in `curator_xenna._convert.resources`.
        verbose: Show Xenna's and Ray's own output, including status tables.
        log_to_driver: Show what workers print and log; None means the value of ``verbose``.
        xenna: Options that are passed on to Xenna: fields of the installed version's ``PipelineConfig`` and
            ``StreamingSpecificSpec``, such as ``{"scheduler": "saturation_aware"}``. Options that another setting
            controls are refused. `XennaExecutor` checks names and values when it is created.
        ray: Options that are passed on to ``ray.init`` for an embedded Ray, such as ``{"num_gpus": 4}``.
            `XennaExecutor` checks them when it is created.

    Raises:
        ExecutorError: A value is invalid.
    """

    logging_interval: float = 60.0
    ignore_failures: bool = False
    max_workers_per_stage: int | None = None
    execution_mode: Literal["streaming", "batch"] = "streaming"
    fuse: bool = True
    bundle: bool = True
    max_bundle_bytes: int = MAX_BUNDLE_BYTES
    cpu_allocation_percentage: float | None = None
    autoscale_interval_s: float | None = None
    slots_per_actor: int | None = None
    max_restarts: int = 3
    address: str | None = None
    num_cpus: int | None = None
    dashboard: bool = False
    codec_engines: Mapping[str, tuple[int, int]] | None = None
    verbose: bool = False
    log_to_driver: bool | None = None
    xenna: Mapping[str, Any] | None = None
    ray: Mapping[str, Any] | None = field(default=None, repr=False)  # a runtime environment may have secrets

    @classmethod
    def of(cls, config: XennaConfig | Mapping[str, Any] | None) -> XennaConfig:
        """Return the config for the argument of an executor: a config, a dict of settings, or None.

        Raises:
            ExecutorError: A key is unknown, or a value is invalid.
        """
        if isinstance(config, cls):
            return config
        if config is None:
            return cls()
        if not isinstance(config, Mapping):
            raise ExecutorError(
                "invalid configuration of XennaExecutor",
                field="config",
                given=config,
                expected="a XennaConfig or a dict of its settings",
                hint='pass for example {"execution_mode": "batch"}',
            )
        known = [setting.name for setting in fields(cls)]
        for key in config:
            if key not in known:
                details = unknown_name("setting", key, known)
                if key in _PASSED_ON:
                    details["hint"] = f"pass {_PASSED_ON[key]}={{{key!r}: …}} instead"
                raise ExecutorError("unknown setting of XennaExecutor", **details)
        return cls(**config)

    def __post_init__(self) -> None:
        valid = _is_number(self.logging_interval) and self.logging_interval > 0
        self._require("logging_interval", valid, "a number above 0")
        interval, share = self.autoscale_interval_s, self.cpu_allocation_percentage
        valid = interval is None or (_is_number(interval) and interval > 0)
        self._require("autoscale_interval_s", valid, "None or a number above 0")
        valid = share is None or (_is_number(share) and 0 < share <= 1)
        self._require("cpu_allocation_percentage", valid, "None or a number above 0 and up to 1")
        self._require("execution_mode", self.execution_mode in ("streaming", "batch"), "'streaming' or 'batch'")
        for name in ("max_workers_per_stage", "slots_per_actor", "num_cpus"):
            value = getattr(self, name)
            self._require(name, value is None or is_whole(value, 1), "None or a whole number, 1 or more")
        self._require("max_restarts", is_whole(self.max_restarts, 0), "a whole number, 0 or more")
        self._require("max_bundle_bytes", is_whole(self.max_bundle_bytes, 1), "a whole number, 1 or more")
        for name in ("ignore_failures", "fuse", "bundle", "dashboard", "verbose"):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        self._require("log_to_driver", self.log_to_driver in (None, True, False), "None, True or False")
        self._require("address", self.address is None or isinstance(self.address, str), "None or host:port")
        for name in ("xenna", "ray"):
            self._require(name, _is_options(getattr(self, name)), "None or a dict of options")
        self._require("codec_engines", _is_codec_table(self.codec_engines), "a dict of model: (decoders, encoders)")

    def _require(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            value = getattr(self, name)
            raise ExecutorError(
                "invalid setting of XennaExecutor",
                field=name,
                given=list(value) if name == "ray" and isinstance(value, Mapping) else value,  # values may be secrets
                expected=expected,
                hint="correct the value, or omit it to use the default",
            )

    def cpu_share(self, *, is_embedded: bool) -> float:
        """Return the share of each node's CPUs that Xenna plans with.

        Args:
            is_embedded: Whether `XennaExecutor` starts Ray itself.
        """
        usual = 1.0 if is_embedded else _SHARE_OF_OTHERS
        return usual if self.cpu_allocation_percentage is None else self.cpu_allocation_percentage

    @property
    def shows_worker_output(self) -> bool:
        """Whether to show what workers print."""
        return self.verbose if self.log_to_driver is None else self.log_to_driver


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_options(options: Any) -> bool:
    return options is None or (isinstance(options, Mapping) and all(isinstance(name, str) for name in options))


def _is_codec_table(table: Any) -> bool:
    if table is None:
        return True
    return isinstance(table, Mapping) and all(
        isinstance(model, str)
        and isinstance(engines, tuple | list)
        and len(engines) == 2
        and all(is_whole(number, 0) for number in engines)
        for model, engines in table.items()
    )
