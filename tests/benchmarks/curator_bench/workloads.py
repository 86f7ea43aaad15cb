# SPDX-License-Identifier: Apache-2.0
"""The workloads: plain work, independent of any engine, so that every contender does the same.

A workload is a list of payloads and a list of steps. A contender wraps each step in its own kind of stage and each
payload in its own kind of task, runs them, and returns payloads.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator_bench import nemo_text, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["NEMO", "WORKLOADS", "Job", "Step", "Workload"]

NEMO = "nemo-curator"  # name of its environment
CPU_SECONDS = 0.05  # CPU time of a task of `cpu` in each step
ARRAY_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class Job:
    """The size and the directories of a workload.

    Attributes:
        size: Number of tasks.
        stages: Number of steps, if the workload supports any number.
        nbytes: Bytes of a payload, if the workload has large ones.
        documents: Directory of installed packages, whose descriptions or source files are the texts.
        output: The output directory.
    """

    size: int
    stages: int = 3
    nbytes: int = ARRAY_BYTES
    documents: Path = Path()
    output: Path = Path()


@dataclass(frozen=True, slots=True)
class Step:
    """One stage.

    Attributes:
        name: Name of the stage.
        call: Its function, which returns the next payload, or None to drop it.
        batch: Payloads per batch.
        workers: Required number of workers; None lets the contender decide.
    """

    name: str
    call: Callable[[Any], Any]
    batch: int = 1
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of work.

    Attributes:
        name: Its name on the command line.
        says: Its description on the page.
        steps: Returns the stages of a job.
        inputs: Returns the payloads of a job, or the input of its source.
        check: Summarizes the outputs: equal for all contenders, in any order of outputs.
        stages: Default number of steps.
        source: Creates the payloads of a job inside the pipeline, if that is part of the work.
        one_worker: Whether a step has state that all payloads must share.
        unit: What the size of a job counts; empty for none.
        environment: Name of the only environment whose contenders run it; empty for all.
        nemo_stages: Returns stages of NeMo Curator, instead of steps.
    """

    name: str
    says: str
    steps: Callable[[Job], list[Step]]
    inputs: Callable[[Job], list[Any]]
    check: Callable[[Sequence[Any], Job], str]
    stages: int = 3
    source: Callable[[Job], Step] | None = None
    one_worker: bool = False
    unit: str = "tasks"
    environment: str = ""
    nemo_stages: Callable[[Job], list[Any]] | None = None

    def cpus(self, job: Job) -> float:
        """Return the CPUs that each stage asks for.

        Xenna's streaming mode must place all stages at once, in 95% of the cores, rounded down: one of two cores. A
        quarter of a CPU per stage, or less with more than four stages, fits for all contenders.
        """
        return min(0.25, int(100 / self.num_stages(job)) / 100)

    def num_stages(self, job: Job) -> int:
        """Return the number of stages of a job, with the source."""
        if self.nemo_stages is not None:
            return self.stages
        return len(self.steps(job)) + (self.source is not None)


# --- tiny and deep: almost no work, so that the cost of the framework remains ----------------------------------


def add_one(number: int) -> int:
    """Do almost nothing."""
    return number + 1


def _light_steps(job: Job) -> list[Step]:
    return [Step(f"Light{number:02d}", add_one) for number in range(job.stages)]


def _numbers(job: Job) -> list[int]:
    return list(range(job.size))


def _sum_of(outputs: Sequence[int], job: Job) -> str:
    return f"{len(outputs)} numbers, sum {sum(outputs)}"


# --- cpu: every task needs a core for a while ---------------------------------------------------------------


def use_cpu(seconds: float) -> None:
    """Use CPU time of this thread, not wall time, so that sharing a core does not shorten it."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(500))


def burn(number: int) -> int:
    """Use a core for a while."""
    use_cpu(CPU_SECONDS)
    return number + 1


def _burning_steps(job: Job) -> list[Step]:
    return [Step(f"Burn{number:02d}", burn) for number in range(job.stages)]


# --- payload: large arrays, each step makes a new one -------------------------------------------------------


def next_array(array: Any) -> Any:
    """Return a new array of the same size."""
    return array + 1.0


def _array_steps(job: Job) -> list[Step]:
    return [Step(f"Array{number:02d}", next_array) for number in range(job.stages)]


def _arrays(job: Job) -> list[Any]:
    import numpy as np

    return [np.full(max(1, job.nbytes // 8), float(number)) for number in range(job.size)]


def _sum_of_arrays(outputs: Sequence[Any], job: Job) -> str:
    ends = sum(float(array[0]) + float(array[-1]) for array in outputs)
    return f"{len(outputs)} arrays of {sum(array.nbytes for array in outputs)} bytes, ends {ends:.0f}"


# --- skew: some tasks take twenty times as long as others ---------------------------------------------------


def skewed_seconds(size: int) -> list[float]:
    """Return durations from 0.1 to 2 seconds, most of them short, and the same in every run."""
    draw = random.Random(64)
    return [round(0.1 * 20 ** (draw.random() ** 2), 4) for _ in range(size)]


def work_and_wait(task: tuple[int, float]) -> tuple[int, float]:
    """Use CPU time for half of a task's duration, and wait for the other half, as for a disk or a service."""
    number, seconds = task
    use_cpu(seconds / 2)
    time.sleep(seconds / 2)
    return number + 1, seconds


