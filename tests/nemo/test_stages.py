# SPDX-License-Identifier: Apache-2.0
"""Each kind of stage that NeMo Curator allows, on every executor, compared with NeMo Curator's own adapters."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
from nemo_curator.backends.base import NodeInfo, WorkerMetadata
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.function_decorators import processing_stage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import EmptyTask, Task
from tests.nemo.library import (
    Add,
    Anew,
    Batches,
    BatchFilter,
    BatchHoles,
    Both,
    Even,
    EvenMarked,
    Named,
    NamedSource,
    Numbers,
    Pack,
    Source,
    Split,
    data_of,
    ids_of,
    numbers,
    reference,
    sums_of,
)

import curator_core
from curator_core import LocalExecutor, Plan, RunResult, StageDefinitionError, StageError
from curator_core import Resources as OurResources


@processing_stage(name="doubled", batch_size=None)
def doubled(task: Numbers) -> Numbers:
    return numbers(*(2 * n for n in task.data))


SPEC = {"slots_per_actor": 3, "num_run_attempts_python": 2, "ignore_failures": True, "worker_max_lifetime_m": None}
EXACT = {
    "in place": [Add()],
    "new tasks": [Anew()],
    "filter": [Even()],
    "filter with markers": [EvenMarked()],
    "fan-out": [Split()],
    "batch": [Batches()],
    "batch with holes": [BatchHoles()],
    "function": [doubled],
    "composite": [Both().with_({"second": {"name": "changed", "batch_size": 2}})],
    "two of the same name": [Add(1), Add(2)],
    "long": [Add(), Split(), Batches(), Even(), Add(3).with_(name="end", num_workers=1)],
}


@pytest.mark.parametrize("name", EXACT)
def test_outputs_and_ids_are_those_of_nemo_curator(name):
    stages = copy.deepcopy([Source(12), *EXACT[name]])  # a pipeline of NeMo Curator marks its stages
    expected = reference(stages)
    result = Pipeline("it", stages=stages).run(LocalExecutor())
    assert [(task.task_id, task.data) for task in result] == [(task.task_id, task.data) for task in expected]
    assert all(task.dataset_name == "numbers" for task in result)


def test_every_executor_gives_the_same(executor):
    stages = copy.deepcopy([Source(12), *EXACT["long"], doubled, Both()])
    expected = reference(stages)
    result = Pipeline("it", stages=stages).run(executor)
    assert type(result) is RunResult
    assert isinstance(result, list)
    assert (ids_of(result), data_of(result)) == (ids_of(expected), data_of(expected))
    assert sums_of(result) == sums_of(expected)
    records = [[record.stage_name for record in task._stage_perf] for task in result]
    assert sorted(records) == sorted([record.stage_name for record in task._stage_perf] for task in expected)


def test_initial_tasks_get_their_ids_and_do_not_change(executor):
    given = [numbers(n) for n in range(6)]
    result = Pipeline("it", stages=[Add(), Anew()]).run(executor, initial_tasks=given)
    assert [task.data for task in given] == [[n] for n in range(6)]
    assert ids_of(result) == ids_of(reference([Add(), Anew()], [numbers(n) for n in range(6)]))
    assert data_of(result) == [[n + 2] for n in range(6)]


def test_tasks_of_several_runs_get_new_ids():
    first, second = (Pipeline("it", stages=[Source(2)]).run(LocalExecutor()) for _ in range(2))
    for run in (curator_core.Pipeline("it", [Add()]).run, partial(LocalExecutor().execute, [Add()])):
        result = run(initial_tasks=[*first, *second])
        assert [task.task_id for task in result] == ["0_0_0", "0_1_0", "0_2_0", "0_3_0"]


@pytest.mark.parametrize("given", [[], [EmptyTask()], None])
def test_no_initial_tasks_and_an_empty_task_mean_a_source(given, tmp_path):
    result = LocalExecutor().with_(checkpoint=tmp_path).execute([Source(3), Add()], given)
    assert result.accounting.admitted == 3


def test_our_own_pipeline_runs_their_stages(executor):
    result = curator_core.Pipeline("ours", [Source(4), Both()]).run(executor)
    assert data_of(result) == [[11], [12], [13], [14]]
    assert ids_of(result) == ids_of(reference([Source(4), Both()]))
    assert [stage.name for stage in result.stages] == ["source", "first", "second"]


def test_source_ids_are_content_ids():
    result = Pipeline("it", stages=[NamedSource([3, 1, 2]), Add()]).run(LocalExecutor())
    assert [task.task_id for task in result] == ["0_content3_0", "0_content1_0", "0_content2_0"]
    assert ids_of(result) == ids_of(reference([NamedSource([3, 1, 2]), Add()]))


def test_a_source_in_the_middle_names_its_outputs_by_content():
    class Middle(ProcessingStage[Numbers, Numbers]):
        name = "middle"
        is_source_stage = True

        def process(self, task: Numbers) -> list[Numbers]:
            return [Named(dataset_name="numbers", data=[task.data[0], n]) for n in range(2)]

    stages = [Source(2), Middle(), Add()]
    result = Pipeline("it", stages=stages).run(LocalExecutor())
    assert ids_of(result) == ids_of(reference(stages))


# --- any number of tasks into another -----------------------------------------------------------------------


def test_joint_outputs_have_stable_ids_and_are_accounted_for(executor):
    runs = [Pipeline("it", stages=[Source(10), Pack(), Add()]).run(LocalExecutor()) for _ in range(2)]
    assert ids_of(runs[0]) == ids_of(runs[1])
    assert all(task.task_id.startswith("r") for task in runs[0])
    result = Pipeline("it", stages=[Source(10), Pack(), Add()]).run(executor)
    assert sorted(n for task in result for n in task.data) == [n + 1 for n in range(10)]
    pack = result.stages[1]
    assert (pack.tasks_in, pack.tasks_filtered, pack.tasks_failed) == (10, 0, 0)
    assert pack.tasks_merged == 10 - pack.batches == 10 - pack.tasks_passed
    assert pack.tasks_out == result.stages[2].tasks_in == len(result)
    assert list(result.lost) == []
    assert result.accounting.unfinished == ()
    assert "merged" in result.summary()


def test_a_batch_that_returns_some_inputs_is_exact(executor):
    result = Pipeline("it", stages=[Source(10), BatchFilter()]).run(executor)
    assert data_of(result) == [[n] for n in range(10) if n % 3]
    stage = result.stages[1]
    assert (stage.tasks_in, stage.tasks_passed, stage.tasks_filtered, stage.tasks_merged) == (10, 6, 4, 0)


class Concatenates(Batches):
    """Puts a batch into its first task, in place, and returns that."""

    name = "concatenates"

    def process_batch(self, tasks: list[Numbers]) -> list[Any]:
        tasks[0].data = [n for task in tasks for n in task.data]
        return [tasks[0]]


def test_inputs_that_went_into_one_that_is_returned_are_merged(executor):
    result = Pipeline("it", stages=[Source(8), Concatenates(), Add()]).run(executor)
    assert sorted(n for task in result for n in task.data) == [n + 1 for n in range(8)]
    stage = result.stages[1]
    assert (stage.tasks_merged, stage.tasks_filtered) == (8 - len(result), 0)


def test_joint_outputs_of_a_source_have_ids_of_their_own():
    class Packs(Pack):
        name = "packs"
        is_source_stage = True

        def process_batch(self, tasks: list[Numbers]) -> list[Any]:
            return [Named(dataset_name="numbers", data=[0]) for _ in tasks[1:]]

    result = Pipeline("it", stages=[Source(10), Packs()]).run(LocalExecutor())
    assert len({task.task_id for task in result}) == len(result) == 8


class Iterates(Batches):
    """Returns an iterator."""

    name = "iterates"

    def process_batch(self, tasks: list[Numbers]) -> Any:
        yield from super().process_batch(tasks)


def test_iterator_of_results_is_a_list_of_them():
    stages = [Source(6), Batches()]
    result = Pipeline("it", stages=[Source(6), Iterates()]).run(LocalExecutor())
    assert [task.data for task in result] == [task.data for task in reference(stages)]


@pytest.mark.parametrize("returned", [None, {}, "text", numbers(1), [1]])
def test_batch_of_something_else_than_tasks_is_an_error(returned):
    class Wrong(Batches):
        name = "wrong"

        def process_batch(self, tasks: list[Numbers]) -> Any:
            return returned

    with pytest.raises(StageError, match="returned an object of type") as caught:
        Pipeline("it", stages=[Source(2), Wrong()]).run(LocalExecutor())
    assert "a list of tasks of NeMo Curator" in str(caught.value)


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [{"num_workers": 2}, {"num_workers_per_node": 1}])
def test_number_of_workers_that_is_set_twice_is_an_error(spec):
    class Twice(Add):
        name = "twice"

        def num_workers_per_node(self) -> float | None:
            return 2.0

        def xenna_stage_spec(self) -> dict[str, Any]:
            return spec

    with pytest.raises(StageDefinitionError, match=f"must not set {next(iter(spec))}"):
        Plan.from_stages([Source(), Twice()])


def test_composite_without_stages_is_an_error():
    class Empty(Both):
        name = "empty"

        def decompose(self) -> list[Any]:
            return []

    with pytest.raises(StageDefinitionError, match="does not decompose into stages"):
        Plan.from_stages([Source(), Empty()])


def test_settings_are_those_of_the_stage():
    asked = Add().with_(
        name="asked",
        resources=Resources(cpus=2.0, gpus=0.5),
        batch_size=7,
        runtime_env={"env_vars": {"A": "1"}},
        xenna_stage_spec=SPEC,
        num_workers_per_node=0.5,
    )
    _, compiled = Plan.from_stages([Source(), asked]).stages
    assert compiled.name == "asked"
    assert compiled.class_name == "Add"
    assert compiled.resources == OurResources(cpus=2.0, gpus=0.5)
    assert compiled.batch_size == 7
    assert compiled.runtime_env == {"env_vars": {"A": "1"}}
    assert compiled.max_attempts == 2
    assert compiled.skips_failures
    assert compiled.engine_options == {"slots_per_actor": 3, "num_workers_per_node": 0.5}


def test_names_are_made_unique_and_batch_sizes_have_a_default():
    plan = Plan.from_stages([Source(), Add(), Add(), Add().with_(name="add_2"), doubled])
    assert [compiled.name for compiled in plan.stages] == ["source", "add", "add_2", "add_2_2", "doubled"]
    assert [compiled.batch_size for compiled in plan.stages] == [1] * 5


def test_fan_out_follows_the_annotation():
    plan = Plan.from_stages([Source(), Split(), Add(), Add()])
    assert [compiled.fans_out for compiled in plan.stages] == [True, True, False, False]
    assert len(plan.groups) == 3


def test_stages_are_not_modified():
    stages = [Source(2), Add()]
    curator_core.Pipeline("it", stages).run()
    assert [stage.is_source_stage for stage in stages] == [False, False]
    assert vars(stages[1]) == {"amount": 1}


class Life(ProcessingStage[Numbers, Numbers]):
    """Notes what is called, with arguments that have names of their own."""

    name = "life"

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def setup_on_node(self, node: Any, _: Any = None) -> None:
        self.calls.append((type(node), bool(node.node_id)))

    def setup(self, w: Any = None) -> None:
        self.calls.append((type(w), bool(w.worker_id)))

    def process(self, task: Numbers) -> Numbers:
        task._metadata["calls"] = list(self.calls)
        return task


def test_setups_are_called_in_their_signatures(executor):
    result = Pipeline("it", stages=[Source(2), Life()]).run(executor)
    for task in result:
        assert task._metadata["calls"][-1] == (WorkerMetadata, True)
        assert task._metadata["calls"][:-1] in ([(NodeInfo, True)], [])


# --- validation ---------------------------------------------------------------------------------------------


class Needs(ProcessingStage[Numbers, Numbers]):
    name = "needs"

    def inputs(self) -> Any:
        return {Numbers: (["data", "height"], []), Task: ([], [])}

    def process(self, task: Numbers) -> Numbers:
        return task


def test_input_that_fails_validation_is_an_error():
    with pytest.raises(StageError, match="task '0_0' failed the validation of the stage") as caught:
        Pipeline("it", stages=[Source(1), Needs()]).run(LocalExecutor())
    assert caught.value.stage == "needs"
    assert "height" in str(caught.value)


def test_output_that_is_not_a_task_is_an_error():
    class Wrong(Add):
        name = "wrong"

        def process(self, task: Numbers) -> Any:
            return task.data

    with pytest.raises(StageError, match="returned an object of type 'int'"):
        Pipeline("it", stages=[Source(1), Wrong()]).run(LocalExecutor())
