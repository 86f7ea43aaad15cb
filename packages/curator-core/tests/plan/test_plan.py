# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from curator_core import (
    DocumentBatch,
    EmptyTask,
    Pipeline,
    PipelineError,
    Plan,
    ProcessingStage,
    Resources,
    StageDefinitionError,
    Task,
)
from curator_core._plan.plan import dumps
from curator_core._transport.pickling import loads

LOCK = threading.Lock()


class Pass(ProcessingStage):
    def process(self, task):
        return task


class Both(Pass):
    def process_batch(self, tasks):
        return tasks


class Neither(ProcessingStage):
    pass


class Holding(Pass):
    def __init__(self, held: Any) -> None:
        self.held = held


class Columns(Pass):
    """Needs and adds the given columns."""

    def __init__(self, name: str, needs: Any = None, adds: Any = None) -> None:
        self.name = name
        self.needs, self.adds = needs, adds

    def inputs(self):
        return self.needs

    def outputs(self):
        return self.adds


class Source(ProcessingStage[EmptyTask, DocumentBatch]):
    def process(self, task):
        return DocumentBatch([{"text": "a"}])

    def outputs(self):
        return ["data"], ["text"]


class TakesTasks(ProcessingStage[Task[str], Task[str]]):
    """First in a pipeline, but not a source: its declaration names its inputs."""

    def process(self, task):
        return task

    def outputs(self):
        return ["data"], ["length"]


def view_of(stage: Any) -> Any:
    return Plan.from_stages([stage]).stages[0]


# --- rejected pipelines ---------------------------------------------------------------------------------


def test_an_empty_pipeline_is_rejected():
    with pytest.raises(PipelineError, match="pipeline 'p' has no stages") as raised:
        Pipeline("p").compile()
    assert raised.value.field == "stages"
    assert "add_stage" in raised.value.hint


@pytest.mark.parametrize("thing", [42, "Pass", None, lambda task: task, object()])
def test_an_object_that_is_not_a_stage_is_rejected(thing):
    with pytest.raises(StageDefinitionError, match="stage 1 is not a ProcessingStage") as raised:
        Pipeline("p", [Pass(), thing]).compile()
    assert raised.value.field == "stages[1]"
    assert "decorate" in raised.value.hint


def test_a_class_in_place_of_a_stage_is_rejected():
    with pytest.raises(StageDefinitionError, match="call the class"):
        Pipeline("p", [Pass]).compile()


def test_a_stage_without_a_method_is_rejected():
    with pytest.raises(StageDefinitionError, match="has neither process") as raised:
        Pipeline("p", [Neither()]).compile()
    assert raised.value.stage == "Neither"
    assert "process_batch(self, tasks)" in raised.value.expected


def test_two_stages_with_one_name_are_rejected():
    with pytest.raises(PipelineError, match="stages 0 and 2 have the same name") as raised:
        Pipeline("p", [Pass(), Both(), Pass()]).compile()
    assert raised.value.stage == "Pass"
    assert "with_(name=" in raised.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "  "),
        ("name", 5),
        ("name", None),
        ("name", "two\nlines"),
        ("resources", None),
        ("resources", {"cpus": 1}),
        ("resources", Resources),
        ("batch_size", 0),
        ("batch_size", -1),
        ("batch_size", 2.0),
        ("batch_size", True),
        ("batch_size", "8"),
        ("runtime_env", "pip"),
        ("runtime_env", {1: "x"}),
        ("fusible", 1),
        ("fusible", "no"),
        ("fans_out", 1),
        ("full_batches", "yes"),
        ("max_attempts", 0),
        ("max_attempts", None),
        ("num_workers", 0),
        ("num_workers", 1.5),
        ("xenna_stage_spec", ["slots_per_actor"]),
        ("xenna_stage_spec", {1: 2}),
    ],
)
def test_invalid_settings_are_rejected(field, value):
    with pytest.raises(StageDefinitionError, match="invalid setting") as raised:
        Pipeline("p", [Pass().with_(**{field: value})]).compile()
    assert raised.value.field == field
    assert raised.value.stage
    assert raised.value.given == repr(list(value) if isinstance(value, dict) else value)
    assert raised.value.expected
    assert "with_(" in raised.value.hint


