# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from curator_core import (
    CompositeStage,
    LocalExecutor,
    Pipeline,
    ProcessingStage,
    Resources,
    StageDefinitionError,
    Task,
    processing_stage,
)
from curator_core._transport.pickling import dumps, loads
from curator_core.stages import decompose

LOCK = threading.Lock()  # does not pickle


@processing_stage(name="increased", batch_size=4)
def increase(task):
    """Add one."""
    with LOCK:
        return Task(data=task.data + 1)


class Pass(ProcessingStage):
    def process(self, task):
        return task


class Renamed(Pass):
    name = "by_hand"


class Heir(Renamed):
    pass


class HeirWithItsOwnName(Heir):
    name = "mine"


@dataclass
class Scale(ProcessingStage[Task[int], Task[int]]):
    factor: int = 2
    resources: Resources = dataclasses.field(default_factory=lambda: Resources(cpus=0.5))

    def process(self, task):
        return Task(data=task.data * self.factor)


@dataclass(frozen=True)
class Frozen(ProcessingStage[Task[int], Task[int]]):
    factor: int = 2

    def process(self, task):
        self.metrics.add("seen")
        return Task(data=task.data * self.factor)


class Computed(Pass):
    @property
    def batch_size(self) -> int:
        return 7


def run(*stages: Any, data: Any = (1, 2)) -> list[Any]:
    return [task.data for task in Pipeline("p", stages).run(initial_tasks=[Task(data=d) for d in data])]


# --- names and settings ---------------------------------------------------------------------------------


def test_a_stage_is_named_by_its_class():
    assert Pass().name == Pass.name == "Pass"


def test_an_explicit_name_is_inherited():
    assert [cls().name for cls in (Renamed, Heir, HeirWithItsOwnName)] == ["by_hand", "by_hand", "mine"]


def test_a_subclass_of_a_stage_is_named_by_its_own_class():
    class Special(Pass):
        pass

    assert Special().name == "Special"


def test_defaults():
    stage = Pass()
    assert stage.resources == Resources()
    assert (stage.batch_size, stage.runtime_env, stage.fusible, stage.max_attempts) == (1, None, None, 1)
    assert stage.num_workers() is None
    assert stage.inputs() is stage.outputs() is None
    assert stage.xenna_stage_spec() == {}


def test_with_returns_a_new_stage():
    stage = Pass()
    changed = stage.with_(name="other", batch_size=8, resources=Resources(cpus=2), max_attempts=3, fusible=False)
    assert (changed.name, changed.batch_size, changed.resources.cpus) == ("other", 8, 2)
    assert (changed.max_attempts, changed.fusible) == (3, False)
    assert (stage.name, stage.batch_size, stage.resources) == ("Pass", 1, Resources())
    assert type(changed) is Pass
    assert not vars(stage)


def test_with_can_override_methods():
    changed = Pass().with_(num_workers=3, xenna_stage_spec={"slots_per_actor": 2}, runtime_env={"pip": ["x"]})
    assert changed.num_workers() == 3
    assert changed.xenna_stage_spec() == {"slots_per_actor": 2}
    assert loads(dumps(changed)).num_workers() == 3


def test_with_can_be_chained():
    assert Pass().with_(name="a").with_(batch_size=2).name == "a"


def test_an_unknown_setting_suggests_the_nearest_one():
    with pytest.raises(StageDefinitionError, match="did you mean 'batch_size'") as raised:
        Pass().with_(batchsize=2)
    assert (raised.value.stage, raised.value.field) == ("Pass", "batchsize")


def test_a_computed_setting_cannot_be_changed():
    with pytest.raises(StageDefinitionError, match="cannot change this setting") as raised:
        Computed().with_(batch_size=2)
    assert raised.value.field == "batch_size"
    assert Computed().batch_size == 7


def test_a_copy_has_its_own_metrics():
    stage = Pass()
    stage.metrics.add("x")
    assert stage.with_(name="b").metrics.take() == {}
    assert stage.metrics.take() == {"x": 1}


def test_repr_shows_class_and_name():
    assert repr(Pass().with_(name="a")) == "<Pass 'a'>"


# --- stages that are dataclasses ------------------------------------------------------------------------


def test_a_dataclass_can_be_a_stage():
    assert run(Scale(3)) == [3, 6]
    assert Scale().name == "Scale"
    assert Scale().resources.cpus == 0.5
    assert run(Scale(3).with_(name="again", batch_size=2)) == [3, 6]


def test_a_frozen_dataclass_can_be_a_stage():
    stage = Frozen(5)
    assert run(stage, stage.with_(name="b")) == [25, 50]
    assert stage == Frozen(5)


# --- functions ------------------------------------------------------------------------------------------


def test_a_function_becomes_a_stage():
    assert isinstance(increase, ProcessingStage)
    assert (increase.name, increase.batch_size) == ("increased", 4)
    assert type(increase).__name__ == "increase"
    assert increase.__doc__ == "Add one."
    assert run(increase, increase.with_(name="again")) == [3, 4]


