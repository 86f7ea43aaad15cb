# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import array
import datetime
import decimal
import enum
import fractions
import functools
import itertools
import logging
import math
import re
import threading
import uuid
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import DataError, DocumentBatch, FileGroupTask, Task
from curator_core._checkpoint.content import content_id, value_digest


@dataclass
class VideoTask(Task[Any]):
    fps: float = 0.0


@dataclass(slots=True)
class Slotted:
    a: Any = 1
    b: Any = 2


@dataclass
class Other:
    a: Any = 1
    b: Any = 2


@dataclass
class Growing:
    a: list[int] = field(default_factory=list)

    @functools.cached_property
    def total(self) -> int:
        return sum(self.a)


class Plain:
    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)


class Colour(enum.Enum):
    RED = enum.auto()
    BLUE = enum.auto()


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Names(list[str]):
    pass


class Members(set[str]):
    pass


class Broken:
    def __reduce_ex__(self, protocol):
        raise RuntimeError("not today")


class BrokenState:
    def __getstate__(self):
        raise RuntimeError("not today")


Point = namedtuple("Point", "x y")


def add(one, two=2):
    return one + two


def closure(value):
    def inner():
        return value

    return inner


def digest(value):
    return value_digest(value, "value")


# All different, each created by a function so that two copies share nothing.
DIFFERENT = [
    *(
        lambda value=value: value
        for value in (None, True, False, 0, 1, -1, 10**5000, 1.0, 0.0, -0.0, math.inf, math.nan)
    ),
    *(lambda value=value: value for value in ("", "1", "a", "é", "e\u0301", "\udce4", b"", b"1", b"a", 1j)),
    lambda: bytearray(b"a"),
    lambda: memoryview(b"a"),
    lambda: memoryview(b"ab"),
    lambda: memoryview(b"ab").cast("B", (1, 2)),
    lambda: ...,
    list,
    tuple,
    dict,
    set,
    frozenset,
    lambda: [[]],
    lambda: [[], []],
    lambda: [[[]]],
    lambda: ["a", "b"],
    lambda: ["b", "a"],
    lambda: ["ab"],
    lambda: ["a", ["b"]],
    lambda: [["a"], "b"],
    lambda: ("a", "b"),
    lambda: {"a", "b"},
    lambda: frozenset("ab"),
    lambda: {"a": "b"},
    lambda: {"b": "a"},
    lambda: {"a": "b", "b": "a"},
    lambda: {"a": "a", "b": "b"},
    lambda: {"a": None},
    lambda: {1: "a"},
    lambda: {"1": "a"},
    lambda: {b"1": "a"},
    lambda: {(1, "a"): 1},
    lambda: {frozenset({1}): 1},
    Slotted,
    Other,
    lambda: Other(2, 1),
    lambda: Task("a"),
    lambda: Task("a", "set"),
    lambda: VideoTask("a"),
    lambda: VideoTask("a", fps=25.0),
    lambda: FileGroupTask(["a"]),
    lambda: DocumentBatch([{"a": 1}]),
    lambda: Path("a/b"),
    lambda: Path("a"),
    lambda: PureWindowsPath("a/b"),
    lambda: Colour.RED,
    lambda: Colour.BLUE,
    lambda: Rights.READ,
    lambda: Rights.READ | Rights.WRITE,
    lambda: datetime.datetime(2024, 1, 2, 3, 4, 5),
    lambda: datetime.datetime(2024, 1, 2, 3, 4, 5, 1),
    lambda: datetime.datetime(2024, 1, 2, 3, 4, 5, fold=1),
    lambda: datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
    lambda: datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=ZoneInfo("UTC")),
    lambda: datetime.date(2024, 1, 2),
    lambda: datetime.time(3),
    lambda: datetime.timedelta(3),
    lambda: decimal.Decimal("1.0"),
    lambda: decimal.Decimal("1.00"),
    lambda: fractions.Fraction(1, 3),
    lambda: uuid.UUID(int=1),
    lambda: uuid.UUID(int=2),
    lambda: array.array("i", [1, 2]),
    lambda: array.array("l", [1, 2]),
    lambda: deque([1, 2]),
    lambda: deque([1, 2], maxlen=2),
    lambda: deque([2, 1]),
    lambda: OrderedDict(a=1, b=2),
    lambda: OrderedDict(b=2, a=1),
    lambda: defaultdict(list, a=[1]),
    lambda: defaultdict(set, a=[1]),
    lambda: Counter("aab"),
    lambda: Counter("abb"),
    lambda: UserDict(a=1),
    lambda: Point(1, 2),
    lambda: Point(2, 1),
    lambda: Names("ab"),
    lambda: Names("ba"),
    lambda: Members("ab"),
    lambda: Plain(a=1),
    lambda: Plain(a=1, b=None),
    lambda: SimpleNamespace(a=1),
    lambda: re.compile("a"),
    lambda: re.compile("a", re.IGNORECASE),
    lambda: range(3),
    lambda: slice(3),
    lambda: logging.getLogger("a"),
    lambda: len,
    lambda: "".join,
    lambda: "a".join,
    lambda: str.upper,
    lambda: add,
    lambda: functools.partial(add, two=3),
    lambda: functools.partial(add, two=4),
    lambda: closure(1),
    lambda: closure("1"),
    lambda: lambda task, threshold=1: task,
    lambda: int,
    lambda: Colour,
    lambda: math,
    lambda: Plain(a=1).__init__,
    lambda: Plain(a=2).__init__,
    object,
]


