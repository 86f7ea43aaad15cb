# SPDX-License-Identifier: Apache-2.0
"""Real faults: a seed determines all of them, and is reported. They take minutes, and run only when requested.

pytest tests/chaos --seed 7         repeat the same faults; or CURATOR_CHAOS_SEED=7
pytest tests/chaos --page PAGE      write the results into a page, between its markers

Several processes may share the tests (pytest-xdist): each sees only what it has started itself.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from curator_chaos.scene import Scene, Source

SEED = "CURATOR_CHAOS_SEED"
LONG_TEXT = 600_000  # characters: more than the maximum size of a file when the disk is full

collect_ignore_glob = [] if sys.platform == "linux" and find_spec("psutil") else ["test_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    default = int(os.environ.get(SEED) or random.randrange(10**6))
    group.addoption("--seed", type=int, default=default, help=f"decides on all faults; else {SEED}, else at random")
    group.addoption("--page", type=Path, help="a page to write the results into")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--seed", None) is None or hasattr(config, "workerinput"):
        return  # the tests are only collected along with others, or another process gathers the results
    from curator_chaos.results import Results

    seed = config.getoption("--seed")
    os.environ[SEED] = str(seed)  # for the processes of pytest-xdist
    config.pluginmanager.register(Results(config.getoption("--page"), seed))


def pytest_report_header(config: pytest.Config) -> str:
    return f"chaos: {SEED}={config.getoption('--seed')}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip these tests if all tests are run."""
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(HERE in (path, *path.parents) for path in asked) else True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Report how to repeat a test that failed."""
    report = yield
    if report.failed:
        report.sections.append(("chaos", f"{SEED}={item.config.getoption('--seed')} repeats these faults"))
    return report


def pytest_deselected(items: list[pytest.Item]) -> None:
    from curator_chaos.results import SOME_LEFT_OUT

    for item in items:
        getattr(item.config, "workeroutput", {})[SOME_LEFT_OUT] = True


@pytest.fixture(scope="session", autouse=True)
def orphans_are_adopted() -> None:
    from curator_chaos.processes import adopt_orphans

    adopt_orphans()


@pytest.fixture(autouse=True)
def turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let tests of several processes run at the same time, except for one that is marked ``alone``."""
    directory = Path(os.environ["RAY_TMPDIR"])  # of the session: all its processes share it
    alone = request.node.get_closest_marker("alone")
    with (directory / "gate").open("w") as gate, (directory / "turn").open("w") as turn:
        fcntl.flock(gate, fcntl.LOCK_EX)  # behind a test that waits to be alone: it might wait forever otherwise
        fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@pytest.fixture(scope="session")
def source(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return made(tmp_path_factory.mktemp("source"), pytestconfig.getoption("--seed"))


@pytest.fixture(scope="session")
def long_source(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A source with a chapter that is larger than the space on a full disk."""
    return made(tmp_path_factory.mktemp("long"), pytestconfig.getoption("--seed"), LONG_TEXT)


def made(directory: Path, seed: int, long_text: int = 0) -> Source:
    from curator_chaos.checks import contents
    from curator_chaos.driver import Job, run
    from curator_chaos.scene import Source
    from curator_chaos.work import write_source

    chapters = write_source(directory / "source", random.Random(seed), long_text)
    (directory / "marks").mkdir()
    names = {name: str(directory / name) for name in ("source", "out", "checkpoint", "marks")}
    run(Job(executor="local", **names))
    return Source(directory / "source", chapters, contents(directory / "out"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of one test: the same for the same seed, whichever other tests run."""
    return random.Random(f"{request.config.getoption('--seed')} {request.node.name}")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Directory for temporary files of a test's runs. Its path is short: sockets in it may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def scene(tmp_path: Path, temporary: Path, source: Source, rng: random.Random) -> Iterator[Scene]:
    from curator_chaos.scene import Scene

    yield from ended(Scene(tmp_path, temporary, source, rng))


@pytest.fixture
def long_scene(tmp_path: Path, temporary: Path, long_source: Source, rng: random.Random) -> Iterator[Scene]:
    from curator_chaos.scene import Scene

    yield from ended(Scene(tmp_path, temporary, long_source, rng))


def ended(scene: Scene) -> Iterator[Scene]:
    """Yield a scene for a test; afterward, kill its processes, even if the test failed."""
    from curator_chaos.checks import shared_memory
    from curator_chaos.processes import wait_until_alone

    yield scene
    for driver in scene.drivers:
        driver.kill()
        print(f"--- {driver.log}", driver.log_text(), sep="\n")  # noqa: T201 - shown if the test fails
    wait_until_alone(60)
    for left in [path for driver in scene.drivers for path in shared_memory(driver)]:
        shutil.rmtree(left)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """A function that records for the page what is tested (``fault``, ``on``) and the result (``saw``)."""

    def tell(**what: str) -> None:
        for name, value in what.items():
            record_property(name, value)

    return tell
