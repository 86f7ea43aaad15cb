# SPDX-License-Identifier: Apache-2.0
"""Differences between the supported versions of Xenna and Ray, and all uses of their private APIs.

cosmos-xenna 0.2.0 and 0.3.0 (Python 3.11) never call a stage's ``destroy()``. Xenna 0.4.1 and later calls it at
the end of a stage and on a scale-down.
"""

from __future__ import annotations

import inspect
import logging
import signal
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import loguru  # Xenna's own logging library
import ray

# The classes that a worker needs for its stages (private in 0.2.0 to 0.5.12). pipelines.v1 has the same classes but
# also imports everything that runs pipelines: 93 more modules in each worker, a tenth of its CPU time to start.
try:
    from cosmos_xenna.pipelines.private.resources import Resources
    from cosmos_xenna.pipelines.private.specs import Stage
    from cosmos_xenna.ray_utils.runtime_envs import RuntimeEnv
except ImportError:  # a later release may move them
    from cosmos_xenna.pipelines.v1 import Resources, RuntimeEnv, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "HAS_DESTROY",
    "WORKER_DEATHS",
    "XENNA_ACTOR_CLASSES",
    "RayProcessDiedError",
    "Resources",
    "RuntimeEnv",
    "Stage",
    "ToAllocate",
    "allocated_workers",
    "hear_raylet",
    "install_sigterm_again",
    "lean_ray",
    "own_signal_handlers",
    "quiet_xenna",
    "read_auth_settings_again",
    "with_uploaded_directories",
]

logger = logging.getLogger(__name__)

HAS_DESTROY = hasattr(Stage, "destroy")
"""Whether this version of Xenna tears down stages itself."""

XENNA_ACTOR_CLASSES = ("StageWorker", "NodeResourceMonitor", "ResourceMonitor")
"""Class names of the actors that Xenna starts, for all versions, as Ray's state API lists them."""

_START_TIMEOUT_S = 90.0  # for the raylet of an embedded Ray
_OVERALLOCATION = 1.5  # Xenna's default: workers for this many times the throughput of the slowest stage
_INDISPENSABLE = ("raylet", "gcs_server")  # as Ray calls its processes
_XENNA_ASKS = "StateHead"  # the part of the dashboard's server that answers Ray's state API

WORKER_DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ActorUnschedulableError,  # Xenna starts a replacement on the same node, which is gone
    ray.exceptions.ObjectLostError,  # the worker's outputs were lost with its node
)
"""What Ray raises for a worker that has died. These classes have no common base but that of all Ray errors."""


class _RayletHeard:
    """Replacement for Ray's function that prints worker output; see `hear_raylet`."""

    def __init__(self, prints: Callable[..., None]) -> None:
        self._prints = prints
        self.listen: Callable[[str], bool] = lambda message: False

    def __call__(self, data: Any, *arguments: Any, **options: Any) -> None:
        if data.get("pid") == "raylet":
            data = {**data, "lines": [line for line in data["lines"] if not self.listen(str(line))]}
        if data["lines"]:
            self._prints(data, *arguments, **options)


def hear_raylet(listen: Callable[[str], bool]) -> None:
    """Pass Ray's messages about dead workers to a function from now on; print only those for which it returns False.

    Ray prints 900 characters for each worker that dies and has no setting for it (Ray 2.54 to 2.60). Its messages about
    the last workers of a run arrive after the run has ended, so the replacement is not undone.
    """
    from ray._private import worker  # noqa: PLC0415

    if not isinstance(worker.print_to_stdstream, _RayletHeard):
        worker.print_to_stdstream = _RayletHeard(worker.print_to_stdstream)
    worker.print_to_stdstream.listen = listen


@contextmanager
def quiet_xenna(*, quiet: bool) -> Iterator[None]:
    """Silence Xenna's and Ray's loggers in this process within the context."""
    if not quiet:
        yield
        return
    # A filter, because Ray resets its logger's level whenever Xenna calls ray.init().
    ray_handlers = logging.getLogger("ray").handlers[:]
    for handler in ray_handlers:
        handler.addFilter(_is_error)
    loguru.logger.disable("cosmos_xenna")
    try:
        yield
    finally:
        loguru.logger.enable("cosmos_xenna")
        for handler in ray_handlers:
            handler.removeFilter(_is_error)