@pytest.mark.parametrize("fields", [["text"], "text", (["a"], ["b"], ["c"]), (["a"], "b"), ([1], []), 5])
@pytest.mark.parametrize("method", ["needs", "adds"])
def test_invalid_declarations_are_rejected(fields, method):
    with pytest.raises(StageDefinitionError, match="invalid return value of") as raised:
        Pipeline("p", [Columns("S", **{method: fields})]).compile()
    assert raised.value.field in ("inputs()", "outputs()")


def test_a_stage_cannot_replace_its_metrics():
    @dataclass
    class Mine(Pass):
        metrics: int = 5

    with pytest.raises(StageDefinitionError, match="metrics"):
        Pipeline("p", [Mine()]).compile()


@pytest.mark.parametrize("held", [threading.Lock(), (n for n in range(3))], ids=["lock", "generator"])
def test_a_stage_with_an_unpicklable_attribute_is_rejected(held):
    with pytest.raises(StageDefinitionError, match="cannot be sent to a worker") as raised:
        Pipeline("p", [Pass(), Holding({"a": [0, held]})]).compile()
    assert raised.value.stage == "Holding"
    assert raised.value.field == "stage.held['a'][1]"
    assert type(held).__name__ in raised.value.given
    assert "setup()" in raised.value.hint
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("mode", ["r", "rb", "w", "a"])
def test_a_stage_with_an_open_file_is_rejected(tmp_path, mode):
    path = tmp_path / "file"
    path.write_text("content")
    with path.open(mode) as file, pytest.raises(StageDefinitionError, match="cannot be sent") as raised:
        Pipeline("p", [Holding(file)]).compile()
    assert raised.value.field == "stage.held"


def test_a_stage_can_have_a_lambda():
    stage = view_of(Holding(lambda x: x + 1)).stage
    assert loads(dumps(stage)).held(1) == 2


def test_a_stage_can_refer_to_itself():
    stage = Holding(None)
    stage.held = stage
    assert view_of(stage).name == "Holding"


# --- requirements of stages -----------------------------------------------------------------------------


def compile_columns(*stages: Any, fed: bool | None = None) -> Plan:
    return Plan.from_stages(stages, "p", fed=fed)


TEXT = (["data"], ["text"])
LANGUAGE = (["data"], ["language"])
NOTHING: tuple[list[str], list[str]] = ([], [])


def test_a_stage_can_require_outputs_of_the_source():
    compile_columns(Source(), Columns("b", needs=TEXT))


@pytest.mark.parametrize("fed", [None, False])
def test_a_required_field_that_no_stage_adds_is_an_error(fed):
    with pytest.raises(PipelineError, match="needs 'language', which no earlier stage provides") as raised:
        compile_columns(Source(), Columns("b", needs=TEXT, adds=NOTHING), Columns("c", needs=LANGUAGE), fed=fed)
    assert (raised.value.stage, raised.value.field) == ("c", "inputs()")
    assert "text" in raised.value.expected
    assert "outputs()" in raised.value.hint


def test_a_stage_can_require_outputs_of_a_stage_in_between():
    compile_columns(Source(), Columns("b", needs=TEXT, adds=LANGUAGE), Columns("c", needs=LANGUAGE))


def test_after_a_stage_without_declarations_any_field_can_exist():
    compile_columns(Source(), Pass(), Columns("c", needs=LANGUAGE))
    compile_columns(Pass(), Columns("c", needs=LANGUAGE))


def test_a_field_that_a_later_stage_adds_is_missing():
    with pytest.raises(PipelineError, match="needs 'language'"):
        compile_columns(Source(), Columns("b", needs=LANGUAGE), Columns("c", adds=LANGUAGE))


