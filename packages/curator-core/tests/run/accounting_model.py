# SPDX-License-Identifier: Apache-2.0
"""A model to compare the accounts of a run with: every task in every stage, with its outcome, in one dict."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from curator_core.results import StageSummary

DRIVER = "(driver)"  # the source id of the source stage's own task, if the stage runs in the driver


class Node(NamedTuple):
    """A task in a stage, and the source task that it descends from."""

    source_id: str
    stage: int
    task_id: str


class Model:
    """All tasks and their outcomes, except those that are withdrawn and made again."""

    def __init__(self, stages: int, first: int) -> None:
        self.stages, self.first = stages, first
        self.sources: list[str] = []
        self.became: dict[Node, tuple[str, list[str]] | None] = {}  # kind and outputs; None: not known yet
        self.batches, self.retried, self.workers = Counter[int](), Counter[int](), Counter[int]()
        self.restarts = 0
        self.joined: list[set[str]] = []  # source tasks with common descendants, disjoint

    def admit(self, source_id: str) -> Node:
        self.sources.append(source_id)
        return self.begin(Node(source_id, self.first, source_id))

    def begin(self, node: Node) -> Node:
        assert node not in self.became
        self.became[node] = None
        return node

    def end(self, node: Node, kind: str, made: list[str]) -> list[Node]:
        """Return the tasks of the next stage; outputs of a source in the driver are admitted separately."""
        assert self.became[node] is None
        self.became[node] = kind, made
        goes_on = node.stage + 1 < self.stages and node.source_id != DRIVER
        return [self.begin(Node(node.source_id, node.stage + 1, task_id)) for task_id in made if goes_on]

    def merge(self, batch: list[Node], made: list[str]) -> list[Node]:
        """End a batch whose outputs are made of all its inputs together."""
        sources = {node.source_id for node in batch}
        touched = [group for group in self.joined if group & sources]
        self.joined = [group for group in self.joined if group not in touched] + [sources.union(*touched)]
        for node in batch[1:]:
            self.end(node, "merged", [])
        return self.end(batch[0], "out", made)

    def restart(self) -> list[Node]:
        again = self.unfinished
        self.restarts += 1
        self.became = {node: fate for node, fate in self.became.items() if node.source_id not in again}
        self.joined = [group for group in self.joined if not group & {*again}]
        return [self.begin(Node(source_id, self.first, source_id)) for source_id in again]

    @property
    def unfinished(self) -> list[str]:
        under_way = {node.source_id for node, fate in self.became.items() if fate is None}
        under_way |= {source_id for group in self.joined if group & under_way for source_id in group}
        return [source_id for source_id in self.sources if source_id in under_way]

    @property
    def failed(self) -> list[tuple[str, str]]:
        ended = ((node, fate[0]) for node, fate in self.became.items() if fate)
        return sorted((f"stage {node.stage}", node.task_id) for node, kind in ended if kind == "failed")

    @property
    def outputs(self) -> list[str]:
        ended = ((node, fate[1]) for node, fate in self.became.items() if fate)
        return sorted(task_id for node, made in ended if node.stage + 1 == self.stages for task_id in made)

    @property
    def missing(self) -> list[str]:
        """Tasks that were made but not reported, as the run describes them."""
        said = []
        for stage in range(self.stages):
            fates = [fate for node, fate in self.became.items() if node.stage == stage]
            before = f"'stage {stage - 1}'" if stage else "the input"
            if silent := fates.count(None):
                said.append(f"{silent} of {len(fates)} tasks between {before} and 'stage {stage}'")
        return said

    def summary(self, stage: int) -> StageSummary:
        ended = [fate for node, fate in self.became.items() if node.stage == stage and fate]
        kinds = Counter(kind for kind, _ in ended)
        return StageSummary(
            name=f"stage {stage}",
            batches=self.batches[stage],
            tasks_in=len(ended),
            tasks_passed=kinds["out"],
            tasks_out=sum(len(made) for _, made in ended),
            tasks_filtered=kinds["filtered"],
            tasks_failed=kinds["failed"],
            tasks_merged=kinds["merged"],
            attempts_retried=self.retried[stage],
            workers=self.workers[stage],
        )