def test_equal_values_have_one_digest_and_different_values_another():
    digests = [digest(make()) for make in DIFFERENT]
    assert [digest(make()) for make in DIFFERENT] == digests
    same = [(one, two) for one, two in itertools.combinations(range(len(digests)), 2) if digests[one] == digests[two]]
    assert [(DIFFERENT[one](), DIFFERENT[two]()) for one, two in same] == []
    assert all(re.fullmatch("[0-9a-f]{20}", found) for found in digests)


data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.frozensets(st.text() | st.binary() | st.integers(), max_size=4)
    ),
    max_leaves=12,
)


def canonical(value: Any) -> Any:
    """Return a text for each value that distinguishes types: an independent implementation."""
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        return f"{kind}[{','.join(map(canonical, value))}]"
    if isinstance(value, dict):
        return f"{kind}[{sorted(f'{canonical(key)}:{canonical(part)}' for key, part in value.items())}]"
    if isinstance(value, frozenset):
        return f"{kind}[{sorted(map(canonical, value))}]"
    return f"{kind} {value!r}"


@given(data, data)
def test_digests_are_equal_if_and_only_if_values_are(one, two):
    assert (digest(one) == digest(two)) == (canonical(one) == canonical(two))


@given(data)
def test_a_copy_has_the_same_digest(value):
    assert digest(eval(canonical_source(value))) == digest(value)  # noqa: S307 - a source from this test


def canonical_source(value: Any) -> str:
    """Return an expression that creates the value from new objects, with dicts and sets in reverse order."""
    if isinstance(value, dict):
        pairs = [f"{canonical_source(key)}: {canonical_source(part)}" for key, part in reversed(value.items())]
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, frozenset):
        return f"frozenset([{', '.join(map(canonical_source, reversed(list(value))))}])"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}([{', '.join(map(canonical_source, value))}])"
    return f"float({str(value)!r})" if isinstance(value, float) else repr(value)


def test_sharing_of_objects_does_not_affect_the_digest():
    text = "x" * 100
    assert digest([text, text]) == digest(["x" * 100, "".join(["x"] * 100)])
    inner = [1, 2]
    assert digest([inner, inner]) == digest([[1, 2], [1, 2]])
    shared = Plain(a=[1])
    assert digest((shared, shared)) == digest((Plain(a=[1]), Plain(a=[1])))