def test_required_attributes_are_checked():
    with pytest.raises(PipelineError, match="needs 'fps' and 'codec'"):
        compile_columns(Source(), Columns("b", needs=(["data", "task_id", "fps", "codec"], [])))


def test_initial_tasks_can_have_any_column():
    compile_columns(Columns("a", adds=TEXT), Columns("b", needs=LANGUAGE), fed=True)


def test_a_stage_that_requires_fields_is_not_a_source():
    compile_columns(Columns("a", needs=TEXT, adds=NOTHING), Columns("b", needs=LANGUAGE))


def test_a_stage_that_takes_tasks_is_not_a_source():
    compile_columns(TakesTasks(), Columns("b", needs=LANGUAGE))


def test_without_initial_tasks_the_first_stage_gets_an_empty_task():
    with pytest.raises(PipelineError, match="needs 'text'"):
        compile_columns(Columns("a", needs=TEXT), fed=False)


def test_compile_depends_on_whether_there_are_initial_tasks():
    pipeline = Pipeline("p", [TakesTasks(), Columns("b", needs=LANGUAGE)])
    with pytest.raises(PipelineError, match="needs 'language'"):
        pipeline.run()
    with pytest.raises(Exception, match="has no column 'language'"):
        pipeline.run(initial_tasks=[Task(data="a")])


# --- settings that are read -----------------------------------------------------------------------------


def test_a_compiled_stage_has_the_settings_of_the_stage():
    stage = Columns("S", needs=TEXT, adds=LANGUAGE).with_(
        batch_size=8,
        resources=Resources(cpus=2),
        runtime_env={"pip": ["x"]},
        fusible=False,
        max_attempts=3,
        num_workers=2,
        xenna_stage_spec={"slots_per_actor": 2},
    )
    compiled = view_of(stage)
    assert (compiled.index, compiled.name, compiled.class_name, compiled.batched) == (0, "S", "Columns", False)
    assert (compiled.batch_size, compiled.resources, compiled.runtime_env) == (8, Resources(cpus=2), {"pip": ["x"]})
    assert (compiled.fusible, compiled.max_attempts, compiled.num_workers) == (False, 3, 2)
    assert (compiled.needs.attributes, compiled.needs.columns) == (("data",), ("text",))
    assert (compiled.adds.attributes, compiled.adds.columns) == (("data",), ("language",))
    assert compiled.engine_options == {"slots_per_actor": 2}
    assert compiled.stage is stage


def test_an_unset_batch_size_is_one():
    assert view_of(Pass().with_(batch_size=None)).batch_size == 1


def test_a_stage_with_both_methods_uses_process_batch():
    assert view_of(Both()).batched
    assert not view_of(Pass()).batched


def test_num_workers_can_be_an_attribute():
    class Fixed(Pass):
        num_workers = 4  # type: ignore[assignment]

    assert view_of(Fixed()).num_workers == 4


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"min_workers": 3, "max_workers": 2}, "min_workers <= max_workers"),
        ({"min_workers": 3, "initial_workers": 2}, "min_workers <= initial_workers"),
        ({"initial_workers": 5, "max_workers": 4}, "initial_workers <= max_workers"),
        ({"min_workers": 2, "initial_workers": 1, "max_workers": 4}, "min_workers <= initial_workers <= max_workers"),
    ],
)
def test_limits_of_workers_in_the_wrong_order_are_rejected(limits, expected):
    with pytest.raises(StageDefinitionError, match="invalid setting") as raised:
        view_of(Pass().with_(**limits))
    assert (raised.value.field, raised.value.expected) == (expected.replace(" <=", ","), expected)


@pytest.mark.parametrize("name", ["min_workers", "max_workers", "initial_workers"])
def test_a_fixed_number_of_workers_excludes_limits(name):
    with pytest.raises(StageDefinitionError, match="either a fixed number or limits") as raised:
        view_of(Pass().with_(num_workers=2, **{name: 2}))
    assert (raised.value.field, raised.value.given) == (f"num_workers, {name}", "(2, 2)")
    assert f"set {name} to None" in raised.value.hint


