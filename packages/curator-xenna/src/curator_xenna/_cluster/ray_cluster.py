# SPDX-License-Identifier: Apache-2.0
"""The Ray cluster that runs use: the only module that starts Ray, connects to it, or shuts it down."""

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
from curator_xenna._cluster.nodes import Node, probed_nodes
from curator_xenna.compat import RayProcessDiedError, install_sigterm_again, lean_ray, read_auth_settings_again

if TYPE_CHECKING:
    from curator_xenna.config import XennaConfig

__all__ = ["Cluster", "machine_cpus"]

logger = logging.getLogger(__name__)

_NEEDED_BY_XENNA = {
    # Xenna lists all actors through the state API, which by default returns at most 10,000 …
    "RAY_MAX_LIMIT_FROM_API_SERVER": "40000",
    "RAY_MAX_LIMIT_FROM_DATA_SOURCE": "40000",
    # … and sets CUDA_VISIBLE_DEVICES for its workers itself, so Ray must not.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the same, for workers without a GPU
}
_MODE, _TOKENS = "RAY_AUTH_MODE", ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_CONNECT_TIMEOUT_S = 5.0
_STARTS = 3  # of an embedded Ray


def machine_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Cluster:
    """A connection to Ray: either an existing cluster, or an embedded Ray that is shut down on `close`.

    Ray and Xenna write into this process's environment; the executor undoes that after each run.

    Args:
        config: The settings that say which Ray to connect to, or how to start one.

    Attributes:
        is_ours: Whether this object started Ray.
        is_fresh: Whether the connection is new and no run has used it yet.
        cpu_share: The share of each node's CPUs that Xenna plans with in the current run.
    """

    def __init__(self, config: XennaConfig) -> None:
        self._config = config
        self._address = _given_address(config)
        self._declared_cpus = 0
        self._checked = False
        self._variables: dict[str, str] = {}  # environment variables that we set while our Ray is running
        self.is_ours = False
        self.is_fresh = False
        self.cpu_share = 1.0

    @property
    def is_embedded(self) -> bool:
        """Whether the run uses, or will use, a Ray that we start."""
        return self.is_ours or (not ray.is_initialized() and self._address is None)

    @property
    def may_declare(self) -> bool:
        """Whether Ray can be started with more declared CPUs than the machine has."""
        return self.is_embedded and self._config.num_cpus is None

    @property
    def cores(self) -> int | None:
        """The number of cores of the machine for an embedded Ray; None for an existing cluster."""
        return self._cores if self.is_embedded else None

    def machine(self) -> Node:
        """Return the node that an embedded Ray offers, without GPUs; it need not be started."""
        return Node("", math.floor(self._cores * self._usual_share), ())

    def open(self, cpus_needed: int = 0) -> None:
        """Connect to Ray or start an embedded Ray, if not yet done; restart ours if it declares too few CPUs.

        Args:
            cpus_needed: CPUs that Ray must declare, if more than the machine has.

        Raises:
            ClusterError: No Ray answers at the address.
            ExecutorError: The address is that of a Ray Client server, or of another cluster than the connected one.
        """
        wanted = self._cpus_to_declare(cpus_needed)
        if self.is_ours and wanted > self._declared_cpus:
            logger.info("the stages need %d CPUs: restarting the embedded Ray", wanted)
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
        # Xenna calls Ray's state API without an address, and other Rays may run on this machine.
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        self.cpu_share = self._share_of_declared(cpus_needed) if self.is_ours else self._usual_share
        if not self.is_ours and not self._checked:
            _check_head(os.environ["RAY_ADDRESS"])
            self._warn_of_settings()
            self._checked = True

    def close(self) -> None:
        """Shut Ray down if we started it."""
        if self.is_ours:
            ray.shutdown()
            for name, value in self._variables.items():
                if os.environ.get(name) == value:
                    del os.environ[name]
            self._variables.clear()
            read_auth_settings_again()  # for a Ray that this process starts or connects to later
            self.is_ours = self.is_fresh = False

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive, with their GPUs. Waits until Ray has noticed any node that was just lost.

        Raises:
            ClusterError: A node that Ray reports as alive does not answer, or answers with an error.
        """
        return probed_nodes(self.cpu_share)

    @property
    def _cores(self) -> int:
        return self._config.num_cpus or machine_cpus()

    @property
    def _usual_share(self) -> float:
        return self._config.cpu_share(is_embedded=self.is_embedded)

    def total_cpus(self) -> float:
        """Return the number of CPUs of all nodes that Xenna plans with."""
        declared: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return declared.get("CPU", 1.0) * self.cpu_share

    def _cpus_to_declare(self, cpus_needed: int) -> int:
        declared = self._cores
        while math.floor(declared * self._usual_share) < cpus_needed:
            declared += 1
        return declared

    def _check_is_meant(self) -> None:
        """Raise an `ExecutorError` if this process is already connected to another Ray than the settings name."""
        wanted, actual = self._config.address, ray.get_runtime_context().gcs_address
        if not self.is_ours and wanted not in (None, "auto", actual):
            raise ExecutorError(
                "this process is already connected to another Ray cluster",
                field="address",
                given=wanted,
                expected=actual,
                hint="call ray.shutdown() first, or omit the address",
            )

    def _warn_of_settings(self) -> None:
        """Warn about settings that only apply to an embedded Ray."""
        given = {name: getattr(self._config, name) for name in ("num_cpus", "dashboard")}
        idle = [f"{name}={value!r}" for name, value in given.items() if value not in (None, False)]
        idle += [f"ray.{name}" for name in self._config.ray or ()]  # without values, which may be secrets
        if idle:
            verb = "has" if len(idle) == 1 else "have"
            logger.warning("%s %s no effect on an existing Ray cluster", ", ".join(idle), verb)

    def _share_of_declared(self, cpus_needed: int) -> float:
        """Return the share of the declared CPUs for this run: what the machine has, or what the run needs if more.

        An earlier run may have needed more CPUs, and the embedded Ray still declares them. Without this share, the
        autoscaler would start workers for CPUs that do not exist.
        """
        planned = max(cpus_needed, self.machine().cpus)
        if planned >= math.floor(self._declared_cpus * self._usual_share):
            return self._usual_share
        return (planned + 0.5) / self._declared_cpus  # Xenna rounds down

    def _start(self, cpus: int) -> None:
        if cpus > machine_cpus():
            logger.info("the embedded Ray declares %d CPUs on %d cores so that all stages fit", cpus, machine_cpus())
        options = self._config.ray or {}
        self._want_token()
        # Ours from here on: Ctrl-C may arrive while Ray starts.
        self.is_ours, self._declared_cpus = True, cpus
        try:
            self._start_with_retries(num_cpus=cpus, **options)
        except Exception as exc:
            self.close()
            raise ClusterError(
                f"the embedded Ray did not start: {str(exc).partition(chr(10))[0]}",
                given={"num_cpus": cpus, "ray": sorted(options)},  # names only: values may be secrets
                expected="a machine with enough free memory and ports",
                hint="see the logs in /tmp/ray/session_latest/logs, or start a Ray head yourself and set RAY_ADDRESS",
            ) from exc
        except BaseException:
            self.close()
            raise

    def _start_with_retries(self, **options: Any) -> None:
        """Start Ray; retry if an essential process dies before the node is up, because by then its files are cached."""
        for starts_left in reversed(range(_STARTS)):
            try:
                with lean_ray(dashboard=self._config.dashboard, log_monitor=self._config.shows_worker_output):
                    self._init(address="local", **options)  # never a Ray that already runs on this machine
                return
            except RayProcessDiedError as exc:
                if not starts_left:
                    raise RuntimeError(f"{exc}, {_STARTS} times in a row") from exc
                logger.warning("the embedded Ray did not start, trying again: %s", exc)

    def _want_token(self) -> None:
        """Require a token for all connections: Ray's ports are open to the network, whatever the settings.

        Before Ray 2.60, a token is required only if the environment says so. If we set no token, Ray would generate
        one and leave it in the user's home directory for every later Ray.
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
                "Xenna does not work through Ray Client",
                field="address",
                given=address,
                expected="the address of a Ray head, host:port",
                hint="run the driver on a node of the cluster with RAY_ADDRESS=auto or RAY_ADDRESS=host:6379",
            )
        _check_answers(address)
        try:
            self._init(address=address)
        except (ConnectionError, RuntimeError, ValueError) as exc:
            raise _nobody_there(address, exc) from exc

    def _init(self, **kwargs: Any) -> None:
        ray.init(
            include_dashboard=True,  # Xenna's monitor lists actors through the dashboard
            log_to_driver=self._config.shows_worker_output,
            logging_level=logging.INFO if self._config.verbose else logging.ERROR,
            **kwargs,
        )
        install_sigterm_again()


