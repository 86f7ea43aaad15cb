# SPDX-License-Identifier: Apache-2.0
"""Where the supported versions of Xenna and Ray differ, and the little we use of what is not public.

cosmos-xenna 0.2.0 and 0.3.0 (Python 3.11) never call a stage's ``destroy()``; from 0.4.1 on Xenna does, at
the end of a stage and on a scale-down.
"""

from __future__ import annotations

import inspect
import logging
import signal
import tempfile
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import loguru  # Xenna's own logging library
import ray

# What the stages in a worker are made of (private in 0.2.0 to 0.5.12). pipelines.v1 has the same classes, and imports
# all that runs pipelines: 93 modules more for each worker, a tenth of the CPU time that it takes to start.
try:
    from cosmos_xenna.pipelines.private.resources import Resources
    from cosmos_xenna.pipelines.private.specs import Stage
    from cosmos_xenna.ray_utils.runtime_envs import RuntimeEnv
except ImportError:  # a later release may move them
    from cosmos_xenna.pipelines.v1 import Resources, RuntimeEnv, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "HAS_DESTROY",
    "WORKER_DEATHS",
    "XENNA_ACTOR_CLASSES",
    "Resources",
    "RuntimeEnv",
    "Stage",
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
"""Whether this Xenna tears stages down itself."""

XENNA_ACTOR_CLASSES = ("StageWorker", "NodeResourceMonitor", "ResourceMonitor")
"""Class names of the actors that Xenna starts, on all versions: what Ray's state API lists them under."""

_XENNA_ASKS = "StateHead"  # the part of the dashboard's server that answers Ray's state API

WORKER_DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,  # what it had made is gone with its node
)
"""What Ray raises for a worker that has died: classes that have no other base in common than all of Ray's errors."""


class _RayletHeard:
    """In the place of the function of Ray's that prints; see `hear_raylet`."""

    def __init__(self, prints: Callable[..., None]) -> None:
        self._prints = prints
        self.listen: Callable[[str], bool] = lambda message: False

    def __call__(self, data: Any, *arguments: Any, **options: Any) -> None:
        if data.get("pid") == "raylet":
            data = {**data, "lines": [line for line in data["lines"] if not self.listen(str(line))]}
        if data["lines"]:
            self._prints(data, *arguments, **options)


def hear_raylet(listen: Callable[[str], bool]) -> None:
    """Have what Ray says of dead workers given to a function, from now on, and printed only where that returns False.

    Ray prints 900 characters for each worker that dies, and has no setting for it (Ray 2.54 to 2.60). What it says of
    the last workers of a run comes when the run is over, so nothing is put back.
    """
    from ray._private import worker  # noqa: PLC0415

    if not isinstance(worker.print_to_stdstream, _RayletHeard):
        worker.print_to_stdstream = _RayletHeard(worker.print_to_stdstream)
    worker.print_to_stdstream.listen = listen


@contextmanager
def quiet_xenna(*, quiet: bool) -> Iterator[None]:
    """Silence Xenna's and Ray's loggers in this process for a while."""
    if not quiet:
        yield
        return
    # Ray sets its logger's level again whenever Xenna calls ray.init(), so a filter it must be.
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
    """A runtime environment whose local directories are uploaded to the cluster, and named by URI.

    Ray does this for a job's environment only, and refuses directories in an actor's; its own functions for
    it are private (2.54 to 2.60; one parameter is not in all of them).
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


@contextmanager
def lean_ray(*, dashboard: bool, log_monitor: bool) -> Iterator[None]:
    """Have ``ray.init`` start only what a run on this machine needs: two thirds of the time, half of the processes.

    Left out are the autoscaler, which has nothing to scale on one machine (and holds up the shutdown for a second),
    what brings workers' output to the driver where nobody looks at it, and the parts of the dashboard's server that
    only its pages need; Xenna asks that server for its actors. And it starts beside the raylet, not before it.

    There is no public way to choose (Ray 2.54 to 2.60).

    Args:
        dashboard: Whether the dashboard is to be there as a whole.
        log_monitor: Whether workers' output is to come to the driver.
    """
    from ray._private import node, services  # noqa: PLC0415 - private, and only for a Ray that we start

    if not (hasattr(node, "Node") and hasattr(services, "start_ray_process")):
        logger.info("this version of Ray starts in another way: all of it is started")
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
            except BaseException:  # Ray knows nothing yet of what has been started
                with suppress(AttributeError):  # nothing has been
                    self.kill_all_processes(check_alive=False, allow_graceful=False)
                raise

        def start_monitor(self) -> None:
            """No autoscaler."""

        def start_log_monitor(self) -> None:
            if log_monitor:
                super().start_log_monitor()  # type: ignore[no-untyped-call]

        def start_api_server(self, *args: Any, **options: Any) -> None:
            self._api_server = args, options

        def start_ray_processes(self) -> None:
            super().start_ray_processes()  # type: ignore[no-untyped-call]
            args, options = self._api_server
            super().start_api_server(*args, **options)

    with _replaced(node, "Node", LeanNode), _replaced(services, "start_ray_process", start_process) as whole_process:
        yield


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Keep the handler for SIGTERM that this process has.

    Each call of ``ray.init`` replaces it with one that calls ``sys.exit``, and Xenna makes some in the middle of a run.
    There is no public way to tell Ray not to (2.54 to 2.60).
    """
    from ray._private import utils  # noqa: PLC0415 - private, and only for the time of a run

    if not hasattr(utils, "set_sigterm_handler"):
        logger.info("this version of Ray handles signals in another way: SIGTERM may end a run at once")
        yield
        return
    with _replaced(utils, "set_sigterm_handler", lambda handler: install_sigterm_again()):
        yield


def install_sigterm_again() -> None:
    """Have SIGTERM call this process's own handler, after Ray has connected: it then aborts the process instead.

    Ray's part in C++ installs a handler for crashes, SIGTERM included, which Python does not know of.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def read_auth_settings_again() -> None:
    """Have Ray look again who may connect: it remembers the first mode and the first token that this process had."""
    with suppress(ImportError, AttributeError):  # where a later version keeps them elsewhere
        from ray import _raylet  # noqa: PLC0415 - private: nothing public forgets them

        raylet: Any = _raylet
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        raylet.Config.initialize("")  # reads the environment again, and sets nothing beside


@contextmanager
def _replaced(module: Any, name: str, replacement: Any) -> Iterator[Any]:
    """Put something else in the place of a module's function or class for a while; yields what was there."""
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield original
    finally:
        setattr(module, name, original)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