def test_the_default_name_is_that_of_the_function():
    @processing_stage()
    def shout(task):
        return Task(data=task.data.upper())

    assert shout.name == "shout"
    assert run(shout, data=["a"]) == ["A"]


def test_a_lambda_becomes_a_stage():
    double = processing_stage(name="double")(lambda task: Task(data=task.data * 2))
    assert run(double) == [2, 4]
    assert run(loads(dumps(double))) == [2, 4]


def test_a_generator_function_fans_out():
    @processing_stage()
    def each(task):
        for number in range(task.data):
            yield Task(data=number)

    assert run(each, data=[2, 0, 1]) == [0, 1, 0]


def test_a_module_function_is_pickled_by_name():
    # So that it uses the globals of its module on the other side, because they may not pickle.
    other = loads(dumps(increase.with_(name="other", batch_size=2)))
    assert (other.name, other.batch_size) == ("other", 2)
    assert other.function is increase.function
    assert type(other) is type(increase)
    assert run(other) == [2, 3]
    assert len(dumps(increase)) < 300


@pytest.mark.parametrize("setting", ["batchsize", "task"])
def test_an_unknown_setting_of_a_function_is_an_error(setting):
    with pytest.raises(StageDefinitionError, match="got an unknown setting"):
        processing_stage(**{setting: 1})(lambda task: task)


@pytest.mark.parametrize("function", [lambda: None, lambda a, b: None, lambda *, task: None])
def test_a_function_without_a_parameter_is_rejected(function):
    with pytest.raises(StageDefinitionError, match="a function that can be called with one task"):
        processing_stage()(function)


def test_an_object_that_is_not_a_function_is_rejected():
    with pytest.raises(StageDefinitionError, match="with parentheses"):
        processing_stage()(42)


def test_functions_can_have_default_arguments():
    @processing_stage()
    def scaled(task, factor=10):
        return Task(data=task.data * factor)

    assert run(scaled) == [10, 20]


# --- composites -----------------------------------------------------------------------------------------


class Of(CompositeStage):
    def __init__(self, *parts: Any, name: str = "Of") -> None:
        self.parts = parts
        self.name = name

    def decompose(self) -> Any:
        return list(self.parts)


def test_a_plain_stage_expands_into_itself():
    stage = Pass()
    assert decompose(stage) == [stage]


def test_composites_nest():
    stages = [Pass().with_(name=name) for name in "abc"]
    nested = Of(stages[0], Of(Of(stages[1])), Of(stages[2]))
    assert decompose(nested) == stages
    assert [compiled.name for compiled in Pipeline("p", [nested]).compile().stages] == ["a", "b", "c"]


def test_a_composite_can_have_one_stage():
    assert run(Of(Scale(3))) == [3, 6]


def test_decompose_can_return_a_tuple():
    class Pair(CompositeStage):
        def decompose(self):
            return (Scale(2), Scale(3).with_(name="b"))

    assert run(Pair()) == [6, 12]


def test_a_composite_that_contains_itself_is_rejected():
    class Endless(CompositeStage):
        def decompose(self):
            return [self]

    with pytest.raises(StageDefinitionError, match="nested more than 32 levels deep") as raised:
        Pipeline("p", [Endless()]).compile()
    assert raised.value.stage == "Endless"


@pytest.mark.parametrize("parts", [None, [], (), Pass(), "abc"])
def test_a_composite_without_stages_is_rejected(parts):
    class Empty(CompositeStage):
        def decompose(self):
            return parts

    with pytest.raises(StageDefinitionError, match="does not decompose into stages"):
        Pipeline("p", [Empty()]).compile()


def test_a_composite_needs_decompose():
    class Lazy(CompositeStage):
        pass

    with pytest.raises(StageDefinitionError, match=r"decompose\(\)"):
        Pipeline("p", [Lazy()]).compile()


def test_a_component_that_is_not_a_stage_is_named():
    with pytest.raises(StageDefinitionError, match="stage 1 is not a ProcessingStage"):
        Pipeline("p", [Of(Pass(), 42)]).compile()


# --- definitions stay definitions -----------------------------------------------------------------------


class Counting(ProcessingStage):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def setup(self, worker_metadata):
        self.model = "loaded"

    def process(self, task):
        self.seen.append(task.data)
        return Task(data=len(self.seen))


def test_a_run_does_not_modify_the_stage():
    stage = Counting()
    assert run(stage) == run(stage) == [1, 2]
    assert vars(stage) == {"seen": []}


def test_one_stage_can_be_in_two_pipelines():
    stage = Counting()
    first, second = Pipeline("a", [stage]), Pipeline("b", [stage, stage.with_(name="again")])
    tasks = [Task(data=1)]
    assert [t.data for t in first.run(LocalExecutor(), tasks)] == [1]
    assert [t.data for t in second.run(LocalExecutor(), tasks)] == [1]
