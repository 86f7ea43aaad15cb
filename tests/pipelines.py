# SPDX-License-Identifier: Apache-2.0
"""Random pipelines: stages that do with each task what their script says, so that a test knows what comes of it.

Worker processes import this module, so hypothesis is imported only where a test draws pipelines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curator_core import ProcessingStage, Task

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

# What a stage does with a task. A number stands for a list of that many new tasks.
DROP, KEEP, RENEW, FAIL = "drop", "keep", "renew", "fail"


class Scripted(ProcessingStage[Task[int], Task[int]]):
    """Does what its script says for the number in a task, and notes in the metadata that it did."""

    def __init__(self, name: str, script: list[str | int]) -> None:
        self.name, self.script = name, script

    def action(self, number: int) -> str | int:
        return self.script[number % len(self.script)]

    def process(self, task: Task[int]) -> Any:
        action = self.action(task.data)
        if action == FAIL:
            raise ValueError(f"told to fail at {task.data}")
        if action == DROP:
            return None
        task.metadata[self.name] = task.data
        if action == KEEP:
            return task
        if action == RENEW:
            return Task(data=task.data + 1)
        return [Task(data=task.data + number) for number in range(int(action))]


class ScriptedBatches(Scripted):
    """The same, a batch at a time, so that a batch fails as a whole."""

    def process_batch(self, tasks: list[Task[int]]) -> list[Any]:
        return [self.process(task) for task in tasks]


class ScriptedGenerators(Scripted):
    """Makes its outputs one by one, so that it fails when some of them have gone on."""

    def action(self, number: int) -> str | int:
        action = super().action(number)
        return {KEEP: 1, RENEW: 2, DROP: 0}.get(action, action)  # what a generator gives is a list, also one of one

    def process(self, task: Task[int]) -> Any:
        action = self.action(task.data)
        task.metadata[self.name] = task.data
        for number in range(2 if action == FAIL else int(action)):
            yield Task(data=task.data + number)
        if action == FAIL:
            raise ValueError(f"told to fail at {task.data}")


def pipelines(least: int = 1, most: int = 5, **settings: SearchStrategy[Any]) -> SearchStrategy[list[Scripted]]:
    """Stages "s0", "s1", … that act on tasks of whole numbers.

    Args:
        least: The fewest stages.
        most: The most stages.
        **settings: A strategy for each further setting of a stage, as `ProcessingStage.with_` takes them. The size
            of a batch is always drawn.
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
