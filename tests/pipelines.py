# SPDX-License-Identifier: Apache-2.0
"""Random pipelines: stages that process each task according to a script, so that tests know the expected result.

Worker processes import this module, so hypothesis is imported only when a test draws pipelines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core import ProcessingStage, Task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hypothesis.strategies import SearchStrategy

    from curator_core import BatchReport

# The actions of a stage on a task. A number means a list of that many new tasks.
DROP, KEEP, RENEW, FAIL = "drop", "keep", "renew", "fail"


class Scripted(ProcessingStage[Task[int], Task[int]]):
    """Performs the action of its script for the number in a task, and records that in the metadata."""

    def __init__(self, name: str, script: list[str | int]) -> None:
        self.name, self.script = name, script

    def action(self, number: int) -> str | int:
        return self.script[number % len(self.script)]

    def process(self, task: Task[int]) -> Any:
        action = self.action(task.data)
        if action == FAIL:
            raise ValueError(f"failed on purpose at {task.data}")
        if action == DROP:
            return None
        task.metadata[self.name] = task.data
        if action == KEEP:
            return task
        if action == RENEW:
            return Task(data=task.data + 1)
        return [Task(data=task.data + number) for number in range(int(action))]


class ScriptedBatches(Scripted):
    """Does the same for whole batches, so that a batch fails as a whole."""

    def process_batch(self, tasks: list[Task[int]]) -> list[Any]:
        return [self.process(task) for task in tasks]


class ScriptedGenerators(Scripted):
    """Yields its outputs one by one, so that it fails after some of them have been passed on."""

    def action(self, number: int) -> str | int:
        action = super().action(number)
        return {KEEP: 1, RENEW: 2, DROP: 0}.get(action, action)  # even one output of a generator is a list

    def process(self, task: Task[int]) -> Any:
        action = self.action(task.data)
        task.metadata[self.name] = task.data
        for number in range(2 if action == FAIL else int(action)):
            yield Task(data=task.data + number)
        if action == FAIL:
            raise ValueError(f"failed on purpose at {task.data}")


def kept(reports: Iterable[BatchReport]) -> list[BatchReport]:
    """Return the reports without those about outputs that were withdrawn, because their generator failed.

    In one process, the outputs of a generator go on before it ends, so observers have seen them.
    """
    reports = [*reports]
    failed = {outcome.task_id for report in reports for outcome in report.inputs if outcome.kind == "failed"}
    prefixes = tuple(f"{task_id}." for task_id in failed)
    return [report for report in reports if not any(task_id.startswith(prefixes) for task_id in report.input_ids)]


def pipelines(least: int = 1, most: int = 5, **settings: SearchStrategy[Any]) -> SearchStrategy[list[Scripted]]:
    """Return a strategy for stages "s0", "s1", … that process tasks of whole numbers.

    Args:
        least: The fewest stages.
        most: The most stages.
        **settings: A strategy for each further setting of a stage, as for `ProcessingStage.with_`. The batch size is
            always drawn.
    """
    from hypothesis import strategies as st

    actions = st.sampled_from([DROP, KEEP, RENEW, FAIL, 0, 1, 2, 3])
    scripts = st.lists(actions, min_size=1, max_size=4)
    drawn = st.fixed_dictionaries({"batch_size": st.integers(1, 5), **settings})
    kinds = st.sampled_from([Scripted, ScriptedBatches, ScriptedGenerators])
    rows = st.lists(st.tuples(kinds, scripts, drawn), min_size=least, max_size=most)
    return rows.map(
        lambda rows: [kind(f"s{number}", script).with_(**given) for number, (kind, script, given) in enumerate(rows)]
    )
