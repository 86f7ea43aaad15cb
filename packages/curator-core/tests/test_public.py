# SPDX-License-Identifier: Apache-2.0
"""The public names, and what an import of them costs."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import curator_core
from curator_core import records

PUBLIC = [
    "LOG_FORMAT",
    "BaseExecutor",
    "BaseStageAdapter",
    "BatchReport",
    "Checkpoint",
    "ClusterError",
    "CompositeStage",
    "ConfigurationError",
    "ContractError",
    "CuratorError",
    "DataError",
    "DeadLetter",
    "DocumentBatch",
    "EmptyTask",
    "ExecutorError",
    "FailureLimitError",
    "FileGroupTask",
    "InputError",
    "LocalExecutor",
    "NodeInfo",
    "Pipeline",
    "PipelineError",
    "Plan",
    "ProcessDiedError",
    "ProcessingStage",
    "ProgressBar",
    "Resources",
    "ResourcesError",
    "RunError",
    "RunObserver",
    "RunResult",
    "StageDefinitionError",
    "StageError",
    "StageLogFilter",
    "StagePerfStats",
    "StageTimeoutError",
    "StageWork",
    "Task",
    "TasksLostError",
    "WorkerDiedError",
    "WorkerMetadata",
    "__version__",
    "current_work",
    "processing_stage",
    "watch_all_runs",
]
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(curator_core.__path__, "curator_core.")
    if name.split(".")[-1] not in ("__about__", "__main__")
]
ENGINES = {"ray", "cosmos_xenna", "opentelemetry"}
HEAVY = ENGINES | {"pyarrow", "pandas", "numpy", "cloudpickle", "tqdm", "fsspec", "pytest"}


def test_public_names_are_pinned():
    assert curator_core.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_explained(name):
    thing = getattr(curator_core, name)
    assert isinstance(thing, str) or inspect.getdoc(thing)


@pytest.mark.parametrize("name", MODULES)
def test_every_name_that_a_module_offers_is_there(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    for offered in getattr(module, "__all__", ()):
        assert hasattr(module, offered)


def loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in shown.stdout.split()}


@pytest.mark.parametrize("module", ["curator_core", "curator_core.io", "curator_core.local", "curator_core.pipeline"])
def test_an_import_is_light(module):
    assert not loaded_by(f"import {module}") & HEAVY


SLOW = {
    "asyncio",
    "bisect",
    "concurrent",
    "difflib",
    "email",
    "hashlib",
    "importlib.metadata",
    "json",
    "multiprocessing",
    "pathlib",
    "pickle",
    "random",
    "shutil",
    "socket",
    "ssl",
    "statistics",
    "subprocess",
    "tempfile",
    "urllib",
    "uuid",
    "zipfile",
}
"""Parts of the standard library that only some runs need."""

OF_RUNS = {
    "activity",
    "attempt",
    "bundling",
    "checks",
    "failures",
    "io",
    "isolated",
    "kept",
    "ledger",
    "lineage",
    "measure",
    "plain",
    "processes",
    "returned",
    "snapshot",
    "source",
    "sources",
    "testing",
    "tries",
    "wire",
}
"""Our own modules that are loaded when a run begins, or later."""


def bare(code: str) -> list[str]:
    """What code prints in an interpreter that nothing has been installed into: a ``.pth`` file may import things."""
    found = f"import sys; sys.path.append({str(Path(curator_core.__file__).parents[1])!r})"
    arguments = [sys.executable, "-I", "-S", "-c", f"{found}\n{code}"]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()


def test_an_import_loads_what_the_public_names_need():
    loaded = set(bare("before = set(sys.modules); import curator_core; print(*(set(sys.modules) - before))"))
    assert "curator_core.executor" in loaded
    assert not loaded & (HEAVY | SLOW)
    assert not loaded & {f"curator_core.{name}" for name in OF_RUNS}


def test_an_import_compiles_little():
    # What is left are the methods of tasks, the ``__init__`` of two dataclasses that modules make instances of, and one
    # expression for each named tuple: 27 texts (17 on Python 3.13). Without `curator_core.records` it was 219 (112).
    code = (
        "import dataclasses, logging, typing\n"
        "compiled = []\n"
        "hook = lambda event, args: compiled.append(args) if event == 'compile' and args[1] == '<string>' else None\n"
        "sys.addaudithook(hook)\n"
        "import curator_core\n"
        "print(len(compiled))"
    )
    assert int(bare(code)[0]) <= 40


def test_a_local_run_needs_no_engine():
    stage = "processing_stage(name='pass')(lambda task: task)"
    run = f"from curator_core import *; Pipeline('p', [{stage}]).run(initial_tasks=[Task(data=1)])"
    assert not loaded_by(run) & (HEAVY - {"cloudpickle"})


def test_an_import_has_no_side_effects():
    code = (
        "import os, sys, signal, threading, logging\n"
        "def world():\n"
        "    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), logging.root.handlers[:]\n"
        "    return dict(os.environ), threading.active_count(), handlers\n"
        "before = world()\n"
        "import curator_core, curator_core.io\n"
        "sys.exit(before != world())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what makes an import cheap is what it stands for ---------------------------------------------------------


def a_dataclass(decorator):
    @decorator(frozen=True, slots=True)
    class Made:
        """Documented."""

        number: int
        names: list[str] = dataclasses.field(default_factory=list, repr=False, hash=False)
        text: str = "text"

        def __post_init__(self) -> None:
            object.__setattr__(self, "text", f"{self.text}!")

        @classmethod
        def of(cls, number):
            return cls(number)

        @property
        def twice(self):
            return 2 * self.number

    return Made


def a_named_tuple(base):
    class Made(base):
        """Documented."""

        number: int
        text: str = "text"

        @classmethod
        def of(cls, number):
            return cls(number)

        @property
        def twice(self):
            return 2 * self.number

        def __str__(self):
            return f"made of {self.number}"

    return Made


def outcome(use, made):
    try:
        return repr(use(made))
    except (AttributeError, TypeError) as exc:
        return repr(exc)


USES_OF_BOTH = {
    "made": lambda made: made(1),
    "by_classmethod": lambda made: (made.of(2), made.of(2).twice, str(made.of(2))),
    "equal": lambda made: (made(1) == made(1), made(1) == made(2), made(1) == (1, "text")),
    "too_few": lambda made: made(),
    "too_many": lambda made: made(1, 2, 3, 4),
    "unknown": lambda made: made(1, more=2),
    "assigned": lambda made: setattr(made(1), "number", 2),
    "new_attribute": lambda made: setattr(made(1), "more", 2),
    "copied": lambda made: (copy.copy(made(1)), copy.deepcopy(made(1))),
    "explained": lambda made: (made.__doc__, made.__name__, made.__module__, made.__match_args__, made.__slots__),
    "signature": lambda made: str(inspect.signature(made)),
    "bases": lambda made: [base.__name__ for base in made.__mro__],
}
USES_OF_DATACLASSES = {
    "hashed": lambda made: hash(made(1)) == hash(made(1, ["more"])),
    "fields": dataclasses.fields,
    "replaced": lambda made: dataclasses.replace(made(1), number=2, text="more"),
    "as_dict": lambda made: dataclasses.asdict(made(1)),
    "deleted": lambda made: delattr(made(1), "number"),
    "state": lambda made: made(1).__getstate__(),
    "parameters": lambda made: made.__dataclass_params__,
    "unfrozen_child": lambda made: dataclasses.dataclass(type("Child", (made,), {"__annotations__": {}})),
    "child": lambda made: dataclasses.dataclass(frozen=True)(type("Child", (made,), {"__annotations__": {}}))(1),
    "plain_child": lambda made: vars(type("Child", (made,), {})(1)),
}
USES_OF_NAMED_TUPLES = {
    "fields": lambda made: (made._fields, made._field_defaults),
    "replaced": lambda made: (made(1)._replace(number=2), made(1)._asdict(), made._make([1, 2])),
    "hashed": lambda made: hash(made(1)) == hash((1, "text")),
}


@pytest.mark.parametrize(
    "use", [pytest.param(use, id=name) for name, use in (USES_OF_BOTH | USES_OF_DATACLASSES).items()]
)
def test_a_dataclass_is_that_of_the_standard_library(use):
    assert outcome(use, a_dataclass(records.dataclass)) == outcome(use, a_dataclass(dataclasses.dataclass))


@pytest.mark.parametrize(
    "use",
    [pytest.param(use, id=name) for name, use in (USES_OF_BOTH | USES_OF_NAMED_TUPLES).items() if name != "signature"],
)
def test_a_named_tuple_is_that_of_the_standard_library(use):
    assert outcome(use, a_named_tuple(records.NamedTuple)) == outcome(use, a_named_tuple(typing.NamedTuple))


def test_a_dataclass_that_is_first_used_by_many_threads_is_whole():
    def use(made):
        return made(1) == made(1), repr(made(1)), hash(made(1)) == hash(made(1))

    with ThreadPoolExecutor(8) as threads:
        for made in [a_dataclass(records.dataclass) for _ in range(20)]:
            assert len(set(threads.map(use, [made] * 16))) == 1


@pytest.mark.parametrize(
    "made", [curator_core.Resources(cpus=2), curator_core.NodeInfo("node"), curator_core.DeadLetter("dead")]
)
def test_a_pickle_gives_an_equal_value(made):
    assert pickle.loads(pickle.dumps(made)) == made