def test_shared_objects_are_walked_once():
    value: Any = [1]
    for _ in range(60):
        value = [value, value]  # 2**60 paths down
    assert digest(value) == digest(value)


def test_the_order_of_attributes_does_not_affect_the_digest():
    assert digest(Plain(a=1, b=2)) == digest(Plain(b=2, a=1))


def test_an_unnamed_combination_of_flags_is_walked():
    assert digest(Rights(0)) != digest(Rights.READ)


def test_noncontiguous_memory_is_read():
    assert digest(memoryview(b"abcd")[::2]) == digest(memoryview(b"ac"))


def test_a_function_that_calls_itself_is_walked():
    def down(n):
        return down(n - 1) if n else n

    assert digest(down) == digest(down)


def test_a_variable_without_a_value_is_walked():
    def inner():
        return later

    assert digest(inner)
    later = 1
    assert digest(inner)


# --- tasks ----------------------------------------------------------------------------------------------


def test_a_content_id_is_c_and_twenty_hex_digits():
    assert re.fullmatch("c[0-9a-f]{20}", content_id(Task("a")))


def test_state_and_caches_on_a_task_do_not_affect_the_digest():
    before = content_id(VideoTask(["a"]))
    task = VideoTask(["a"])
    task.metadata["seen"] = True
    assert content_id(task) == before
    growing = Growing([1, 2])
    before = digest(growing)
    assert growing.total == 3
    assert digest(growing) == before


def test_attributes_besides_the_fields_affect_the_digest():
    class UrlTask(Task[str]):
        def __init__(self, data, url):
            super().__init__(data)
            self.url = url

    assert content_id(UrlTask("a", "one")) != content_id(UrlTask("a", "two"))


@dataclass
class Tagged(list[int]):
    tag: str = ""


def test_the_items_of_a_dataclass_that_is_a_list_affect_the_digest():
    one, two = Tagged("x"), Tagged("x")
    one.append(1)
    assert digest(one) != digest(two)
    two.append(1)
    assert digest(one) == digest(two)
    assert digest(one) != digest([1])


HASH_SEEDS = """if True:
    import datetime, enum, pathlib, uuid
    from dataclasses import dataclass
    from curator_core import Task
    from curator_core._checkpoint.content import content_id
    class Colour(enum.Enum):
        RED = "red"
    class Thing:
        def __init__(self):
            self.names = {"one", "two", "three"}
            for name in sorted(self.names, key=hash):
                setattr(self, name, name)
    members = {"a", "b", "c", ("d", "e"), b"f", 1.5, None, Colour.RED, frozenset({"g", "h"}), pathlib.Path("i")}
    by_member = dict.fromkeys(members, members)
    task = Task([members, by_member, Thing(), uuid.UUID(int=5), datetime.datetime(2024, 1, 1), enum.Enum, len])
    print(content_id(task), *map(repr, members))
"""


def test_the_digest_is_the_same_in_every_process(python):
    started = [python(HASH_SEEDS, PYTHONHASHSEED=str(seed)) for seed in (1, 2, 3)]
    ids, orders = zip(*(process.communicate()[0].split(" ", 1) for process in started), strict=True)
    assert len(set(orders)) > 1  # of the members of a set: the seeds have an effect
    assert len(set(ids)) == 1
    assert re.fullmatch("c[0-9a-f]{20}", ids[0])


# --- arrays and tables ----------------------------------------------------------------------------------