def _given_address(config: XennaConfig) -> str | None:
    address = config.address or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def _check_answers(address: str) -> None:
    """Raise a `ClusterError` if nothing listens at the address, which Ray itself notices only after half a minute."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto": Ray looks for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as exc:
        raise _nobody_there(address, exc) from exc


def _check_head(address: str) -> None:
    """Raise a `ClusterError` if the head refuses the requests that Xenna sends during a run."""
    try:
        list_actors(limit=int(_NEEDED_BY_XENNA["RAY_MAX_LIMIT_FROM_API_SERVER"]), raise_on_missing_output=False)
    except RayStateApiException as exc:
        raise ClusterError(
            "the head of this Ray cluster was started without the settings that Xenna needs",
            field="RAY_ADDRESS",
            given=address,
            expected=str(exc).partition("\n")[0],
            hint=f"start the head with {_settings()}",
        ) from exc


def _settings() -> str:
    """Return the environment variables that Xenna needs on a Ray head, in shell syntax."""
    return " ".join(f"{name}={value}" for name, value in _NEEDED_BY_XENNA.items())


def _nobody_there(address: str, exc: BaseException) -> ClusterError:
    reasons = []
    while exc is not None:
        reasons.append(str(exc).partition("\n")[0])
        exc = exc.__cause__ or exc.__context__  # type: ignore[assignment]  # ends the loop
    reason = reasons[-1]  # Ray's outer exceptions only say that connecting failed
    hint = f"start one with `{_settings()} ray start --head`, or unset RAY_ADDRESS to use an embedded Ray"
    if "token" in reason.lower():
        hint = "set RAY_AUTH_MODE=token and provide the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
    return ClusterError(
        f"no Ray cluster answered: {reason}",
        field="RAY_ADDRESS",
        given=address,
        expected="the address of a running Ray head, host:port",
        hint=hint,
    )
