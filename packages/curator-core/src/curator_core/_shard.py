# SPDX-License-Identifier: Apache-2.0
"""Which source tasks are a run's, where several independent runs share a source."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_core.errors import ConfigurationError
from curator_core.tasks import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Shard", "ShardChoice", "read_shard"]

logger = logging.getLogger(__name__)

ShardChoice: TypeAlias = "tuple[int, int] | str"
"""``(index, count)``, or ``"auto"`` for what the scheduler of an array job says."""

_COUNT = "CURATOR_SHARD_COUNT"


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of a source.

    Attributes:
        index: From 0.
        count: How many there are.
    """

    index: int
    count: int

    def has(self, source_id: str) -> bool:
        """Whether a source task is in it: its id, hashed, leaves the index when divided by the count."""
        return int(digest(source_id, 8), 16) % self.count == self.index

    def __str__(self) -> str:
        return f"shard-{self.index}-of-{self.count}"


@dataclass(frozen=True, slots=True)
class _Scheduler:
    """How a scheduler says which element of an array a job is.

    Attributes:
        name: The scheduler.
        index: The variable that has the number of the job.
        count: The variable that says how many there are; empty where `last` says it, or nothing does.
        first: The variable that has the lowest number; empty where that is `base`.
        last: The variable that has the highest number; empty where there is none.
        step: The variable that has the distance between numbers; empty where it is 1.
        base: The lowest number that there can be.
        none: What `index` says outside of an array.
    """

    name: str
    index: str
    count: str = ""
    first: str = ""
    last: str = ""
    step: str = ""
    base: int = 0
    none: str = ""


_SCHEDULERS = (
    # https://slurm.schedmd.com/job_array.html
    _Scheduler(
        "Slurm",
        "SLURM_ARRAY_TASK_ID",
        count="SLURM_ARRAY_TASK_COUNT",
        first="SLURM_ARRAY_TASK_MIN",
        last="SLURM_ARRAY_TASK_MAX",
        step="SLURM_ARRAY_TASK_STEP",
    ),
    # https://docs.aws.amazon.com/batch/latest/userguide/job_env_vars.html
    _Scheduler("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", count="AWS_BATCH_JOB_ARRAY_SIZE"),
    # https://cloud.google.com/run/docs/container-contract#jobs-env-vars
    _Scheduler("Cloud Run", "CLOUD_RUN_TASK_INDEX", count="CLOUD_RUN_TASK_COUNT"),
    # https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode: no variable has .spec.completions
    _Scheduler("Kubernetes", "JOB_COMPLETION_INDEX"),
    # PBS Professional User's Guide, "Job Arrays": there is a variable for the number alone
    _Scheduler("PBS", "PBS_ARRAY_INDEX"),
    # http://docs.adaptivecomputing.com/torque/5-0-3/Content/topics/torque/2-jobs/multiJobSubmission.htm: likewise
    _Scheduler("Torque", "PBS_ARRAYID"),
    # https://www.ibm.com/docs/en/spectrum-lsf/10.1.0?topic=variables-environment-set-job-execution
    # 0 outside of arrays; and no variable has the lowest number, so that [3-5] would pass for the end of [1-5].
    _Scheduler("LSF", "LSB_JOBINDEX", last="LSB_JOBINDEX_END", base=1, none="0"),
    # qsub(1) of Grid Engine: "undefined" outside of arrays
    _Scheduler(
        "Grid Engine",
        "SGE_TASK_ID",
        first="SGE_TASK_FIRST",
        last="SGE_TASK_LAST",
        step="SGE_TASK_STEPSIZE",
        base=1,
        none="undefined",
    ),
)


def read_shard(given: Any, environ: Mapping[str, str]) -> Shard:
    """The shard that a user means.

    Args:
        given: ``(index, count)``, or ``"auto"``.
        environ: The environment of the process, for ``"auto"``. The first of these schedulers counts whose variable is
            there: Slurm (SLURM_ARRAY_TASK_ID, _COUNT, _MIN, _MAX, _STEP), AWS Batch (AWS_BATCH_JOB_ARRAY_INDEX, _SIZE),
            Cloud Run (CLOUD_RUN_TASK_INDEX, _COUNT), Kubernetes (JOB_COMPLETION_INDEX), PBS (PBS_ARRAY_INDEX), Torque
            (PBS_ARRAYID), LSF (LSB_JOBINDEX, _END), Grid Engine (SGE_TASK_ID, _FIRST, _LAST, _STEPSIZE). Where
            CURATOR_SHARD_COUNT is set, that is the count, and the number of the job the index, from 0, or from 1 on LSF
            and Grid Engine. Kubernetes, PBS, Torque and LSF need it, since they do not say how many there are.

    Raises:
        ConfigurationError: An invalid shard, or an environment that does not name one.
    """
    if given == "auto":
        return _from_environment(environ)
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    if not (is_pair and all(isinstance(each, int) and not isinstance(each, bool) for each in given)):
        raise _invalid(given, "it is not a pair of an index and a count")
    return _checked(Shard(*given), given)


