# SPDX-License-Identifier: Apache-2.0
"""Stages and tasks for data curation: write stages, compose a pipeline, run it anywhere.

    from curator_core import Pipeline, Task, processing_stage

    @processing_stage()
    def upper(task):
        return Task(data=task.data.upper())

    result = Pipeline("shout", [upper]).run(initial_tasks=[Task(data="hello")])

To read the source, start with these modules, in this order:

    tasks.py                    330 lines   tasks, and the framework's state on them
    stages.py                   390         what users write
    _plan/compiled.py           240         a stage, read once
    _plan/plan.py               200         a pipeline, compiled
    _reports/batch.py           340         what every batch leaves behind
    _adapter/worker_state.py    150         a stage on a worker
    _adapter/adapter.py         240         the one path of every batch
    _adapter/attempt.py         460         one attempt at one batch: call, settle, report
    _run/executor.py            340         what all executors have in common
    _run/run.py                 530         a run and its accounts
"""

from curator_core.__about__ import __version__
from curator_core._adapter.adapter import BaseStageAdapter
from curator_core._checkpoint.settings import Checkpoint
from curator_core._dead_letter import DeadLetter
from curator_core._local.executor import LocalExecutor
from curator_core._performance import StagePerfStats
from curator_core._plan.plan import Plan
from curator_core._reports.batch import BatchReport
from curator_core._reports.observers import RunObserver, watch_all_runs
from curator_core._run.executor import BaseExecutor
from curator_core._run.progress import ProgressBar
from curator_core.errors import (
    ClusterError,
    ConfigurationError,
    ContractError,
    CuratorError,
    DataError,
    ExecutorError,
    FailureLimitError,
    InputError,
    PipelineError,
    ProcessDiedError,
    ResourcesError,
    RunError,
    RunStopped,
    StageDefinitionError,
    StageError,
    StageTimeoutError,
    TasksLostError,
    WorkerDiedError,
)
from curator_core.logs import LOG_FORMAT, StageLogFilter, StageWork, current_work
from curator_core.pipeline import Pipeline
from curator_core.resources import Resources
from curator_core.results import RunResult, StageSpeed
from curator_core.stages import CompositeStage, NodeInfo, ProcessingStage, WorkerMetadata, processing_stage
from curator_core.tasks import DocumentBatch, EmptyTask, FileGroupTask, Task

__all__ = [
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
