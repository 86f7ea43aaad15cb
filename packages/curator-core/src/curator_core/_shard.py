# SPDX-License-Identifier: Apache-2.0
"""Shards: which source tasks belong to a run if several independent runs share a source."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from curator_core._numbers import is_whole
from curator_core.errors import ConfigurationError
from curator_core.tasks import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Shard", "ShardChoice", "read_shard"]

logger = logging.getLogger(__name__)

ShardChoice: TypeAlias = "tuple[int, int] | str"
"""``(index, count)``, or ``"auto"`` to use the environment of an array job."""

_COUNT = "CURATOR_SHARD_COUNT"


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several shards of a source.

    Attributes:
        index: Index of the shard, from 0.
        count: Number of shards.
    """

    index: int
    count: int

    def has(self, source_id: str) -> bool:
        """Whether a source task is in the shard: the hash of its id modulo the count is the index."""
        return int(digest(source_id, 8), 16) % self.count == self.index

    def __str__(self) -> str:
        return f"shard-{self.index}-of-{self.count}"


@dataclass(frozen=True, slots=True)
class _Scheduler:
    """The variables in which a scheduler tells a job which element of an array it is.

    Attributes:
        name: The scheduler.
        index: The variable with the number of the job.
        count: The variable with the number of jobs; empty if `last` implies it, or if it is unknown.
        first: The variable with the lowest number; empty if that is `base`.
        last: The variable with the highest number; empty if there is none.
        step: The variable with the distance between numbers; empty if that is 1.
        base: The lowest number that an array can have.
        none: The value of `index` outside of an array.
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
    # https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode: .spec.completions has no variable
    _Scheduler("Kubernetes", "JOB_COMPLETION_INDEX"),
    # PBS Professional User's Guide, "Job Arrays": only the number has a variable
    _Scheduler("PBS", "PBS_ARRAY_INDEX"),
    # http://docs.adaptivecomputing.com/torque/5-0-3/Content/topics/torque/2-jobs/multiJobSubmission.htm: same as PBS
    _Scheduler("Torque", "PBS_ARRAYID"),
    # https://www.ibm.com/docs/en/spectrum-lsf/10.1.0?topic=variables-environment-set-job-execution
    # The index is 0 outside of arrays. No variable has the lowest number, so [3-5] looks like the end of [1-5].
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
    """Return the shard that a user specified.

    Args:
        given: ``(index, count)``, or ``"auto"``.
        environ: The environment of the process, for ``"auto"``. The first of these schedulers whose variable is set is
            used: Slurm (SLURM_ARRAY_TASK_ID, _COUNT, _MIN, _MAX, _STEP), AWS Batch (AWS_BATCH_JOB_ARRAY_INDEX, _SIZE),
            Cloud Run (CLOUD_RUN_TASK_INDEX, _COUNT), Kubernetes (JOB_COMPLETION_INDEX), PBS (PBS_ARRAY_INDEX), Torque
            (PBS_ARRAYID), LSF (LSB_JOBINDEX, _END), Grid Engine (SGE_TASK_ID, _FIRST, _LAST, _STEPSIZE). If
            CURATOR_SHARD_COUNT is set, it is the count, and the number of the job is the index, from 0, or from 1 on
            LSF and Grid Engine. Kubernetes, PBS, Torque, and LSF require it, because they do not provide the number of
            jobs.

    Raises:
        ConfigurationError: An invalid shard, or an environment that does not name one.
    """
    if given == "auto":
        return _from_environment(environ)
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    if not (is_pair and all(map(is_whole, given))):
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
        hint="submit it as an array job, or pass shard=(index, count)",
    )


def _checked(shard: Shard, given: Any) -> Shard:
    if shard.count < 1:
        raise _invalid(given, "the count is below 1")
    if not 0 <= shard.index < shard.count:
        raise _invalid(given, f"the index is out of range for {shard.count} shards")
    return shard


def _invalid(given: Any, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"invalid shard: {reason}",
        field="shard",
        given=given,
        expected='(index, count) with 0 <= index < count, or "auto"',
        hint="pass shard=(0, 4) for the first of four shards",
    )


class _Array:
    """An array job, as the environment of one of its elements describes it."""

    def __init__(self, scheduler: _Scheduler, environ: Mapping[str, str]) -> None:
        self._scheduler = scheduler
        self._environ = environ

    def shard(self) -> Shard:
        """Return the shard of the element."""
        names = self._scheduler
        number = self._number(names.index)
        if self._environ.get(_COUNT) or not (names.count or names.first):
            return self._of_count(number, self._number(_COUNT))
        return self._of_array(number)

    def _of_count(self, number: int, count: int) -> Shard:
        """Return the shard for a count set by the user. The array may be incomplete, such as one repeated element."""
        names = self._scheduler
        last = self._number(names.last) if names.last in self._environ else number
        for each in (number, last):  # all elements of an array must fail if one of them has no shard
            if not 0 <= each - names.base < count:
                raise self._unclear(f"{each} is not one of {count} numbers that start at {names.base}")
        return Shard(number - names.base, count)

    def _of_array(self, number: int) -> Shard:
        """Return the shard for an array with one element for each shard."""
        names = self._scheduler
        step = self._number(names.step) if names.step in self._environ else 1
        first = self._number(names.first) if names.first else names.base
        last = self._number(names.last) if names.last else None
        count = self._number(names.count) if names.count else None
        if first == last:
            self._check_alone(first)
        if first > 1:
            raise self._unclear(f"it starts at {first}, so other elements may have been submitted before")
        if last is not None and step > 0:
            regular, rest = divmod(last - first, step)
            if rest or count not in (None, regular + 1):
                raise self._unclear("its numbers are not evenly spaced")
            count = regular + 1
        index, rest = divmod(number - first, max(step, 1))
        if rest or not 0 <= index < (count or 0):
            raise self._unclear(f"{number} is not one of {count} numbers that start at {first}")
        return Shard(index, count or 0)

    def _check_alone(self, number: int) -> None:
        """Check the number of an array's only element: if it is the lowest one, there is one shard, with a warning."""
        if number > self._scheduler.base:
            raise self._unclear(f"{number} is its only element, as if one element of a larger array were repeated")
        logger.warning(
            "this array job of %s has one element, so this run processes the whole source; to repeat one element of a "
            "larger array, set %s to the number of elements of that array",
            self._scheduler.name,
            _COUNT,
        )

    def _number(self, name: str) -> int:
        value = self._environ.get(name)
        try:
            return int(value or "")
        except ValueError:
            hint = f"set it to the number of jobs, which {self._scheduler.name} does not provide"
            raise ConfigurationError(
                f"{self._scheduler.index} is set, but {name} is not a number",
                field=name,
                given=value,
                expected="a whole number",
                hint=hint if name == _COUNT else "pass shard=(index, count)",
            ) from None

    def _unclear(self, reason: str) -> ConfigurationError:
        names = self._scheduler
        known = (names.index, names.count, names.first, names.last, names.step, _COUNT)
        return ConfigurationError(
            f"cannot determine the shard of this array job of {names.name}: {reason}",
            field="shard",
            given={name: self._environ[name] for name in known if name in self._environ},
            expected="an array that starts at 0 or 1, such as --array=0-9",
            hint=f"to repeat one element of an array that starts at {names.base}, set {_COUNT} to the number of its "
            "elements; or pass shard=(index, count), with an index from 0",
        )
