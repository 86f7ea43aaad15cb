# SPDX-License-Identifier: Apache-2.0
"""The cost of a framework alone: its adapter, its import, its size, and its overhead per task.

It runs in the environment of the framework, and prints one line of JSON, like runners.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
import uuid
from importlib import resources
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from curator_bench.harness import only_json_on_stdout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["NAMES"]

NAMES = {
    "adapter_batch_of_one_us": "adapter, a batch of one, us",
    "adapter_task_at_1024_us": "adapter, a task in a batch of 1,024, us",
    "isolated_batch_of_one_us": "adapter, a batch of one, of an isolated stage, us",
    "telemetry_batch_us": "telemetry, per batch, us",
    "local_same_s": "a run of 10,000 tasks through 3 stages that do nothing, in one process, s",
    "accounts_mb": "accounts of 10 million unfinished source tasks, MB",
    "held_mb": "the same with the tasks, one path each, which are kept for restarts, MB (ten times that of 1 million)",
    "begun_mb": "the same after two of three stages for each task, MB (ten times that of 1 million)",
    "resumed_mb": "ids of 10 million source tasks that an earlier run has finished, MB",
    "task_bytes": "bytes that the framework adds to a task after ten stages",
    "bundled_task_bytes": "the same, with 64 tasks pickled together",
    "import_pipeline_ms": "import of the API for pipelines, ms",
    "import_executor_ms": "import of the Xenna executor, ms",
    "import_engine_ms": "the same with Xenna and Ray, which Curator imports at run time, ms",
}
"""The names of the figures on the page; sizes are added to them."""

STAGES, BUNDLE, BATCH, PASSES = 10, 64, 1024, 8
LOCAL_TASKS, LOCAL_STAGES, LOCAL_RUNS = 10_000, 3, 7
SOURCE_TASKS = 10_000_000
HELD_SHARE = 10  # one in ten source tasks is created, to measure the memory for keeping them
IMPORT_NAMES = ("import_pipeline_ms", "import_executor_ms", "import_engine_ms")
IMPORTS = {
    "ours": (
        "import curator_core; curator_core.Pipeline, curator_core.ProcessingStage, curator_core.Task",
        "from curator_xenna import XennaExecutor; XennaExecutor()",
        "import ray, cosmos_xenna.pipelines.v1; from curator_xenna import XennaExecutor; XennaExecutor()",
    ),
    "nemo-curator": (
        "import nemo_curator.pipeline, nemo_curator.stages.base, nemo_curator.tasks",
        "from nemo_curator.backends.xenna import XennaExecutor; XennaExecutor()",
        "import ray, cosmos_xenna.pipelines.v1; from nemo_curator.backends.xenna import XennaExecutor; XennaExecutor()",
    ),
}
PACKAGES = {"ours": ("curator_core", "curator_xenna", "curator_otel"), "nemo-curator": ("nemo_curator",)}


def ours() -> dict[str, float]:
    """Measure this project's adapter and tasks."""
    from curator_core import (
        BaseStageAdapter,
        NodeInfo,
        Pipeline,
        ProcessingStage,
        Task,
        WorkerMetadata,
    )
    from curator_core._transport.pickling import dumps

    class Same(ProcessingStage[Task[Any], Task[Any]]):
        def process(self, task: Task[Any]) -> Task[Any]:
            return task

    class SameBatch(ProcessingStage[Task[Any], Task[Any]]):
        batch_size = BATCH

        def process_batch(self, tasks: Sequence[Task[Any]]) -> Sequence[Task[Any]]:
            return tasks

    def adapter(stage: ProcessingStage[Any, Any]) -> BaseStageAdapter:
        made = BaseStageAdapter(stage)
        worker = WorkerMetadata(str(uuid.uuid4()))  # as long as Xenna's ids
        made.setup_on_node(NodeInfo(uuid.uuid4().hex), worker)
        made.setup(worker)
        return made

    def tasks(number: int) -> list[Task[Any]]:
        named = Pipeline("named", [SameBatch()]).run(initial_tasks=[Task(data=n) for n in range(number)])
        return list(named)

    travelled = tasks(BUNDLE)
    for number in range(STAGES - 1):  # they have already passed one stage
        stage = adapter(Same().with_(name=f"Stage{number}"))
        travelled = [made for task in travelled for made in stage.process_batch([task])]
    costs = _adapter_costs(adapter(Same()), adapter(SameBatch()), tasks)
    isolated = adapter(Same().with_(isolated=True))
    costs["isolated_batch_of_one_us"] = round(_best(isolated, [[task] for task in tasks(3000)], 200), 1)
    isolated.teardown()
    costs |= {"telemetry_batch_us": _telemetry_cost(), "local_same_s": _local_run(Same)}
    return costs | _bytes(travelled, dumps) | _accounts() | _held()