def add_one_to_first(task: tuple[int, float]) -> tuple[int, float]:
    """Do almost nothing."""
    return task[0] + 1, task[1]


def _skewed_steps(job: Job) -> list[Step]:
    return [Step("Before", add_one_to_first), Step("WorkAndWait", work_and_wait), Step("After", add_one_to_first)]


def _skewed_tasks(job: Job) -> list[tuple[int, float]]:
    return list(enumerate(skewed_seconds(job.size)))


def _sum_of_skewed(outputs: Sequence[tuple[int, float]], job: Job) -> str:
    numbers, seconds = sum(number for number, _ in outputs), sum(took for _, took in outputs)
    return f"{len(outputs)} tasks, sum {numbers}, {seconds:.3f} s"


# --- text: the example's pipeline over the descriptions of installed packages -------------------------------


def _text_source(job: Job) -> Step:
    return Step("FindPackages", texts.FindPackages(job.documents))


def _text_steps(job: Job) -> list[Step]:
    return [
        Step("ReadDescriptions", texts.ReadDescriptions(job.documents)),
        Step("CleanMarkup", texts.clean_markup),
        Step("MeasureQuality", texts.measure_quality),
        Step("FilterByQuality", texts.filter_by_quality, batch=4),
        Step("DropDuplicates", texts.DropDuplicates(), workers=1),
        Step("WriteParquet", texts.WriteParquet(job.output)),
    ]


def _nothing(job: Job) -> list[Any]:
    return []


def _texts_written(outputs: Sequence[Any], job: Job) -> str:
    return texts.summary(job.output)


# --- NeMo Curator's own stages and tasks, on its executors and on ours ---------------------------------------


def add_one_to_each(batch: list[int]) -> list[int]:
    """Do almost nothing."""
    return [number + 1 for number in batch]


def _batch_steps(job: Job) -> list[Step]:
    return [Step(f"Light{number:02d}", add_one_to_each) for number in range(job.stages)]


def _batches(job: Job) -> list[list[int]]:
    return [[*range(start, start + 16)] for start in range(job.size)]


def _sum_of_batches(outputs: Sequence[list[int]], job: Job) -> str:
    return f"{len(outputs)} batches, sum {sum(map(sum, outputs))}"


def _documents(job: Job) -> list[Any]:
    nemo_text.write_documents(job.documents, job.output, job.size)
    return []


def _documents_written(outputs: Sequence[Any], job: Job) -> str:
    return nemo_text.summary(job.output)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "tiny", "tasks of one number each, through 3 stages that add one to it", _light_steps, _numbers, _sum_of
        ),
        Workload("cpu", "tasks of 50 ms of CPU time in each of 3 stages", _burning_steps, _numbers, _sum_of),
        Workload(
            "payload",
            "tasks of one 8 MB array each, through 3 stages that each create a new array from it",
            _array_steps,
            _arrays,
            _sum_of_arrays,
        ),
        Workload(
            "skew",
            "tasks of 0.1 to 2 s in the second of 3 stages, half CPU time and half waiting; most are short",
            _skewed_steps,
            _skewed_tasks,
            _sum_of_skewed,
        ),
        Workload(
            "text",
            "the example's 7 stages, over the descriptions of the packages of one environment",
            _text_steps,
            _nothing,
            _texts_written,
            stages=6,
            source=_text_source,
            one_worker=True,
            unit="",
        ),
        Workload(
            "deep", "tasks of one number each, through 12 such stages", _light_steps, _numbers, _sum_of, stages=12
        ),
        Workload(
            "nemo-light",
            "batches of 16 numbers each as tasks of NeMo Curator, through 4 of its stages that add one to each",
            _batch_steps,
            _batches,
            _sum_of_batches,
            stages=4,
            environment=NEMO,
        ),
        Workload(
            "nemo-text",
            "stages of NeMo Curator that read documents as JSON Lines, filter them by words and by symbols, repair "
            "their Unicode, and write them; the documents are pieces of the source files of installed packages",
            _nothing,
            _documents,
            _documents_written,
            stages=nemo_text.NUM_STAGES,
            unit="documents",
            environment=NEMO,
            nemo_stages=nemo_text.stages,
        ),
    )
}
