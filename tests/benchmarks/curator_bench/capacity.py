# SPDX-License-Identifier: Apache-2.0
"""`plan_capacity` against real runs: the throughput that it predicts from a small run, and that of a long one.

It runs in an environment with Xenna, and prints one line of JSON, like runners.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curator_bench.harness import cores, only_json_on_stdout
from curator_bench.workloads import use_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from curator_core import Pipeline
    from curator_core.observers import BatchReport

__all__ = ["MEASURED", "PIPELINES", "PREDICTED", "SWEPT", "swept"]

PREDICTED, MEASURED = "predicted_{}_per_s", "measured_{}_per_s"
SWEPT = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # nodes
SMALL = 100  # tasks of the run whose speeds are used
LONG_S = 30.0  # of a run, so that the autoscaler, which decides every 5 s, has decided a few times
_WARM, _TIRED = 0.5, 0.9  # the share of the time of a run in which its throughput is measured


def busy(seconds: float) -> Callable[[Any], Any]:
    """Return a function that uses a core for some CPU time, and returns its argument."""

    def work(value: Any) -> Any:
        use_cpu(seconds)
        return value

    return work


def waiting(seconds: float) -> Callable[[Any], Any]:
    """Return a function that waits, and returns its argument."""

    def work(value: Any) -> Any:
        time.sleep(seconds)
        return value

    return work


@dataclass(frozen=True, slots=True)
class Part:
    """A stage.

    Attributes:
        call: What it does with a payload.
        cpus: The CPUs of a worker.
        times: How many tasks it makes of one; below 1, the share that it keeps.
        workers: The number of its workers; None for any.
    """

    call: Callable[[Any], Any]
    cpus: float = 1.0
    times: float = 1.0
    workers: int | None = None


PIPELINES: dict[str, tuple[str, tuple[Part, ...]]] = {
    "alone": ("one stage, 20 ms of CPU time", (Part(busy(0.02)),)),
    "light-heavy": ("5 ms, then 20 ms, half a CPU each", (Part(busy(0.005), 0.5), Part(busy(0.02), 0.5))),
    "waits": ("a wait of 50 ms, a quarter of a CPU", (Part(waiting(0.05), 0.25),)),
    "fan-out": ("10 ms, then 4 ms for each of five outputs", (Part(busy(0.01), 0.5, 5), Part(busy(0.004), 0.5))),
    "filter": ("5 ms, then 30 ms for every other task", (Part(busy(0.005), 0.5, 0.5), Part(busy(0.03), 0.5))),
    "fixed": ("a wait of 20 ms on one worker, then 5 ms", (Part(waiting(0.02), 0.5, 1, 1), Part(busy(0.005), 0.5))),
}
"""What each pipeline does, and its stages."""


def pipeline_of(parts: tuple[Part, ...]) -> Pipeline:
    """Return the pipeline, whose stages do not share workers."""
    from curator_core import Pipeline, ProcessingStage, Resources, Task

    class Step(ProcessingStage[Task[int], Task[int]]):
        def __init__(self, part: Part) -> None:
            self.part = part

        def process(self, task: Task[int]) -> Task[int] | list[Task[int]] | None:
            made = self.part.call(task.data)
            if self.part.times > 1:
                return [Task(data=made) for _ in range(int(self.part.times))]
            return Task(data=made) if task.data % round(1 / self.part.times) == 0 else None

    stages = []
    for number, part in enumerate(parts):
        stage = Step(part).with_(name=f"Step{number}", resources=Resources(cpus=part.cpus), fusible=False)
        stages.append(stage.with_(num_workers=part.workers))
    return Pipeline("capacity", stages)


def compare(parts: tuple[Part, ...]) -> tuple[float, float]:
    """Return the predicted and the measured throughput of a pipeline, in source tasks per second."""
    from curator_core import LocalExecutor, Task
    from curator_core.observers import RunObserver
    from curator_xenna import ClusterSpec, XennaExecutor, plan_capacity

    class Ends(RunObserver):
        """Notes when the last stage has finished how many of its tasks."""

        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def on_batch(self, report: BatchReport) -> None:
            if report.stage_index == len(parts) - 1:
                self.seen.append((report.start_unix_ns + report.duration_ns, report.num_in))

    pipeline = pipeline_of(parts)
    small = pipeline.run(LocalExecutor(), [Task(data=number) for number in range(SMALL)])
    cluster = ClusterSpec(cpus=cores(), is_embedded=True)
    predicted = plan_capacity(pipeline.compile(fed=True), cluster, small.speeds).tasks_per_s
    count = round(predicted * LONG_S)
    ends = Ends()
    pipeline.run(XennaExecutor(), [Task(data=number) for number in range(count)], observers=[ends])
    return predicted, _steady(ends.seen, count)


def _steady(seen: list[tuple[int, int]], count: int) -> float:
    """Return the source tasks per second in the steady part of a run."""
    first, last = min(seen)[0], max(seen)[0]
    begin, end = (first + share * (last - first) for share in (_WARM, _TIRED))
    inside = sum(number for at, number in seen if begin <= at < end)
    return inside / sum(number for _, number in seen) * count / (end - begin) * 1e9


def swept(nodes: int) -> str:
    """Return the name of the figure for a number of nodes."""
    return f"swept_{nodes}_per_s"


def sweep() -> dict[str, float]:
    """Return the throughput of a pipeline of GPU stages on clusters of more and more nodes, by number of nodes."""
    from curator_core import Pipeline, ProcessingStage, Resources, StageSpeed
    from curator_xenna import ClusterSpec, plan_capacity

    class Clips(ProcessingStage[Any, Any]):
        def process(self, task: Any) -> Any:
            return task

    stages = [
        Clips().with_(name="Split", resources=Resources(cpus=3), fans_out=True),
        Clips().with_(name="Decode", resources=Resources(cpus=1, gpus=0.25)),
        Clips().with_(name="Caption", resources=Resources(cpus=1, gpus=1)),
    ]
    speeds = {"Split": StageSpeed(8, 24, 20), "Decode": StageSpeed(0.3, 0.3), "Caption": StageSpeed(1, 0.2)}
    plan = Pipeline("video", stages).compile(fed=True)
    planned = {nodes: plan_capacity(plan, ClusterSpec(nodes=nodes, cpus=96, gpus=8), speeds) for nodes in SWEPT}
    return {swept(nodes): capacity.tasks_per_s for nodes, capacity in planned.items()}


def main() -> None:
    """Measure all pipelines."""
    with only_json_on_stdout() as stdout:
        values = sweep()
        for name, (_, parts) in PIPELINES.items():
            predicted, measured = compare(parts)
            values |= {PREDICTED.format(name): predicted, MEASURED.format(name): measured}
        print(json.dumps({"values": {name: round(value, 3) for name, value in values.items()}}), file=stdout)


if __name__ == "__main__":
    main()