def with_uploaded_directories(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """Upload the local directories of a runtime environment to the cluster, and return it with their URIs.

    Ray does this only for a job's environment and rejects directories in an actor's environment. Its functions for the
    upload are private (2.54 to 2.60; one parameter is missing in some of these versions).
    """
    from ray._private.runtime_env.py_modules import upload_py_modules_if_needed  # noqa: PLC0415
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed  # noqa: PLC0415

    env = dict(runtime_env)
    with tempfile.TemporaryDirectory() as scratch:
        for upload in (upload_working_dir_if_needed, upload_py_modules_if_needed):
            takes = inspect.signature(upload).parameters
            options: dict[str, Any] = {"include_gitignore": True} if "include_gitignore" in takes else {}
            env = upload(env, scratch_dir=scratch, logger=logger, **options)
    return env


class ToAllocate(NamedTuple):
    """A stage of Xenna, for `allocated_workers`.

    Attributes:
        resources: The resources of one worker.
        workers: The number of workers, if it is fixed.
        batches_per_s: How many batches a worker processes per second.
        outputs: How many outputs a batch has.
    """

    resources: Resources
    workers: int | None
    batches_per_s: float
    outputs: float


def allocated_workers(stages: Sequence[ToAllocate], nodes: Sequence[tuple[int, int]]) -> list[int]:
    """Return how many workers Xenna's autoscaler gives to each stage of a cluster that has no workers yet.

    Xenna has no public function for this (0.2.0 to 0.5.12).

    Args:
        stages: The stages, all of which run at once.
        nodes: The CPUs and the number of GPUs of each node.

    Raises:
        ImportError, AttributeError: This version of Xenna has its autoscaler elsewhere.
    """
    # Private, and only for a plan of capacity: these modules load all of Xenna.
    from cosmos_xenna.pipelines.private import autoscaling_algorithms as algorithms  # noqa: PLC0415
    from cosmos_xenna.pipelines.private import data_structures as given  # noqa: PLC0415
    from cosmos_xenna.pipelines.private import resources as theirs  # noqa: PLC0415

    def node(number: int, cpus: int, num_gpus: int) -> Any:
        ids = (uuid.UUID(int=number << 32 | index) for index in range(num_gpus))
        gpus = [theirs.GpuResources(index=index, uuid_=each, used_fraction=0.0) for index, each in enumerate(ids)]
        return theirs.NodeResources(used_cpus=0, total_cpus=cpus, gpus=gpus, name=str(number))

    cluster = theirs.ClusterResources(nodes={str(number): node(number, *has) for number, has in enumerate(nodes)})
    shapes = [stage.resources.to_worker_shape(cluster) for stage in stages]
    problem = given.Problem(
        cluster,
        [
            given.ProblemStage(str(number), 1, shape, stage.workers, None)
            for number, (stage, shape) in enumerate(zip(stages, shapes, strict=True))
        ],
    )
    state = given.ProblemState([given.ProblemStageState(str(number), [], 1, False) for number in range(len(stages))])
    estimates = algorithms.Estimates([algorithms.Estimate(stage.batches_per_s, stage.outputs) for stage in stages])
    ids = algorithms.WorkerIdFactory()
    solution = algorithms.run_fragmentation_autoscaler(problem, state, estimates, _OVERALLOCATION, ids)
    return [len(stage.new_workers) for stage in solution.stages]


@contextmanager
def lean_ray(*, dashboard: bool, log_monitor: bool) -> Iterator[None]:
    """Make ``ray.init`` start only what a run on this machine needs: two thirds of the time, half of the processes.

    This skips the autoscaler, which has nothing to scale on one machine (and delays the shutdown by a second); the
    log monitor, which sends workers' output to the driver, unless that output is shown; and the parts of the dashboard
    server that only its pages need. Xenna asks that server for its actors, so the rest of it stays. The server also
    starts in parallel with the raylet and not before it.

    Ray has no public setting for this (2.54 to 2.60).

    Args:
        dashboard: Whether to start the whole dashboard.
        log_monitor: Whether to send workers' output to the driver.
    """
    from ray._private import node, services  # noqa: PLC0415 - private, and only for a Ray that we start

    if not (hasattr(node, "Node") and hasattr(services, "start_ray_process")):
        logger.info("this version of Ray starts differently: starting all of its processes")
        yield
        return

    def start_process(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        if process_type == "dashboard" and not dashboard:
            command = [*command, f"--modules-to-load={_XENNA_ASKS}"]
        return whole_process(command, process_type, *args, **kwargs)

    class LeanNode(node.Node):
        def __init__(self, *args: Any, **options: Any) -> None:
            try:
                super().__init__(*args, **options)
            except BaseException:  # Ray does not know yet which processes were started
                with suppress(Exception):  # if none were
                    self.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
                raise

        def start_monitor(self) -> None:
            """Start no autoscaler."""

        def start_log_monitor(self) -> None:
            if log_monitor:
                super().start_log_monitor()  # type: ignore[no-untyped-call]

        def start_api_server(self, *args: Any, **options: Any) -> None:
            self._api_server = args, options

        def start_ray_processes(self) -> None:
            super().start_ray_processes()  # type: ignore[no-untyped-call]
            args, options = self._api_server
            super().start_api_server(*args, **options)
            _wait_for_raylet(self, services)

    with _replaced(node, "Node", LeanNode), _replaced(services, "start_ray_process", start_process) as whole_process:
        yield


class RayProcessDiedError(RuntimeError):
    """An essential process of an embedded Ray died during startup."""


def _wait_for_raylet(started: Any, services: Any) -> None:
    """Wait until the raylet of a node has registered.

    Ray itself waits for half a minute after this, which alone is too short on a busy machine.

    Raises:
        RayProcessDiedError: The raylet has ended, as it does if Ray's agent takes longer than 15 s to start on a slow
            machine or with a cold cache (ray-project/ray#65983), or the GCS has.
    """
    if not (hasattr(services, "get_node") and hasattr(started, "dead_processes") and hasattr(started, "_node_id")):
        return
    until = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < until:
        for kind, process in started.dead_processes():
            if kind in _INDISPENSABLE:
                raise RayProcessDiedError(f"{kind} ended with exit code {process.poll()} while Ray started")
        with suppress(RuntimeError):  # not yet
            services.get_node(started.gcs_address, started._node_id)
            return
        time.sleep(0.1)


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Keep this process's handler for SIGTERM.

    Each call of ``ray.init`` replaces it with one that calls ``sys.exit``, and Xenna calls it in the middle of a run.
    Ray has no public setting to prevent this (2.54 to 2.60).
    """
    from ray._private import utils  # noqa: PLC0415 - private, and only during a run

    if not hasattr(utils, "set_sigterm_handler"):
        logger.info("this version of Ray handles signals differently: SIGTERM may end a run immediately")
        yield
        return
    with _replaced(utils, "set_sigterm_handler", lambda handler: install_sigterm_again()):
        yield


def install_sigterm_again() -> None:
    """Make SIGTERM call this process's own handler again after Ray has connected; it would abort the process otherwise.

    Ray's C++ code installs a handler for crashes, including SIGTERM, that Python does not know about.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def read_auth_settings_again() -> None:
    """Make Ray read its authentication settings again: it caches the first mode and token that this process had."""
    with suppress(ImportError, AttributeError):  # in case a later version keeps them elsewhere
        from ray import _raylet  # noqa: PLC0415 - private: no public function resets them

        raylet: Any = _raylet
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        raylet.Config.initialize("")  # reads the environment again and changes nothing else


@contextmanager
def _replaced(module: Any, name: str, replacement: Any) -> Iterator[Any]:
    """Replace a function or class of a module within the context; yield the original."""
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield original
    finally:
        setattr(module, name, original)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
