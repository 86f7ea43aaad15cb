# SPDX-License-Identifier: Apache-2.0
"""Stages of NeMo Curator as stages of ours."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nemo_curator.backends.base import NodeInfo as NemoNodeInfo
from nemo_curator.backends.base import WorkerMetadata as NemoWorkerMetadata
from nemo_curator.backends.slurm_array import filter_slurm_array_source_tasks, resolve_slurm_array_config
from nemo_curator.tasks import EmptyTask as NemoEmptyTask
from nemo_curator.tasks import Task as NemoBaseTask
from nemo_curator.utils.performance_utils import StagePerfStats as NemoPerfStats

from curator_core._calls.returned import MERGED, Failed
from curator_core._foreign import WrappedStage
from curator_core._nemo.lineage import Inputs, assign_ids, made_of
from curator_core._nemo.tasks import NemoTask, boxed
from curator_core.errors import ContractError, DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curator_core._nemo.lineage import Made
    from curator_core.stages import NodeInfo, WorkerMetadata

__all__ = ["FailedTaskError", "NemoBatchStage", "NemoLoopStage", "NemoStage"]

_tie_breaker = random.Random()  # noqa: S311 - not the user's generator, whose sequence must not be disturbed


class FailedTaskError(DataError):
    """A stage gave up on a task by returning a FailedTask."""


class NemoStage(WrappedStage):
    """A stage that works on one task at a time.

    Args:
        definition: The stage.
        settings: Settings of ours, by attribute.
    """

    # Settings of NeMo Curator that do not affect the outputs, beside those that ours have too.
    not_compared = frozenset({"ray_stage_spec", "num_workers_per_node", "is_sink_stage", "_custom_metrics"})

    set_on_definition = {  # noqa: RUF012 - shared and never written to
        "name": "with_(name=…)",
        "resources": "with_(resources=…)",
        "batch_size": "with_(batch_size=…)",
        "runtime_env": "with_(runtime_env=…)",
        "num_workers": "with_(num_workers=…)",
        "xenna_stage_spec": "with_(xenna_stage_spec=…)",
        "fans_out": "is_fanout_stage in ray_stage_spec()",
    }

    def __init__(self, definition: Any, settings: Mapping[str, Any]) -> None:
        self.definition = definition
        self._idle_since = 0.0
        self.__dict__.update(settings)

    def setup_on_node(self, node_info: NodeInfo, worker_metadata: WorkerMetadata) -> None:
        """See `ProcessingStage`. By position, because implementations name their arguments as they like."""
        self.definition.setup_on_node(NemoNodeInfo(node_info.node_id), _theirs(worker_metadata))

    def setup(self, worker_metadata: WorkerMetadata) -> None:
        """See `ProcessingStage`."""
        self.definition.setup(_theirs(worker_metadata))

    def teardown(self) -> None:
        """See `ProcessingStage`."""
        self.definition.teardown()

    def process(self, task: Any) -> Any:
        """See `ProcessingStage`."""
        return self._entries([task])[0]

    def _entries(self, boxes: list[Any]) -> list[Any]:
        """Call the stage, and return an entry for each task: a box, a list of boxes, None, or what stands for one."""
        inputs = Inputs([_content_of(box) for box in boxes])
        start = time.perf_counter()
        try:
            made = self._made(inputs)
        finally:
            metrics = self.definition._consume_custom_metrics()
            for name, value in metrics.items():
                self.metrics.set(name, value)
        if self.definition.is_source_stage:
            made = self._of_this_job(made)
        record = self._record(start, inputs.num_items, metrics)
        for each in made:
            for output in each.outputs:
                # A new list: stages pass lists on, so that several tasks share one.
                output._stage_perf = [*output._stage_perf, record]
        return [self._entry(each) for each in made]

    def _made(self, inputs: Inputs) -> list[Made]:
        """Process each input, and name the outputs as those of one batch, as NeMo Curator does."""
        results = [self._process(task) for task in inputs.tasks]
        assign_ids(self.definition, inputs.ids, [result for each in results for result in each])
        return [made_of(each) for each in results]

    def _process(self, task: Any) -> list[Any]:
        if not self.definition.validate_input(task):
            raise InputError(
                f"task '{task.task_id}' failed the validation of the stage",
                stage=self.name,
                field="inputs()",
                given=task,
                expected=f"a task that {type(self.definition).__name__}.validate_input accepts: "
                f"{self.definition.inputs()}",
                hint="add what is missing in an earlier stage; NeMo Curator's log names it",
            )
        result = self.definition.process(task)
        return self._checked(result if isinstance(result, list) else [result], "process")

    def _checked(self, returned: Any, method: str) -> list[Any]:
        """Return the results as a list, also of an iterator; raise unless they are tasks."""
        is_list = isinstance(returned, Iterable) and not isinstance(returned, (str, bytes, Mapping))
        results = list(returned) if is_list else [returned]
        wrong = [each for each in results if not (each is None or isinstance(each, NemoBaseTask))]
        if wrong or not is_list:
            raise ContractError(
                f"returned an object of type '{type((wrong or results)[0]).__name__}'",
                stage=self.name,
                field=method,
                given=(wrong or results)[0],
                expected="a list of tasks of NeMo Curator"
                if method == "process_batch"
                else "a task of NeMo Curator, a list of tasks, or None",
                hint="wrap the data, for example in a DocumentBatch",
            )
        return results

    def _of_this_job(self, made: list[Made]) -> list[Made]:
        """Return the source tasks that NeMo Curator's own settings for Slurm arrays leave to this job."""
        if any(each.failed for each in made):
            raise ContractError(
                "the source returned a FailedTask",
                stage=self.name,
                field="process",
                given="FailedTask",
                expected="source tasks: a source that cannot list them fails as a whole",
                hint="raise an exception instead",
            )
        config = resolve_slurm_array_config(is_source_stage=True)
        if config is None:
            return made
        tasks = [task for each in made for task in each.outputs]
        kept = {id(task) for task in filter_slurm_array_source_tasks(tasks, config, self.definition.name)}
        self.metrics.set("tasks_of_other_jobs", len(tasks) - len(kept))
        return [each._replace(outputs=[task for task in each.outputs if id(task) in kept]) for each in made]

    def _record(self, start: float, num_items: int, metrics: dict[str, float]) -> Any:
        """Return the record that NeMo Curator's adapter makes of a call, with its odd megabytes, which are items."""
        now = time.perf_counter()
        idle = start - self._idle_since if self._idle_since else 0.0
        self._idle_since = now
        return NemoPerfStats(
            stage_name=str(self.definition.name),
            # Less than a nanosecond more, so that the records of two calls differ: see `unbox_all`.
            process_time=now - start + _tie_breaker.getrandbits(20) * 1e-15,
            actor_idle_time=idle,
            input_data_size_mb=num_items / 1024**2,
            num_items_processed=num_items,
            custom_metrics=dict(metrics),
        )

    def _entry(self, made: Made) -> Any:
        if made.merged:
            return MERGED
        boxes = [boxed(output) for output in made.outputs]
        if made.failed:
            error = FailedTaskError(
                "the stage returned a FailedTask",
                stage=self.name,
                field="process",
                expected="a task for each input that can be processed",
                hint="see the log of the stage; a later run with the checkpoint tries it again, after a run that skips "
                "failures with Checkpoint(…, retry_failed=True)",
            )
            return Failed(error, boxes, ends_run=False)
        if not boxes:
            return None
        return boxes if len(boxes) > 1 else boxes[0]


class NemoLoopStage(NemoStage):
    """A stage that works on one task at a time, called for batches: NeMo Curator then names and times a whole batch."""

    def process_batch(self, tasks: list[Any]) -> Sequence[Any]:
        """See `ProcessingStage`."""
        return self._entries(tasks)


class NemoBatchStage(NemoLoopStage):
    """A stage that works on batches."""

    def _made(self, inputs: Inputs) -> list[Made]:
        results = self._checked(self.definition.process_batch(list(inputs.tasks)), "process_batch")
        assign_ids(self.definition, inputs.ids, results)
        return inputs.match(results)


def _content_of(task: Any) -> Any:
    """Return the task in a box. A source stage is given NeMo Curator's EmptyTask in place of ours."""
    return task.data if isinstance(task, NemoTask) else NemoEmptyTask()


def _theirs(worker_metadata: WorkerMetadata) -> Any:
    return NemoWorkerMetadata(worker_metadata.worker_id, worker_metadata.allocation)
