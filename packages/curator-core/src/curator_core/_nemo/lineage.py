# SPDX-License-Identifier: Apache-2.0
"""Which outputs a stage of NeMo Curator made of which inputs, and the ids that NeMo Curator gives to the outputs.

NeMo Curator's stages return a flat list for a batch. What each input became is certain if there is a single input, or
if the stage returns its inputs themselves; a list of equal length is one output for each input, by NeMo Curator's own
rule. Anything else is made of all inputs together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nemo_curator.tasks.sentinels import FailedTask, NoneTask

from curator_core.tasks import digest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Inputs", "Made", "assign_ids", "made_of"]


class Made(NamedTuple):
    """What a stage made of an input.

    Attributes:
        outputs: The output tasks.
        failed: Whether the stage gave up on it, or on a part of it.
        merged: Whether it went into the outputs of other inputs.
    """

    outputs: Sequence[Any] = ()
    failed: bool = False
    merged: bool = False


class Inputs:
    """The inputs of a call, as they were before it: stages work in place.

    Args:
        tasks: The inputs.
    """

    def __init__(self, tasks: Sequence[Any]) -> None:
        self.tasks = tasks
        self.ids = [task.task_id for task in tasks]
        self.num_items = sum(task.num_items for task in tasks)
        self._numbers = {id(task): number for number, task in enumerate(tasks)}
        self._payloads = [(id(task.data), task.num_items) for task in tasks]

    def match(self, results: Sequence[Any]) -> list[Made]:
        """Return what became of each input.

        Args:
            results: What the call returned: tasks, None, and NeMo Curator's markers.
        """
        if len(self.tasks) == 1:
            return [made_of(results)]
        returned = [self._numbers.get(id(result)) for result in results if not _is_marker(result)]
        if None not in returned and len({*returned}) == len(returned):
            return self._match_returned(results)
        if len(self.tasks) == len(results):
            return [made_of([result]) for result in results]
        return self._together(results)

    def _match_returned(self, results: Sequence[Any]) -> list[Made]:
        """Return what became of each input if all outputs are inputs: those that are missing were dropped, or failed.

        If an input that is returned has another payload than before, the missing ones may have gone into it.
        """
        places = {id(result): place for place, result in enumerate(results) if not _is_marker(result)}
        missing = [number for number, task in enumerate(self.tasks) if id(task) not in places]
        in_place = len(self.tasks) == len(results) and all(
            self._numbers[task_id] == place for task_id, place in places.items()
        )
        failures = [isinstance(result, FailedTask) for result in results]
        if not in_place:  # the position of a marker then says nothing: all that are missing may be meant
            failures = [any(failures)] * len(self.tasks)
        are_merged = bool(missing and places) and not in_place and not all(map(self._is_unchanged, places))
        return [
            Made(failed=failures[number], merged=are_merged and not failures[number])
            if number in missing
            else Made([task])
            for number, task in enumerate(self.tasks)
        ]

    def _is_unchanged(self, task_id: int) -> bool:
        number = self._numbers[task_id]
        task = self.tasks[number]
        return (id(task.data), task.num_items) == self._payloads[number]

    def _together(self, results: Sequence[Any]) -> list[Made]:
        """Return what became of the inputs if it is not known which outputs were made of which of them."""
        made = made_of(results)
        if not made.outputs:
            return [made] * len(self.tasks)
        others = Made(failed=made.failed, merged=not made.failed)
        return [made, *[others] * (len(self.tasks) - 1)]


def made_of(results: Sequence[Any]) -> Made:
    """Return what a single input became, from what the stage returned for it."""
    outputs = [result for result in results if not _is_marker(result)]
    return Made(outputs, failed=any(isinstance(result, FailedTask) for result in results))


def _is_marker(result: Any) -> bool:
    return result is None or isinstance(result, (NoneTask, FailedTask))


def assign_ids(stage: Any, parents: Sequence[str], results: Sequence[Any]) -> None:
    """Set the ids of outputs as NeMo Curator does.

    Where it would choose a random id, the id is a digest of the stage and the parents: the same for the same batch.

    Args:
        stage: The stage.
        parents: The ids of the inputs, from before the call.
        results: What the call returned. Markers count as positions.
    """
    if len(parents) != 1 and len(parents) != len(results):
        name = digest("\0".join([stage.name, *parents]), 16)
        for index, task in enumerate(results):
            if task is not None:
                task.task_id = f"r{name}-{index}"
        return
    is_fan_out = len(parents) == 1
    for place, task in enumerate(results):
        if task is not None:
            parent, index = (parents[0], place) if is_fan_out else (parents[place], 0)
            own = task.get_deterministic_id() if stage.is_source_stage else None
            task._set_task_id(parent, own or index)