def test_arrays():
    np = pytest.importorskip("numpy")
    pairs = np.dtype([("a", "i4"), ("b", "f8")])
    different = [
        lambda: np.arange(6),
        lambda: np.arange(6, dtype="i4"),
        lambda: np.arange(6, dtype=">i8"),
        lambda: np.arange(6).reshape(2, 3),
        lambda: np.arange(6).reshape(3, 2),
        lambda: np.arange(6)[::-1],
        lambda: np.zeros((0, 3)),
        lambda: np.zeros((3, 0)),
        lambda: np.array(1),
        lambda: np.int64(1),
        lambda: np.int32(1),
        lambda: np.float64(1),
        lambda: np.str_("a"),
        lambda: np.datetime64("2024-01-02"),
        lambda: np.datetime64("2024-01-02", "s"),
        lambda: np.array(["a", None, [1]], dtype=object),
        lambda: np.array(["a", None, [2]], dtype=object),
        lambda: np.array(["a", "bc"]),
        lambda: np.array([(1, 2.0)], dtype=pairs),
        lambda: np.array([(1, 3.0)], dtype=pairs),
        lambda: np.array([(1, 2.0)], dtype=pairs)[0],
        lambda: np.ma.masked_array([1, 2], [True, False]),
        lambda: np.ma.masked_array([1, 2], [False, False]),
        lambda: np.dtype("f4"),
        lambda: np.dtype("f8"),
        lambda: np.add,
        lambda: [0, 1, 2, 3, 4, 5],
        lambda: 1,
        lambda: 1.0,
    ]
    digests = [digest(make()) for make in different]
    assert [digest(make()) for make in different] == digests
    assert len(set(digests)) == len(different)
    assert digest(np.arange(12)[::2]) == digest(np.arange(0, 12, 2))
    assert digest(np.asfortranarray(np.arange(6).reshape(2, 3))) == digest(np.arange(6).reshape(2, 3))