def _from_environment(environ: Mapping[str, str]) -> Shard:
    for each in _SCHEDULERS:
        if environ.get(each.index, each.none) != each.none:
            return _Array(each, environ).shard()
    raise ConfigurationError(
        "this process is not part of an array job",
        field="shard",
        given="auto",
        expected=f"one of the variables {', '.join(each.index for each in _SCHEDULERS)}",
        hint="submit it as an array job, or say shard=(index, count)",
    )


def _checked(shard: Shard, given: Any) -> Shard:
    if shard.count < 1:
        raise _invalid(given, "there are no shards")
    if not 0 <= shard.index < shard.count:
        raise _invalid(given, f"the index is not in the range of {shard.count} shards")
    return shard


def _invalid(given: Any, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"invalid shard: {reason}",
        field="shard",
        given=given,
        expected='(index, count) with 0 <= index < count, or "auto"',
        hint="shard=(0, 4) is the first of four",
    )


class _Array:
    """An array job, as the environment of one of its elements describes it.

    Args:
        scheduler: Whose.
        environ: The environment.
    """

    def __init__(self, scheduler: _Scheduler, environ: Mapping[str, str]) -> None:
        self._scheduler = scheduler
        self._environ = environ

    def shard(self) -> Shard:
        """Which shard the element is."""
        names = self._scheduler
        number = self._number(names.index)
        if self._environ.get(_COUNT) or not (names.count or names.first):
            return self._of_count(number, self._number(_COUNT))
        return self._of_array(number)

    def _of_count(self, number: int, count: int) -> Shard:
        """The shard where the count is that of the user: the array may be a part of all, such as one to be repeated."""
        names = self._scheduler
        last = self._number(names.last) if names.last in self._environ else number
        for each in (number, last):  # each element of an array is to see that one of them has no shard
            if not 0 <= each - names.base < count:
                raise self._unclear(f"{each} is not one of {count} numbers from {names.base}")
        return Shard(number - names.base, count)

    def _of_array(self, number: int) -> Shard:
        """The shard where the array has one element for each."""
        names = self._scheduler
        step = self._number(names.step) if names.step in self._environ else 1
        first = self._number(names.first) if names.first else names.base
        last = self._number(names.last) if names.last else None
        count = self._number(names.count) if names.count else None
        if first == last:
            self._check_alone(first)
        if first > 1:
            raise self._unclear(f"it begins at {first}, so that other elements may have been submitted before")
        if last is not None and step > 0:
            regular, rest = divmod(last - first, step)
            if rest or count not in (None, regular + 1):
                raise self._unclear("its numbers are not evenly spaced")
            count = regular + 1
        index, rest = divmod(number - first, max(step, 1))
        if rest or not 0 <= index < (count or 0):
            raise self._unclear(f"{number} is not one of {count} numbers from {first}")
        return Shard(index, count or 0)

    def _check_alone(self, number: int) -> None:
        """See whether an array of one element is all of it. By its number it may be: then there is one shard."""
        if number > self._scheduler.base:
            raise self._unclear(f"{number} is its only element, as where one of several is repeated")
        logger.warning(
            "this array job of %s has one element, so this run has the whole source; to repeat one element of a "
            "larger array, set %s to the number of its elements",
            self._scheduler.name,
            _COUNT,
        )

    def _number(self, name: str) -> int:
        value = self._environ.get(name)
        try:
            return int(value or "")
        except ValueError:
            hint = f"set it to the number of jobs, which {self._scheduler.name} does not say"
            raise ConfigurationError(
                f"{self._scheduler.index} is set, and {name} is not a number",
                field=name,
                given=value,
                expected="a whole number",
                hint=hint if name == _COUNT else "say shard=(index, count)",
            ) from None

    def _unclear(self, reason: str) -> ConfigurationError:
        names = self._scheduler
        known = (names.index, names.count, names.first, names.last, names.step, _COUNT)
        return ConfigurationError(
            f"this array job of {names.name} does not say which shard it is: {reason}",
            field="shard",
            given={name: self._environ[name] for name in known if name in self._environ},
            expected="an array from 0 or 1 on, such as --array=0-9",
            hint=f"to repeat one element of an array from {names.base}, set {_COUNT} to the number of its elements; "
            "or say shard=(index, count), with an index from 0",
        )
