# SPDX-License-Identifier: Apache-2.0
"""Settings of `XennaExecutor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from curator_core import ExecutorError
from curator_core.backends import MAX_BUNDLE_BYTES, unknown_name

__all__ = ["XennaConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class XennaConfig:
    """Settings of a run on Xenna. The names that NeMo Curator's executor knows mean the same here.

    Attributes:
        logging_interval: Seconds between Xenna's status tables, shown where ``verbose`` is set.
        ignore_failures: Drop what fails, count it and go on: the same as ``on_error="skip"``. Failures are
            dealt with by the adapter, so that they are counted; Xenna never sees them.
        max_workers_per_stage: No stage gets more workers than this. Xenna's autoscaler knows no such
            limit, so with one the workers are shared out evenly at the start and stay.
        execution_mode: ``"streaming"`` runs all stages at once, ``"batch"`` one after the other, holding
            everything in between.
        fuse: Let neighbouring stages with equal needs share a worker; see `Plan.explain`.
        bundle: Send several tasks at once from worker to worker.
        max_bundle_bytes: No bundle is larger than this, unless a single task is, or a batch that is to be full.
        cpu_allocation_percentage: Share of each node's CPUs to plan with, above 0 and up to 1; None means all of
            an embedded Ray, and 0.95 of a cluster that is joined.
        autoscale_interval_s: Seconds between two decisions of Xenna's autoscaler; None means 180 on a cluster that
            is joined, and less on an embedded Ray, where a stage that has finished holds a good part of the machine.
        slots_per_actor: Tasks that Xenna hands to a worker in advance, the one at hand included.
        max_queued_multiplier: Xenna's back-pressure: tasks queued behind a stage, in slots of its workers.
        max_queued_lower_bound: The least that may be queued behind a stage.
        max_restarts: How often Xenna is started again in the same Ray session, with the source tasks that are not
            finished, after a worker has died, or tasks were lost.
        address: The Ray cluster to join; None means the one at ``RAY_ADDRESS``, or an embedded one.
        num_cpus: CPUs that the embedded Ray declares; None means what the machine has, or more where the stages need
            more.
        num_gpus: GPUs that the embedded Ray declares; None means what the machine has.
        object_store_memory: Bytes of shared memory of the embedded Ray's object store; None leaves it to Ray.
        dashboard: Whether the embedded Ray has its dashboard, which then takes longer to start.
        codec_engines: Hardware codec engines of each GPU model, as ``{"H100": (7, 0)}`` (decoders,
            encoders); adds to and overrides the built-in table in `curator_xenna.resources`.
        verbose: Show Xenna's and Ray's own output, status tables included.
        log_to_driver: Show what workers print and log; None means as ``verbose``.

    Raises:
        ExecutorError: A value that makes no sense.
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
    max_queued_multiplier: float = 1.0
    max_queued_lower_bound: int = 8
    max_restarts: int = 3
    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None
    object_store_memory: int | None = None
    dashboard: bool = False
    codec_engines: Mapping[str, tuple[int, int]] | None = None
    verbose: bool = False
    log_to_driver: bool | None = None

    @classmethod
    def of(cls, config: XennaConfig | Mapping[str, Any] | None) -> XennaConfig:
        """A config from whatever an executor was given.

        Raises:
            ExecutorError: A key that is not known, or a value that makes no sense.
        """
        if isinstance(config, cls):
            return config
        if config is None:
            return cls()
        if not isinstance(config, Mapping):
            raise ExecutorError(
                "this is no configuration",
                field="config",
                given=config,
                expected="a XennaConfig, or a dict of its settings",
                hint='for example XennaExecutor({"execution_mode": "batch"})',
            )
        known = [field.name for field in fields(cls)]
        for key in config:
            if key not in known:
                raise ExecutorError("XennaExecutor does not know this setting", **unknown_name("setting", key, known))
        return cls(**config)

    def __post_init__(self) -> None:
        for name in ("logging_interval", "max_queued_multiplier"):
            self._require(name, _is_number(getattr(self, name)) and getattr(self, name) > 0, "a number above 0")
        interval, share = self.autoscale_interval_s, self.cpu_allocation_percentage
        self._require("autoscale_interval_s", interval is None or (_is_number(interval) and interval > 0), "above 0")
        valid = share is None or (_is_number(share) and 0 < share <= 1)
        self._require("cpu_allocation_percentage", valid, "None, or a number above 0, up to 1")
        self._require("execution_mode", self.execution_mode in ("streaming", "batch"), "'streaming' or 'batch'")
        for name in ("max_workers_per_stage", "slots_per_actor", "num_cpus", "object_store_memory"):
            self._require(name, _is_count(getattr(self, name), least=1), "None, or a whole number, 1 or more")
        self._require("num_gpus", _is_count(self.num_gpus, least=0), "None, or a whole number, 0 or more")
        valid = _is_count(self.max_restarts, least=0) and self.max_restarts is not None
        self._require("max_restarts", valid, "a whole number, 0 or more")
        for name in ("max_queued_lower_bound", "max_bundle_bytes"):
            self._require(name, _is_count(getattr(self, name) or 0, least=1), "a whole number, 1 or more")
        for name in ("ignore_failures", "fuse", "bundle", "dashboard", "verbose"):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        self._require("log_to_driver", self.log_to_driver in (None, True, False), "None, True or False")
        self._require("address", self.address is None or isinstance(self.address, str), "None, or host:port")
        self._require("codec_engines", _is_codec_table(self.codec_engines), "a dict of (decoders, encoders) a model")

    def _require(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ExecutorError(
                "this setting of XennaExecutor makes no sense",
                field=name,
                given=getattr(self, name),
                expected=expected,
                hint="mend the value, or leave it out for the default",
            )

    @property
    def shows_worker_output(self) -> bool:
        """Whether what workers print is shown."""
        return self.verbose if self.log_to_driver is None else self.log_to_driver


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any, least: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least)


def _is_codec_table(table: Any) -> bool:
    if table is None:
        return True
    return isinstance(table, Mapping) and all(
        isinstance(model, str)
        and isinstance(engines, tuple | list)
        and len(engines) == 2
        and all(_is_count(number, least=0) and number is not None for number in engines)
        for model, engines in table.items()
    )