def _local_run(stage: Callable[[], Any]) -> float:
    """Return the median seconds of several runs of stages in this process."""
    from curator_core import LocalExecutor, Pipeline, Task

    pipeline = Pipeline("local", [stage().with_(name=f"Stage{number}") for number in range(LOCAL_STAGES)])
    found = []
    for _ in range(LOCAL_RUNS):
        tasks = [Task(data=number) for number in range(LOCAL_TASKS)]
        began = time.perf_counter()
        pipeline.run(LocalExecutor(), initial_tasks=tasks)
        found.append(time.perf_counter() - began)
    return round(median(found), 3)


def _accounts() -> dict[str, float]:
    """Return the megabytes that the driver uses for source tasks, which are named after their content."""
    from curator_core._checkpoint.finished import EarlierRuns, record_of
    from curator_core._run.source_progress import SourceProgress

    accounts, before = SourceProgress(last=2), _memory_mb()
    for number in range(SOURCE_TASKS):
        accounts.admit(f"h{number:020x}")
    under_way = _memory_mb() - before
    del accounts
    earlier, before = EarlierRuns(), _memory_mb()
    for number in range(SOURCE_TASKS):
        earlier.enter(record_of(f"h{number:020x}", failed=False, outputs=None))
    return {"accounts_mb": round(under_way), "resumed_mb": round(_memory_mb() - before)}


def _held() -> dict[str, float]:
    """Return the megabytes that a driver uses for restarts: the source tasks, and the counts of each."""
    from curator_core import LocalExecutor, Plan, Task, processing_stage
    from curator_core._reports.batch import BatchReport
    from curator_core._run.run import Run
    from curator_core._run.settings import RunSettings
    from curator_core.tasks import new_state, stamp

    def named(number: int) -> Task[str]:
        task = Task(data=f"s3://bucket/videos/{number:030}.mp4")
        stamp(task, new_state(f"h{number:020x}"))
        return task

    stages = [processing_stage(name=f"Stage{number}")(lambda task: task) for number in range(3)]
    run = Run(Plan.from_stages(stages, fed=True), LocalExecutor.__name__, (), RunSettings())
    run._keep_sources()
    before, count = _memory_mb(), SOURCE_TASKS // HELD_SHARE
    for _ in run.admit(named(number) for number in range(count)):
        pass
    held = _memory_mb() - before
    for stage in range(2):
        for first in range(0, count, BATCH):
            ids = tuple(f"h{number:020x}" for number in range(first, min(first + BATCH, count)))
            batch_id = f"{stage}/{first}"
            run.report(BatchReport("", stage, f"Stage{stage}", batch_id, "local", "local", 1, first, 1, 1, ids, {}))
    begun = _memory_mb() - before
    return {"held_mb": round(held * HELD_SHARE), "begun_mb": round(begun * HELD_SHARE)}


