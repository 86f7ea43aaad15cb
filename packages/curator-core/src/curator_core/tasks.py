# SPDX-License-Identifier: Apache-2.0
"""A task: data on its way through the stages, with the framework's state beside it.

The framework's state (id, history, metadata) is separate from the user's data: it is read before a stage's code
runs and stamped on all its outputs, so a stage that returns a brand-new task copies nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

from curator_core._performance import stats_of
from curator_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from curator_core._performance import PerfRow, StagePerfStats

__all__ = [
    "UNSEEN",
    "DocumentBatch",
    "EmptyTask",
    "FileGroupTask",
    "SourceIds",
    "Task",
    "TaskState",
    "child_id",
    "digest",
    "new_state",
    "stamp",
    "state_of",
]


T = TypeVar("T")

# Names that can be ids unchanged: not only digits, which are ordinals, not like the hash of a name, and not like a
# repeated name.
_READABLE_ID = r"(?!\d+$)(?!h[0-9a-f]{20}$)(?!.*--)[A-Za-z0-9_-]{1,64}"  # compiled when a task first names itself


TaskState: TypeAlias = "tuple[str, tuple[PerfRow, ...], dict[str, Any] | None]"
"""What the framework knows about a task: its id, the batches it went through (oldest first), and its metadata, which
is None until first accessed. It is part of the task's pickle. A plain tuple: one is made for each task and stage, and
a NamedTuple takes three times as long."""


def new_state(task_id: str = "", perf: tuple[PerfRow, ...] = (), metadata: dict[str, Any] | None = None) -> TaskState:
    """Return a state made from its parts."""
    return task_id, perf, metadata


UNSEEN = new_state()
"""The state of a task that no pipeline has seen."""

_BYTES = (bytes, bytearray)
_TEXT_OR_BYTES = (str, bytes, bytearray, memoryview)


@dataclass
class Task(Generic[T]):
    """Data on its way through a pipeline.

    Subclass it with more fields if the data alone is not enough:

        @dataclass
        class VideoTask(Task[bytes]):
            fps: float = 0.0

    Attributes:
        data: The payload.
        dataset_name: The dataset that it belongs to, for your own use.
    """

    data: T
    dataset_name: str = ""

    # A class attribute, so that it is not a field: init, repr, and == ignore it.
    _state: ClassVar[TaskState] = UNSEEN

    @property
    def task_id(self) -> str:
        """The origin of the task: the source task's ordinal or own name, then a segment for each fan-out.

        The same in every run on the same input. Empty until a pipeline has seen the task.
        """
        return self._state[0]

    @property
    def stage_perf(self) -> tuple[StagePerfStats, ...]:
        """Performance of the batches this task went through, oldest first."""
        return tuple(map(stats_of, self._state[1]))

    @property
    def metadata(self) -> dict[str, Any]:
        """Notes that stay with the task and are passed on to tasks made from it. Keep them small."""
        task_id, perf, notes = self._state
        if notes is None:
            notes = {}
            stamp(self, (task_id, perf, notes))
        return notes

    @property
    def num_items(self) -> int:
        """How many items the task has: the length of sized data other than text and bytes, otherwise 1."""
        data = self.data
        if hasattr(data, "__len__") and not isinstance(data, _TEXT_OR_BYTES):
            try:
                return len(data)
            except TypeError:  # an array without dimensions
                pass
        return 1

    @property
    def num_bytes(self) -> int:
        """Bytes of payload if they are known at no cost, otherwise 0."""
        data = self.data
        if isinstance(data, _BYTES):
            return len(data)
        size = getattr(data, "nbytes", 0)  # numpy arrays, Arrow tables, memoryviews, torch tensors
        return size if isinstance(size, int) else 0

    def validate(self) -> bool:
        """Whether the task can be processed; checked before each batch. Override it to check your data."""
        return True

    def get_deterministic_id(self) -> str | None:
        """Return a name made from the task's content, for a source task; None names it by its position.

        With its own name, a task keeps its id, and its writers their file names, when the source lists
        in another order.
        """
        return None


@dataclass(repr=False, eq=False)  # inherited from Task: the fields are the same
class EmptyTask(Task[None]):
    """The task that a source stage receives in a run without initial tasks."""

    data: None = None

    @property
    def num_items(self) -> int:
        """0: the task has no data yet."""
        return 0


def state_of(task: Any) -> TaskState:
    """Return the framework's state of a task; an empty one for a task that no pipeline has seen."""
    return task._state  # type: ignore[no-any-return]


def stamp(task: Any, state: TaskState) -> None:
    """Put the framework's state on a task."""
    # Bypasses any __setattr__ of the user's class, as for a frozen dataclass.
    task.__dict__["_state"] = state


def child_id(parent: str, index: int) -> str:
    """Return the id of the output at ``index`` in the list that a stage made from ``parent``."""
    return f"{parent}.{index}" if parent else str(index)


