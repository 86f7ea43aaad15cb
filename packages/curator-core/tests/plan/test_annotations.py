# SPDX-License-Identifier: Apache-2.0
"""What a return annotation says about the number of outputs per task, in all the ways users write it."""

from __future__ import annotations

import collections.abc
import functools
import typing
from typing import Any

import pytest

from curator_core import ProcessingStage, Task, processing_stage
from curator_core._plan.compiled import compile_stage

Clip = Task  # a user-defined name

NAMES = {**vars(typing), "typing": typing, "collections": collections, "Task": Task, "Clip": Clip}

ONE_TASK = [
    "Task",
    "None",
    "Any",
    "Task | None",
    "typing.Optional[Task]",
    "Union[Task, Clip, None]",
    "Annotated[Task, 'list']",  # metadata is not a type
    "Annotated[Task, 'the caption of a clip']",  # and it is not code
    "Optional[Task[tuple[int, ...]]]",
    "dict[str, list[Task]]",
    "Literal['list']",
    "object",
]

MANY_TASKS = [
    "list",
    "tuple[Task, ...]",
    "List[Task]",
    "typing.List[Task]",
    "Sequence[Task]",
    "Iterable[Task]",
    "Collection[Task]",
    "typing.Iterator[Task]",
    "collections.abc.Iterator[Task]",
    "Generator[Task, None, None]",
    "collections.abc.Generator[Task, None, None]",
    "typing.Optional[typing.Sequence[Task]]",
    "Union[Task, Optional[list[Task]]]",
    "list[Task] | None",
    "Task | None | Iterator[Task]",
    "Optional[Task] | list[Task]",
    "Annotated[Optional[list[Task]], 5]",
    "list['Task'] | None",
]

ONE_TASK_EACH = [
    "list",
    "list[Task | None]",
    "List[Optional[Task]]",
    "Sequence[Union[Task, None]]",
    "list[Task] | None",
    "tuple[Task, ...]",
    "list[Task[list[int]]]",
    "list[Annotated[Task, 'the caption of a clip']]",
    "Iterator[Task]",
    "list['Task | None']",
    "None",
]

MANY_TASKS_EACH = [
    "list[list[Task] | None]",
    "Sequence[Task | list[Task] | None]",
    "Sequence[Union[Task, Sequence[Task], None]]",
    "List[Optional[List[Task]]]",
    "list[typing.List[Task]]",
    "list[tuple[Task, ...]]",
    "list[Generator[Task, None, None]]",
    "Optional[list[list[Task]]]",
    "tuple[list[Task], ...]",
    "list['Task | list[Task]']",
    "Iterator[list[Task]]",
]


class Each(ProcessingStage):
    def process(self, task):
        return task


class Batches(ProcessingStage):
    def process_batch(self, tasks):
        return tasks


def annotated(stage_class: type, annotation: Any) -> ProcessingStage:
    """Return a stage of this kind with an annotated method."""

    def method(self, given):
        return given

    method.__annotations__["return"] = annotation
    name = "process_batch" if stage_class is Batches else "process"
    return type("Annotated", (stage_class,), {name: method})()


def fans_out(stage: ProcessingStage) -> bool:
    return compile_stage(0, stage).fans_out


def as_text(text: str) -> str:
    """Return the annotation as in a module with ``from __future__ import annotations``."""
    return text


def as_object(text: str) -> Any:
    """Return the annotation as in any other module."""
    return eval(text, dict(NAMES))  # noqa: S307 - only texts from this file


def as_quoted_text(text: str) -> str:
    """Return a quoted annotation as in a module with ``from __future__ import annotations``."""
    return repr(text)


FORMS = pytest.mark.parametrize("form", [as_text, as_object, as_quoted_text])


@FORMS
@pytest.mark.parametrize("text", ONE_TASK)
def test_one_task_is_not_a_fan_out(text, form):
    assert not fans_out(annotated(Each, form(text)))


@FORMS
@pytest.mark.parametrize("text", MANY_TASKS)
def test_a_list_or_an_iterator_is_a_fan_out(text, form):
    assert fans_out(annotated(Each, form(text)))


