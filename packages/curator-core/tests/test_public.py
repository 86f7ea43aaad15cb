# SPDX-License-Identifier: Apache-2.0
"""The public names, and the cost of importing them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import curator_core

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
    "RunStopped",
    "StageDefinitionError",
    "StageError",
    "StageLogFilter",
    "StagePerfStats",
    "StageSpeed",
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
FOR_EXECUTORS = [
    "MAX_BUNDLE_BYTES",
    "AnyReport",
    "Bundle",
    "BundlePlan",
    "Chain",
    "CompiledStage",
    "FailurePolicy",
    "FusionLevel",
    "Pace",
    "Packed",
    "RecordBuffer",
    "ReportColumns",
    "Run",
    "RunContext",
    "SentStages",
    "StageGroup",
    "become_worker",
    "digest",
    "estimated_bytes",
    "fail_unsendable",
    "group_stages",
    "is_amount",
    "is_isolated",
    "is_whole",
    "mark_records",
    "message_of",
    "pack_reports",
    "pickles",
    "rebuild_error",
    "relay_records",
    "split",
    "stage_error",
    "unbundled",
    "unknown_name",
    "unpack_reports",
    "unsendable",
    "use_cloudpickle",
    "within_bytes",
]
FOR_OBSERVERS = [
    "BYTES_PER_MB",
    "BatchOutcome",
    "ErrorInfo",
    "RunInfo",
    "StageInfo",
    "StageTotals",
    "Verdict",
    "VerdictKind",
    "WorkerReport",
    "is_source_batch",
    "local_path",
    "unknown_name",
]
DOORS = {"curator_core": PUBLIC, "curator_core.backends": FOR_EXECUTORS, "curator_core.observers": FOR_OBSERVERS}
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(curator_core.__path__, "curator_core.")
    if name.split(".")[-1] not in ("__about__", "__main__") and not name.startswith("curator_core._nemo.")
]  # those of _nemo need NeMo Curator: `nox -s nemo` imports them
ENGINES = {"ray", "cosmos_xenna", "opentelemetry"}
HEAVY = ENGINES | {"pyarrow", "pandas", "numpy", "cloudpickle", "tqdm", "fsspec", "pytest"}


@pytest.mark.parametrize("door", DOORS)
def test_public_names_are_pinned(door):
    assert importlib.import_module(door).__all__ == DOORS[door]


@pytest.mark.parametrize(("door", "name"), [(door, name) for door, names in DOORS.items() for name in names])
def test_every_public_name_exists_and_has_a_docstring(door, name):
    thing = getattr(importlib.import_module(door), name)
    assert inspect.getdoc(thing) or not (inspect.isclass(thing) or inspect.isfunction(thing))


@pytest.mark.parametrize("name", MODULES)
def test_every_name_in_all_exists(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module)
    for offered in getattr(module, "__all__", ()):
        assert hasattr(module, offered)


def test_the_reading_order_has_correct_module_sizes():
    listed = re.findall(r"^    (\S+\.py) +(\d+)", inspect.getdoc(curator_core), re.MULTILINE)
    assert len(listed) == 10
    for name, lines in listed:
        text = (Path(curator_core.__file__).parent / name).read_text(encoding="utf-8")
        assert text.count("\n") == pytest.approx(int(lines), rel=0.1), name


def modules_of(statement: str) -> set[str]:
    """Return the modules that a statement loads in a fresh interpreter."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(shown.stdout.split())


def loaded_by(statement: str) -> set[str]:
    """Return the top-level names of the modules that a statement loads."""
    return {name.partition(".")[0] for name in modules_of(statement)}


@pytest.mark.parametrize(
    "module", ["curator_core", "curator_core.io", "curator_core._local.executor", "curator_core.pipeline"]
)
def test_an_import_is_light(module):
    assert not loaded_by(f"import {module}") & HEAVY


def test_an_import_loads_no_slow_standard_modules():
    slow = {"asyncio", "concurrent", "email", "hashlib", "json", "multiprocessing", "pickle", "random", "socket"}
    assert not loaded_by("import curator_core") & (slow | {"subprocess"})


def test_an_import_does_not_load_the_bookkeeping_of_runs():
    accounts = {
        f"curator_core.{name}" for name in ("_bottleneck.activity", "_bottleneck.rules", "_run.failure_log", "_run.run")
    }
    assert accounts <= {module.__name__ for module in map(importlib.import_module, accounts)}
    assert not modules_of("import curator_core") & accounts


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
