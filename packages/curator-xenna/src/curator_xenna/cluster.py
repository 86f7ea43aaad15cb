# SPDX-License-Identifier: Apache-2.0
"""The Ray cluster that runs are held on: the only place that starts Ray, joins it, or shuts it down."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
from typing import TYPE_CHECKING, Any

import ray
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from curator_core import ClusterError, ExecutorError
from curator_xenna.compat import install_sigterm_again, lean_ray, read_auth_settings_again
from curator_xenna.nodes import Node, probed_nodes

if TYPE_CHECKING:
    from curator_xenna.config import XennaConfig

__all__ = ["Cluster", "machine_cpus"]

logger = logging.getLogger(__name__)

_NEEDED_BY_XENNA = {
    # Xenna lists all actors through the state API, whose limit is otherwise 10,000 …
    "RAY_MAX_LIMIT_FROM_API_SERVER": "40000",
    "RAY_MAX_LIMIT_FROM_DATA_SOURCE": "40000",
    # … and sets CUDA_VISIBLE_DEVICES for its workers itself, so Ray must not.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the same, for workers without a GPU
}
_MODE, _TOKENS = "RAY_AUTH_MODE", ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_OF_EMBEDDED = ("num_cpus", "num_gpus", "object_store_memory", "dashboard")  # settings
_SHARE_OF_OTHERS = 0.95  # of the CPUs of a cluster that others may use as well
_CONNECT_TIMEOUT_S = 5.0


def machine_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Cluster:
    """A connection to Ray: one we joined, or one we started and will shut down.

    Ray and Xenna write into this process's environment; the executor undoes that after each run.

    Args:
        config: Says which, and how to start one.

    Attributes:
        is_ours: Whether we started it.
        is_fresh: Whether we have just connected, and no run was held on it.
        cpu_share: The share of each node's CPUs that Xenna is to plan with, for the run at hand.
    """

    def __init__(self, config: XennaConfig) -> None:
        self._config = config
        self._address = _given_address(config)
        self._declared_cpus = 0
        self._checked = False
        self._variables: dict[str, str] = {}  # that we set, for as long as our Ray is there
        self.is_ours = False
        self.is_fresh = False
        self.cpu_share = 1.0

    @property
    def is_embedded(self) -> bool:
        """Whether the Ray of the run is, or will be, one that we start."""
        return self.is_ours or (not ray.is_initialized() and self._address is None)

    @property
    def may_declare(self) -> bool:
        """Whether it can declare more CPUs than the machine has."""
        return self.is_embedded and self._config.num_cpus is None

    @property
    def cores(self) -> int | None:
        """Cores of the machine that an embedded Ray is on; None where it is a cluster's."""
        return self._cores if self.is_embedded else None

    def machine(self) -> Node:
        """What an embedded Ray has to offer to stages without GPUs, started or not."""
        return Node("", math.floor(self._cores * self._usual_share), ())

    def open(self, cpus_needed: int = 0) -> None:
        """Connect, or start an embedded Ray, unless that was done; restart ours where it declares too few CPUs.

        Args:
            cpus_needed: CPUs that it has to declare, where those are more than there are.

        Raises:
            ClusterError: No Ray answers at the address.
            ExecutorError: A Ray Client address.
        """
        wanted = self._cpus_to_declare(cpus_needed)
        if self.is_ours and wanted > self._declared_cpus:
            logger.info("the stages need %d CPUs: starting the embedded Ray again", wanted)
            self.close()
        if ray.is_initialized():
            self._check_is_meant()
        else:
            os.environ.update(_NEEDED_BY_XENNA)
            if self._address is None:
                self._start(wanted)
            else:
                self._join(self._address)
            self.is_fresh = True
        # Xenna asks Ray's state API without saying which Ray, and there may be others on this machine.
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        self.cpu_share = self._share_of_declared(cpus_needed) if self.is_ours else self._usual_share
        if not self.is_ours and not self._checked:
            _check_head(os.environ["RAY_ADDRESS"])
            self._warn_of_settings()
            self._checked = True

    def close(self) -> None:
        """Shut Ray down, if it is ours."""
        if self.is_ours:
            ray.shutdown()
            for name, value in self._variables.items():
                if os.environ.get(name) == value:
                    del os.environ[name]
            self._variables.clear()
            read_auth_settings_again()  # for a Ray that this process starts or joins later
            self.is_ours = self.is_fresh = False

    def nodes(self) -> list[Node]:
        """The nodes that are alive, with their GPUs. Waits for Ray to find out about one that has just been lost.

        Raises:
            ClusterError: A node that Ray calls alive does not answer, or answers with an error.
        """
        return probed_nodes(self.cpu_share)

    @property
    def _cores(self) -> int:
        return self._config.num_cpus or machine_cpus()

    @property
    def _usual_share(self) -> float:
        share = self._config.cpu_allocation_percentage
        if share is not None:
            return share
        return 1.0 if self.is_embedded else _SHARE_OF_OTHERS

    def total_cpus(self) -> float:
        """CPUs of all nodes, as Xenna plans with them."""
        declared: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return declared.get("CPU", 1.0) * self.cpu_share

    def _cpus_to_declare(self, cpus_needed: int) -> int:
        declared = self._cores
        while math.floor(declared * self._usual_share) < cpus_needed:
            declared += 1
        return declared

    def _check_is_meant(self) -> None:
        """Whether the Ray that this process is connected to already is the one that the settings mean."""
        wanted, actual = self._config.address, ray.get_runtime_context().gcs_address
        if not self.is_ours and wanted not in (None, "auto", actual):
            raise ExecutorError(
                "this process is connected to another Ray cluster",
                field="address",
                given=wanted,
                expected=actual,
                hint="call ray.shutdown() first, or leave the address out",
            )

    def _warn_of_settings(self) -> None:
        """Say which settings are for a Ray that we start, and this is none."""
        given = {name: getattr(self._config, name) for name in _OF_EMBEDDED}
        idle = [f"{name}={value!r}" for name, value in given.items() if value not in (None, False)]
        if idle:
            verb = "has" if len(idle) == 1 else "have"
            logger.warning("%s %s no effect on a Ray that is joined", ", ".join(idle), verb)

    def _share_of_declared(self, cpus_needed: int) -> float:
        """The share that leaves this run what the machine has, or what it needs where that is more.

        An earlier run may have needed more, and the embedded Ray still declares it: without this the
        autoscaler would start workers for CPUs that are not there.
        """
        planned = max(cpus_needed, self.machine().cpus)
        if planned >= math.floor(self._declared_cpus * self._usual_share):
            return self._usual_share
        return (planned + 0.5) / self._declared_cpus  # Xenna rounds down

    def _start(self, cpus: int) -> None:
        if cpus > machine_cpus():
            logger.info("the embedded Ray declares %d CPUs on %d cores, so that all stages fit", cpus, machine_cpus())
        optional = {
            "num_gpus": self._config.num_gpus,
            "object_store_memory": self._config.object_store_memory,
        }
        self._want_token()
        # Ours from here on: Ctrl-C may come while it starts.
        self.is_ours, self._declared_cpus = True, cpus
        try:
            asked = {key: value for key, value in optional.items() if value is not None}
            with lean_ray(dashboard=self._config.dashboard, log_monitor=self._config.shows_worker_output):
                self._init(address="local", num_cpus=cpus, **asked)  # and not any that runs on this machine already
        except Exception as exc:
            self.close()
            raise ClusterError(
                f"the embedded Ray did not start: {str(exc).partition(chr(10))[0]}",
                given={"num_cpus": cpus, **optional},
                expected="a machine with memory and ports to spare",
                hint="see the logs under /tmp/ray/session_latest/logs, or start a head by hand and set RAY_ADDRESS",
            ) from exc
        except BaseException:
            self.close()
            raise

    def _want_token(self) -> None:
        """Let nobody in without a token: Ray's ports are open to the network, whatever one asks.

        Before 2.60 one is wanted only where that is said. Without one of ours Ray would make one, and leave it in the
        user's home for every Ray to come.
        """
        if _MODE in os.environ:
            return
        self._variables[_MODE] = "token"
        if not any(name in os.environ for name in _TOKENS):
            self._variables[_TOKENS[0]] = secrets.token_hex(32)
        os.environ.update(self._variables)
        read_auth_settings_again()

    def _join(self, address: str) -> None:
        if address.startswith("ray://"):
            raise ExecutorError(
                "Xenna cannot work through Ray Client",
                field="address",
                given=address,
                expected="the address of a Ray head, host:port",
                hint="run the driver on a node of the cluster, with RAY_ADDRESS=auto or host:6379",
            )
        _check_answers(address)
        try:
            self._init(address=address)
        except (ConnectionError, RuntimeError, ValueError) as exc:
            raise _nobody_there(address, exc) from exc

    def _init(self, **kwargs: Any) -> None:
        ray.init(
            include_dashboard=True,  # Xenna's monitor lists actors through it
            log_to_driver=self._config.shows_worker_output,
            logging_level=logging.INFO if self._config.verbose else logging.ERROR,
            configure_logging=True,
            **kwargs,
        )
        install_sigterm_again()