def _memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _telemetry_cost() -> float:
    """Return the microseconds that the observer takes per batch, after it has made the maximum number of spans."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

    from curator_core._reports.batch import BatchReport, RunInfo, StageInfo
    from curator_otel import OTelObserver

    observer = OTelObserver(TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False))
    run, stages = uuid.uuid4().hex, tuple(StageInfo(number, f"Stage{number}", "Stage") for number in range(3))
    observer.on_run_start(RunInfo(run, "bench", "LocalExecutor", stages, time.time_ns()))
    reports = [
        BatchReport(
            run,
            number % 3,
            f"Stage{number % 3}",
            f"{number % 3}/{number // 3}",
            "local",
            "local",
            1,
            number // 3,
            time.time_ns(),
            1000,
            (str(number // 3),),
            {},
            parents=(f"{number % 3 - 1}/{number // 3}",) if number % 3 else (),
        )
        for number in range(60_000)
    ]
    found = []
    for start in range(0, len(reports), 1000):
        began = time.perf_counter()
        for report in reports[start : start + 1000]:
            observer.on_batch(report)
        found.append(time.perf_counter() - began)
    return round(median(found[len(found) // 2 :]) / 1000 * 1e6, 2)


def nemo_curator() -> dict[str, float]:
    """Measure NeMo Curator's adapter and tasks, connected to a Ray like its workers."""
    import ray
    from nemo_curator.backends.base import BaseStageAdapter
    from nemo_curator.pipeline.pipeline import assign_root_task_ids
    from nemo_curator.stages.base import ProcessingStage

    from curator_bench.run_nemo import Item

    class Same(ProcessingStage[Item, Item]):
        name = "Same"

        def process(self, task: Item) -> Item:
            return task

    class SameBatch(Same):
        name = "SameBatch"
        batch_size = BATCH

        def process_batch(self, tasks: list[Item]) -> list[Item]:
            return tasks

    def tasks(number: int) -> list[Item]:
        return assign_root_task_ids([Item(dataset_name="bench", data=n) for n in range(number)])

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        travelled = tasks(BUNDLE)
        for number in range(STAGES):
            stage = BaseStageAdapter(Same().with_(name=f"Stage{number}"))
            travelled = [made for task in travelled for made in stage.process_batch([task])]
        costs = _adapter_costs(BaseStageAdapter(Same()), BaseStageAdapter(SameBatch()), tasks)
        return costs | _bytes(travelled, ray.cloudpickle.dumps)
    finally:
        ray.shutdown()


def _adapter_costs(single: Any, batched: Any, tasks: Callable[[int], list[Any]]) -> dict[str, float]:
    """Return the microseconds that adapters take around stages that do nothing, with new tasks each time.

    All tries of a pass take a few hundredths of a second, and other work on the machine may last longer. Therefore
    there are several passes, with the creation of tasks between them.
    """
    ones, whole = [], []
    for _ in range(PASSES):
        ones.append(_best(single, [[task] for task in tasks(3000)], 200))
        whole.append(_best(batched, [tasks(BATCH) for _ in range(45)], 3))
    return {
        "adapter_batch_of_one_us": round(min(ones), 2),
        "adapter_task_at_1024_us": round(min(whole) / BATCH, 3),
    }


def _best(adapter: Any, batches: list[Any], together: int) -> float:
    """Return the microseconds per batch in the best of several tries: other work on the machine can only add to it."""
    found = []
    for start in range(0, len(batches), together):
        chosen = batches[start : start + together]
        began = time.perf_counter()
        for batch in chosen:
            adapter.process_batch(batch)
        found.append((time.perf_counter() - began) / len(chosen))
    return min(found) * 1e6


def _bytes(tasks: list[Any], dumps: Callable[[Any], bytes]) -> dict[str, float]:
    """Return the size of tasks as they travel, without their payloads."""
    payloads = [task.data for task in tasks]
    return {
        "task_bytes": len(dumps(tasks[0])) - len(dumps(payloads[0])),
        "bundled_task_bytes": round((len(dumps(tasks)) - len(dumps(payloads))) / len(tasks)),
    }


def imports(of: str) -> dict[str, float]:
    """Return the milliseconds of imports, each in separate processes, with existing bytecode."""
    found = {}
    for name, statement in zip(IMPORT_NAMES, IMPORTS[of], strict=True):
        code = f"import time; start = time.perf_counter(); {statement}; print((time.perf_counter() - start) * 1e3)"
        took = [
            float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split()[-1])
            for _ in range(6)
        ]
        found[name] = round(median(took[1:]), 1)  # the first may have compiled bytecode
    return found


def sizes(of: str) -> dict[str, float]:
    """Return the kilobytes of the packages, without bytecode, and the megabytes of the whole environment."""
    found: dict[str, float] = {
        f"size_{name}_kb": round(_size(Path(str(resources.files(name)))) / 1e3) for name in PACKAGES[of]
    }
    return found | {"size_environment_mb": round(_size(Path(sysconfig.get_paths()["purelib"])) / 1e6)}


def _size(directory: Path) -> int:
    total = 0
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        total += sum(Path(folder, name).stat().st_size for name in files)
    return total


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--of", choices=PACKAGES, required=True)
    of = parser.parse_args().of
    with only_json_on_stdout() as stdout:
        costs = ours() if of == "ours" else nemo_curator()
        print(json.dumps({"values": costs | imports(of) | sizes(of)}), file=stdout)


if __name__ == "__main__":
    main()