COLUMNS = {
    "text": ["a", None, "ccc", "", "é"],
    "flag": [True, False, None, True, False],
    "number": [1, None, 3, 4, 5],
    "list": [[1], None, [2, 3], [], [4]],
    "struct": [{"x": 1}, None, {"x": None}, {"x": 4}, {"x": 5}],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_the_memory_layout_of_a_table_does_not_affect_the_digest(name):
    pa = pytest.importorskip("pyarrow")
    whole = pa.table({name: COLUMNS[name]})
    fresh = pa.table({name: pa.array(COLUMNS[name][1:4], whole.schema.field(name).type)})
    chunks = pa.concat_tables([fresh.slice(0, 1), fresh.slice(1, 1), fresh.slice(2, 1)])
    assert chunks.column(0).num_chunks == 3
    assert digest(fresh) == digest(chunks) == digest(whole.slice(1, 3))
    assert digest(fresh) not in (digest(whole), digest(whole.slice(0, 3)), digest(fresh.rename_columns(["other"])))


def test_memory_behind_a_null_does_not_affect_the_digest():
    pa = pytest.importorskip("pyarrow")
    made = pa.array([1, None, 3])
    over = pa.Array.from_buffers(pa.int64(), 3, [made.buffers()[0], pa.array([1, 2, 3]).buffers()[1]])
    assert over.equals(made)
    assert digest(pa.table({"a": over})) == digest(pa.table({"a": made}))
    assert digest(over) == digest(made)


def test_other_arrow_data_has_a_digest():
    pa = pytest.importorskip("pyarrow")
    different = [
        lambda: pa.table({"a": [1, 2]}),
        lambda: pa.table({"a": pa.array([1, 2], pa.int32())}),
        lambda: pa.table({"a": [1, 2]}).replace_schema_metadata({"k": "v"}),
        lambda: pa.table({"a": [1, 2], "b": [1, 2]}),
        lambda: pa.table({"b": [1, 2], "a": [1, 2]}),
        lambda: pa.table({"a": []}),
        lambda: pa.table({}),
        lambda: pa.record_batch({"a": [1, 2]}),
        lambda: pa.array([1, 2]),
        lambda: pa.chunked_array([[1, 2]]),
        lambda: pa.array(["a", None], pa.string_view()),
        lambda: pa.array(["a", "b"], pa.string_view()),
        lambda: pa.array(["a", "b"]).dictionary_encode(),
        lambda: pa.scalar(1),
        lambda: pa.schema({"a": pa.int64()}),
        lambda: pa.schema({"a": pa.int32()}),
    ]
    digests = [digest(make()) for make in different]
    assert [digest(make()) for make in different] == digests
    assert len(set(digests)) == len(different)
    assert digest(pa.chunked_array([[1], [2]])) == digest(pa.chunked_array([[1, 2]]))
    assert content_id(DocumentBatch(pa.table({"a": [1]}))) == content_id(DocumentBatch(pa.table({"a": [1]})))


# --- values without content -----------------------------------------------------------------------------

BAD = [threading.Lock(), (n for n in range(3)), Broken(), BrokenState(), {1: 2}.items()]


@pytest.mark.parametrize(
    ("make", "path", "bad"),
    [
        *((Task, "task.data", bad) for bad in BAD),
        (lambda bad: Task([0, 1, 2, Plain(a=1, lock=bad)]), "task.data[3].lock", BAD[0]),
        (lambda bad: Task({"k": (bad,)}), "task.data['k'][0]", BAD[0]),
        (lambda bad: Task(Slotted(b=bad)), "task.data.b", BAD[0]),
        (lambda bad: Task(Names(["a", bad])), "task.data[1]", BAD[0]),
        (lambda bad: Task(UserDict(a=bad)), "task.data.data['a']", BAD[0]),
        (lambda bad: Task(defaultdict(list, a=bad)), "task.data['a']", BAD[0]),
        (lambda bad: Task(closure(bad)), "task.data's variable value", BAD[0]),
    ],
)
def test_a_value_without_a_digest_is_named(make, path, bad):
    with pytest.raises(DataError, match="cannot compute a digest of this value") as caught:
        content_id(make(bad))
    error = caught.value
    assert error.field == path
    assert type(bad).__name__ in error.given
    assert error.expected
    assert error.hint == "define get_deterministic_id() in class Task, to return an id that is the same in every run"


def test_a_bad_key_or_set_member_is_named_by_its_container():
    for value in ({threading.Lock()}, frozenset([threading.Lock()]), {threading.Lock(): 1}):
        with pytest.raises(DataError, match="cannot compute a digest") as caught:
            content_id(Task([value]))
        assert caught.value.field == "task.data[0]"
        assert "lock" in caught.value.given


def test_an_exception_of_the_object_is_the_cause():
    with pytest.raises(DataError, match="not today") as caught:
        content_id(Task([Broken()]))
    assert isinstance(caught.value.__cause__, RuntimeError)


def circles():
    circle: list[Any] = [1]
    circle.append(circle)
    yield circle, "task.data[1]"
    by_name: dict[str, Any] = {}
    by_name["me"] = [by_name]
    yield by_name, "task.data['me'][0]"
    parent = Plain(name="parent")
    parent.child = Plain(parent=parent)
    yield parent, "task.data.child.parent"
    node = Other()
    node.a = (node,)
    yield node, "task.data.a[0]"


@pytest.mark.parametrize(("value", "path"), [*circles()])
def test_circular_references_are_errors(value, path):
    with pytest.raises(DataError, match="contains itself") as caught:
        content_id(Task(value))
    assert caught.value.field == path


def test_endless_nesting_is_an_error():
    value: Any = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(DataError, match="more than 100 levels deep"):
        content_id(Task(value))


def test_deep_data_is_walked():
    value: Any = []
    for _ in range(95):
        value = {"a": value}
    assert content_id(Task(value))


def test_a_slot_without_a_value_is_an_error():
    value = Slotted()
    del value.b
    with pytest.raises(DataError, match="cannot compute a digest"):
        content_id(Task(value))


def test_paths_of_one_flavor_have_the_digest_of_their_text():
    assert digest(PurePosixPath("a/b")) == digest(Path("a/b")) == digest(Path("a//b"))