@pytest.mark.parametrize(
    "limits",
    [(2, None, None), (None, 2, None), (None, None, 2), (2, 3, 4), (2, 2, 4), (2, 4, 4), (1, 2, None), (None, 2, 2)],
)
def test_limits_of_workers_in_order_are_kept(limits):
    names = ("min_workers", "initial_workers", "max_workers")
    compiled = view_of(Pass().with_(**dict(zip(names, limits, strict=True))))
    assert tuple(getattr(compiled, name) for name in names) == limits
    assert compiled.num_workers is None
    assert not compiled.wants_a_worker


@pytest.mark.parametrize("initial", [None, 3])
def test_equal_limits_are_a_fixed_number_of_workers(initial):
    equal = Pass().with_(name="b", min_workers=3, max_workers=3, initial_workers=initial)
    compiled = view_of(equal)
    assert (compiled.num_workers, compiled.min_workers, compiled.max_workers) == (3, None, None)
    assert compiled.initial_workers is None
    assert len(Plan.from_stages([Pass().with_(num_workers=3), equal], fed=True).groups) == 1


@pytest.mark.parametrize(
    ("settings", "wants"),
    [
        ({}, False),
        ({"batch_size": 9, "fusible": False}, False),
        ({"resources": Resources(cpus=2)}, True),
        ({"runtime_env": {}}, True),
        ({"num_workers": 1}, True),
    ],
)
def test_a_source_with_requirements_needs_a_worker(settings, wants):
    assert view_of(Pass().with_(**settings)).wants_a_worker is wants


def test_later_changes_of_a_stage_do_not_change_the_plan():
    environment: dict[str, Any] = {"env_vars": {"A": "1"}}
    stage = Pass().with_(runtime_env=environment)
    pipeline = Pipeline("p", [stage])
    plan = pipeline.compile()
    environment["env_vars"]["A"] = "2"
    pipeline.add_stage(Both())
    assert plan.stages[0].runtime_env == {"env_vars": {"A": "1"}}
    assert len(plan.stages) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.name = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.stages[0].batch_size = 2


def test_compiling_does_not_modify_stages():
    stage = Holding([1])
    Pipeline("p", [stage]).compile()
    assert vars(stage) == {"held": [1]}


def test_a_stage_copy_shares_nothing():
    compiled = view_of(Holding([1]))
    compiled.fresh_stage().held.append(2)
    assert compiled.stage.held == [1]


def test_a_stage_copy_shares_globals_of_modules():
    held = view_of(Holding([threading, LOCK, [1]])).fresh_stage().held
    assert held[0] is threading
    assert held[1] is LOCK


def test_a_plan_can_be_pickled():
    plan = Plan.from_stages([Pass(), Both()], "p")
    assert [compiled.name for compiled in loads(dumps(plan)).stages] == ["Pass", "Both"]


def test_stages_are_in_order():
    plan = Plan.from_stages(iter([Pass().with_(name=name) for name in "cab"]))
    assert [(compiled.index, compiled.name) for compiled in plan.stages] == [(0, "c"), (1, "a"), (2, "b")]


def test_describe_lists_the_needs_of_each_stage_without_secrets():
    stage = Pass().with_(
        name="gpu", resources=Resources(gpus=0.5), num_workers=2, runtime_env={"env_vars": {"TOKEN": "s3cret"}}
    )
    text = Pipeline("p", [Pass(), stage], description="for people").describe()
    assert text.splitlines() == [
        "p: 2 stages",
        "  00 Pass  Pass(cpus=1, batch_size=1)",
        "  01 gpu   Pass(cpus=1, gpus=0.5, batch_size=1, num_workers=2, runtime_env=['env_vars'])",
        "for people",
    ]
    limits = {"min_workers": 2, "max_workers": 8, "initial_workers": 4}
    assert "min_workers=2, initial_workers=4, max_workers=8)" in Pipeline("p", [Pass().with_(**limits)]).describe()
    assert "entire_gpu" in Pipeline("p", [Pass().with_(resources=Resources(entire_gpu=True))]).describe()