def _given_address(config: XennaConfig) -> str | None:
    address = config.address or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def _check_answers(address: str) -> None:
    """Ray takes half a minute to find out that nobody is there."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto": Ray looks for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as exc:
        raise _nobody_there(address, exc) from exc


def _check_head(address: str) -> None:
    """Whether the head answers what Xenna asks it while a run goes on."""
    try:
        list_actors(limit=int(_NEEDED_BY_XENNA["RAY_MAX_LIMIT_FROM_API_SERVER"]), raise_on_missing_output=False)
    except RayStateApiException as exc:
        raise ClusterError(
            "the head of this Ray cluster was started without what Xenna needs",
            field="RAY_ADDRESS",
            given=address,
            expected=str(exc).partition("\n")[0],
            hint=f"start the head with {_settings()}",
        ) from exc


def _settings() -> str:
    """What the environment of a head must say for Xenna, as a shell takes it."""
    return " ".join(f"{name}={value}" for name, value in _NEEDED_BY_XENNA.items())


def _nobody_there(address: str, exc: BaseException) -> ClusterError:
    reasons = []
    while exc is not None:
        reasons.append(str(exc).partition("\n")[0])
        exc = exc.__cause__ or exc.__context__  # type: ignore[assignment]  # ends the loop
    reason = reasons[-1]  # Ray's outer ones only say that it did not work
    hint = f"start one with `{_settings()} ray start --head`, or unset RAY_ADDRESS for an embedded Ray"
    if "token" in reason.lower():
        hint = "this cluster wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token"
    return ClusterError(
        f"no Ray cluster answers: {reason}",
        field="RAY_ADDRESS",
        given=address,
        expected="the address of a running Ray head, host:port",
        hint=hint,
    )