@FORMS
@pytest.mark.parametrize("text", ONE_TASK_EACH)
def test_the_outer_list_of_a_batch_is_not_a_fan_out(text, form):
    assert not fans_out(annotated(Batches, form(text)))


@FORMS
@pytest.mark.parametrize("text", MANY_TASKS_EACH)
def test_lists_within_the_list_of_a_batch_are_a_fan_out(text, form):
    assert fans_out(annotated(Batches, form(text)))


def test_without_annotations_there_is_no_fan_out():
    assert not fans_out(Each())
    assert not fans_out(Batches())


@pytest.mark.parametrize("annotation", ["not code at all", "list[", "", object(), 5, "~Y | Task", "f(list)"])
def test_an_unreadable_annotation_is_not_a_fan_out(annotation):
    assert not fans_out(annotated(Each, annotation))
    assert not fans_out(annotated(Batches, annotation))


def test_names_need_not_be_importable():
    assert fans_out(annotated(Each, "list[OnlyForTypeCheckers]"))
    assert fans_out(annotated(Each, "abc.Iterator[x.y.OnlyForTypeCheckers] | None"))
    assert fans_out(annotated(Batches, "Sequence[OnlyForTypeCheckers | list[OnlyForTypeCheckers]]"))


def test_type_variables_are_read():
    several = typing.TypeVar("several")
    assert fans_out(annotated(Each, list[several]))
    assert not fans_out(annotated(Each, several))


def test_the_annotation_of_a_function_applies_to_its_stage():
    @processing_stage()
    def split(task: Task) -> list[Task]:
        return [task]

    @processing_stage()
    def keep(task: Task) -> Task | None:
        return task

    assert fans_out(split)
    assert not fans_out(keep)


def test_a_wrapped_method_has_the_annotation_of_the_inner_one():
    def logged(method):
        @functools.wraps(method)
        def wrapper(*args):
            return method(*args)

        return wrapper

    class Split(Each):
        @logged
        def process(self, task) -> list[Task]:
            return [task]

    assert fans_out(Split())


def test_annotations_of_inherited_methods_count():
    class Split(Each):
        def process(self, task) -> typing.Iterator[Task]:
            yield task

    class Finer(Split):
        pass

    class Silent(Split):
        def process(self, task):
            return task

    assert fans_out(Finer())
    assert not fans_out(Silent())


def test_only_the_annotation_of_the_called_method_counts():
    class Both(Batches):
        def process(self, task) -> list[Task]:
            return [task]

    assert not fans_out(Both())


@pytest.mark.parametrize("stage_class", [Each, Batches])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("annotation", ["Task", "list[Task]", "list[list[Task]]"])
def test_a_declared_fan_out_overrides_the_annotation(stage_class, declared, annotation):
    assert fans_out(annotated(stage_class, annotation).with_(fans_out=declared)) is declared


def test_a_class_can_declare_a_fan_out():
    class Split(Each):
        fans_out = True

    assert fans_out(Split())
    assert fans_out(Split().with_(fans_out=None)) is False


@pytest.mark.parametrize("text", ["Optional['list[Task]']", "Union['Task', 'list[Task]']"])
def test_quoted_members_of_unions_are_read(text):
    assert fans_out(annotated(Each, as_object(text)))


def test_a_list_of_a_local_class_is_a_fan_out():
    class Local(Task):
        pass

    assert fans_out(annotated(Each, list[Local]))


class Mapped(ProcessingStage):
    """A user-defined stage that happens to have an attribute ``_function``."""

    def __init__(self, function: Any) -> None:
        self._function = function


class MappedToOne(Mapped):
    def process(self, task) -> Task:
        return Task(data=self._function(task.data))


class MappedToMany(Mapped):
    def process(self, task) -> list[Task]:
        return [Task(data=part) for part in self._function(task.data)]


def words(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize(("stage", "expected"), [(MappedToOne(words), False), (MappedToMany(str.split), True)])
def test_attributes_of_a_stage_are_not_inspected(stage, expected):
    assert fans_out(stage) is expected