def digest(text: str, size: int) -> str:
    """Return a hash of a text as ``size`` bytes in hex; the same everywhere and always."""
    from hashlib import blake2b  # noqa: PLC0415 - loads OpenSSL, which an import of this package does not need

    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


class SourceIds:
    """Assigns ids to the source tasks of a run, each one once.

    Args:
        content_id: Names a task without its own name by its content; None names it by its position.
    """

    def __init__(self, content_id: Callable[[Any], str] | None = None) -> None:
        self._content_id = content_id
        self._ordinal = 0
        self._times_seen: dict[str, int] = {}

    def copy(self) -> SourceIds:
        """Return a copy, to be dropped if the tasks named with it are dropped."""
        other = SourceIds(self._content_id)
        other._ordinal, other._times_seen = self._ordinal, self._times_seen.copy()
        return other

    def name(self, task: Any) -> str:
        """Return the id of the next source task: its own name, made safe for file names, or its content or position.

        Two tasks of the same name stay separate: the id of the second one ends in ``--2``, which no name does.
        """
        ordinal, self._ordinal = self._ordinal, self._ordinal + 1
        name = task.get_deterministic_id()
        if name is None:
            if self._content_id is None:
                return str(ordinal)
            name = self._content_id(task)
        name = str(name)
        if not re.fullmatch(_READABLE_ID, name):
            name = f"h{digest(name, 10)}"
        times = self._times_seen[name] = self._times_seen.get(name, 0) + 1
        return name if times == 1 else f"{name}--{times}"


Records: TypeAlias = "list[dict[str, Any]]"


@dataclass
class FileGroupTask(Task[list[str]]):
    """The files of one partition of a source, or a range of one file.

    The id is derived from the content: the same paths and the same range give the same id.

    Attributes:
        data: Paths or fsspec URLs.
        byte_range: For a task that is a range of its only file: the first byte of the range, and the byte after the
            last. A line or Parquet row group that starts in the range belongs to the task, wherever it ends.
    """

    byte_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.byte_range is not None and len(self.data) != 1:
            raise ConfigurationError(
                "a byte range needs exactly one file",
                field="byte_range",
                given=self.data,
                expected="a list of one path",
            )

    @property
    def num_bytes(self) -> int:
        """Bytes of the range, because that is how much a worker reads; 0 for whole files."""
        return 0 if self.byte_range is None else self.byte_range[1] - self.byte_range[0]

    def get_deterministic_id(self) -> str:
        """Return a hash of the paths, in order, and of the range, if there is one."""
        import json  # noqa: PLC0415 - takes 2 ms, too much for an import of this package

        content = self.data if self.byte_range is None else [*self.data, self.byte_range]
        return f"files-{digest(json.dumps(content), 10)}"


@dataclass(repr=False, eq=False)  # inherits both from Task: the fields are the same
class DocumentBatch(Task["Records | pa.Table"]):
    """Records with columns: a list of dicts, or an Arrow table (extra ``parquet``).

    Attributes:
        data: The records.
    """

    def __post_init__(self) -> None:
        if isinstance(self.data, list) or hasattr(self.data, "column_names"):
            return
        raise ConfigurationError(
            "invalid data for a DocumentBatch",
            field="data",
            given=self.data,
            expected="a list of dicts or a pyarrow.Table",
            hint="convert a pandas DataFrame with DataFrame.to_dict('records') or pyarrow.Table.from_pandas",
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle. Without this, a slice of an Arrow table would carry the whole original table."""
        if isinstance(self.data, list):
            return self.__dict__
        from curator_core._arrow import compact  # noqa: PLC0415 - pyarrow is an optional extra

        return {**self.__dict__, "data": compact(self.data)}

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order of first appearance."""
        if isinstance(self.data, list):
            return list(dict.fromkeys(name for record in self.data for name in record))
        return list(self.data.column_names)

    @property
    def num_items(self) -> int:
        """Number of records."""
        return len(self.data)

    def to_records(self) -> Records:
        """Return the records as dicts. A list is returned as it is, not copied.

        Raises:
            DataError: A value of the table cannot be represented in Python (a date after 9999; nanoseconds, without
                pandas), or two columns have the same name.
        """
        if isinstance(self.data, list):
            return self.data
        from curator_core._arrow import records_of  # noqa: PLC0415 - pyarrow is an optional extra

        return records_of(self.data)

    def to_arrow(self) -> pa.Table:
        """Return the records as an Arrow table; needs the extra ``parquet``.

        A column contains values of one type, or of several types that pyarrow's "permissive" promotion unifies.

        Raises:
            DataError: A record is incompatible with those before it, or has a value that Arrow cannot represent. The
                error names the record and the column.
        """
        if not isinstance(self.data, list):
            return self.data
        from curator_core._arrow import table_of  # noqa: PLC0415 - pyarrow is an optional extra

        table, bad = table_of(self.data)
        if bad:
            what, hint = "cannot convert the records to an Arrow table", "convert or drop the column before this stage"
            raise bad[min(bad)].error(what, hint)
        return table
