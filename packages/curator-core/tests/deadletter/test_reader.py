# SPDX-License-Identifier: Apache-2.0
"""Letters are read without executing anything; their tasks are loaded only if allowed."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curator_core import ConfigurationError, DataError, DocumentBatch, Pipeline, Task, processing_stage
from curator_core.deadletter import Letter, load, read
from curator_core.deadletter.letter import encode
from curator_core.deadletter.payload import Payload, pack_task


@dataclass
class VideoTask(Task[bytes]):
    fps: float = 0.0


class Executing:
    """Creates a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refused(*args, **options):
    with pytest.raises(DataError) as caught:
        load(*args, **options)
    assert caught.value.field
    assert caught.value.expected
    assert caught.value.hint
    return caught.value


def noted(task, **notes):
    task.metadata.update(notes)
    return task


# --- round trips ----------------------------------------------------------------------------------------


def test_loaded_tasks_have_their_data_id_and_notes(dead, fail):
    fail(dead, noted(Task(data={"a": [1.5, None]}, dataset_name="d"), note="ü"), "3.1", stage="Ocr", stage_index=1)
    fail(dead, noted(DocumentBatch([{"text": "x"}]), a=[1]), "7", stage="Read videos/now")
    first, second = load(dead)
    assert first == DocumentBatch([{"text": "x"}])
    assert (first.task_id, first.metadata, first.stage_perf) == ("7", {"a": [1]}, ())
    assert second == Task(data={"a": [1.5, None]}, dataset_name="d")
    assert (second.task_id, second.metadata) == ("3.1", {"note": "ü"})


def test_read_returns_the_details_of_each_letter(dead, fail):
    known = {"error_type": "ValueError", "error_message": "no", "attempts": 2, "failed_at": 1.5, "pipeline": "p"}
    fail(dead, VideoTask(b"x"), "0", **known)
    (letter,) = read(dead)
    assert {name: getattr(letter, name) for name in known} == known
    assert letter.task_class.endswith("VideoTask")
    assert letter.payload_kind == "pickle"
    assert letter.payload_bytes > 0
    assert letter.failed_at_utc == "1970-01-01T00:00:01.500+00:00"


def test_letters_are_sorted_by_stage_and_task(dead, fail):
    places = [(10, "B", "0"), (2, "Z", "10"), (2, "Z", "9"), (2, "Z", "9.10"), (2, "Z", "9.9"), (2, "Z", "files-a")]
    for index, stage, task_id in places:
        fail(dead, Task(data=task_id), task_id, stage=stage, stage_index=index)
    expected = ["9", "9.9", "9.10", "10", "files-a", "0"]
    assert [letter.task_id for letter in read(dead)] == expected
    assert [task.data for task in load(dead)] == expected


def test_a_path_can_be_one_letter_one_stage_or_several_runs(tmp_path, fail):
    fail(tmp_path / "monday", Task(data=1), "0", stage="S")
    fail(tmp_path / "monday", Task(data=2), "1", stage="T")
    fail(tmp_path / "tuesday", Task(data=3), "2", stage="S")
    assert [task.data for task in load(tmp_path / "monday" / "S" / "0.letter")] == [1]
    assert [task.data for task in load(f"{tmp_path}/monday/T/")] == [2]
    assert [task.data for task in load(f"file://{tmp_path}")] == [1, 3, 2]  # both are the first stage of their pipeline


@pytest.mark.parametrize("name", ["run::1", "dead [2024]"])
def test_directories_whose_names_look_like_urls_and_globs(tmp_path, fail, name):
    fail(tmp_path / name, Task(data=1), "0")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [task.data for task in load(tmp_path / name)] == [1]


def test_letters_of_different_stages_are_separate(dead, fail):
    for stage in ("Caption", "Embed"):
        fail(dead, Task(data=stage), "0", stage=stage)
    assert [task.data for task in load(dead, stage="Embed")] == ["Embed"]
    error = refused(dead, stage="Captoin")
    assert error.field == "Captoin"
    assert "Caption, Embed" in error.expected
    assert error.hint == "did you mean 'Caption'?"


def test_a_directory_without_letters_gives_an_empty_list(tmp_path):
    (tmp_path / "S").mkdir()
    (tmp_path / "S" / ".0.letter.0123.tmp").write_text("half a letter")
    (tmp_path / "README").write_text("what this is")
    assert read(tmp_path) == load(tmp_path) == load(tmp_path, stage="S") == []


@pytest.mark.parametrize("path", ["/no/such/place", "memory://no/such/place"])
def test_a_missing_directory_is_an_error(path):
    error = refused(path)
    assert error.field == path
    with pytest.raises(DataError, match="no directory or file at this path"):
        read(path)


def test_a_loaded_task_runs_again(tmp_path, fail):
    @processing_stage()
    def double(task):
        return Task(data=task.data * 2)

    fail(tmp_path, Task(data=21), "0.3")
    (task,) = Pipeline("again", [double]).run(initial_tasks=load(tmp_path))
    assert task.data == 42


@pytest.mark.parametrize("is_writable", [True, False])
def test_loaded_arrays_keep_their_writability(dead, fail, is_writable):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(30_000).reshape(3, -1)
    array.flags.writeable = is_writable
    gaps = array[:, ::2]
    fail(dead, Task(data=[array, gaps]), "0")
    (task,) = load(dead, trust=True)
    assert [(one == two).all() for one, two in zip(task.data, [array, gaps], strict=True)] == [True, True]
    assert [each.flags.writeable for each in task.data] == [is_writable, is_writable]


def test_arrow_tables(dead, fail):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": list(range(1000)), "b": [None, "x"] * 500})
    fail(dead, DocumentBatch(table), "0")
    (task,) = load(dead, trust=True)
    assert task.data == table


def test_long_first_lines_are_read(dead, fail):
    text = "\x01" * 60_000  # six characters each, as JSON
    fail(dead, Task(data=1), "0", error_message=text, error_traceback=text)
    (letter,) = read(dead)
    assert letter.error_message == letter.error_traceback == text
    assert [task.data for task in load(dead)] == [1]


def test_only_first_lines_are_read(dead, fail, monkeypatch):
    fail(dead, Task(data="x" * 500_000), "0")
    fs = fsspec.core.url_to_fs(dead)[0]
    asked, cat_ranges = [], type(fs).cat_ranges

    def counting(self, paths, starts, ends, **options):
        asked.extend(ends)
        return cat_ranges(self, paths, starts, ends, **options)

    monkeypatch.setattr(type(fs), "cat_ranges", counting)
    assert len(read(dead)) == 1
    assert asked == [1 << 16]


def test_many_letters_are_read_in_several_requests(dead, fail):
    from curator_core.deadletter import DeadLetter
    from curator_core.deadletter.writer import LetterBox

    box = LetterBox(DeadLetter(dead))
    for number in range(300):
        box.put(Letter(task_id=str(number), stage="S"), pack_task(Task(data=number), 100))
    box.close()
    assert [task.data for task in load(dead)] == list(range(300))


class StoreFileSystem(MemoryFileSystem):
    """Like some object store clients: caches listings, and lists a directory inside itself."""

    protocol = "store"
    store, pseudo_dirs, listings = {}, [""], {}

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        if path not in self.listings:
            itself = {"name": f"{path}/", "size": 0, "type": "directory"}
            self.listings[path] = [itself, *super().ls(path, detail=True)]
        return self.listings[path]

    def invalidate_cache(self, path=None):
        self.listings.clear()


def test_a_store_that_lists_a_directory_in_itself_is_read(fail):
    fsspec.register_implementation("store", StoreFileSystem, clobber=True)
    for number in range(3):
        fail("store://dead", Task(data=number), str(number))
        assert [task.data for task in load("store://dead")] == list(range(number + 1))


# --- trust ----------------------------------------------------------------------------------------------


def test_untrusted_pickles_are_not_executed(dead, fail, marker):
    fail(dead, Task(data=1), "0")
    fail(dead, Task(data=Executing(marker)), "1")
    fail(dead, VideoTask(b""), "2")
    assert len(read(dead)) == 3
    for trust in (False, 0, 1, "yes", None):
        error = refused(dead, trust=trust)
        assert error.message.startswith("2 of the 3 tasks are pickled, and unpickling runs code")
        assert "VideoTask" in error.given
        assert "trust=True" in error.hint
    refused(dead, missing="skip")
    assert not marker.exists()
    load(dead, trust=True)
    assert marker.exists()


def test_trust_is_not_needed_if_the_selected_tasks_are_json(dead, fail, marker):
    fail(dead, Task(data=1), "0", stage="Plain")
    fail(dead, Task(data=Executing(marker)), "1", stage="Pickled")
    assert [task.data for task in load(dead, stage="Plain")] == [1]
    assert not marker.exists()


def test_a_pickle_that_claims_to_be_json_is_not_executed(tmp_path, marker):
    pickled = pack_task(Task(data=Executing(marker)), 1000)
    letter = Letter(task_id="0", stage="S")
    path = tmp_path / "0.letter"
    for kind in ("json", "none"):
        path.write_bytes(b"".join(encode(letter, pickled._replace(kind=kind))))
        refused(path)
    line = encode(letter, Payload("json", "0", "Task", pickled.head, pickled.buffers))[0]
    path.write_bytes(line + pickled.head)
    assert "cannot restore a task" in refused(path).message
    assert not marker.exists()


@pytest.mark.parametrize(
    ("head", "cls"),
    [
        (b"{}", "curator_core.tasks.Task"),
        (b"[", "curator_core.tasks.Task"),
        (b'{"data": 1, "dataset_name": "", "notes": null}', "os.system"),
        (b'{"data": 1, "dataset_name": "", "notes": null}', "DocumentBatch"),
    ],
)
def test_json_that_is_not_a_task_is_an_error(tmp_path, head, cls):
    path = tmp_path / "0.letter"
    path.write_bytes(b"".join(encode(Letter(task_id="0", stage="S"), Payload("json", "0", cls, head, (), len(head)))))
    error = refused(path)
    assert error.field == str(path)
    assert cls in error.message


class SwappingFileSystem(MemoryFileSystem):
    """Replaces a letter after it was listed."""

    protocol = "swapping"
    store, pseudo_dirs = {}, [""]
    replacement = b""

    def cat_ranges(self, paths, starts, ends, **options):
        if ends[0] is None:
            return [self.replacement for _ in paths]
        return super().cat_ranges(paths, starts, ends, **options)


def test_a_letter_that_changes_while_it_is_read_is_not_executed(fail, marker):
    fsspec.register_implementation("swapping", SwappingFileSystem, clobber=True)
    fail("swapping://dead", Task(data=1), "0")
    letter, payload = Letter(task_id="0", stage="S"), pack_task(Task(data=Executing(marker)), 1000)
    SwappingFileSystem.replacement = b"".join(encode(letter, payload))
    error = refused("swapping://dead")
    assert "changed while it was being read" in error.message
    assert error.field == "swapping://dead/S/0.letter"
    assert not marker.exists()


# --- tasks that cannot be loaded ------------------------------------------------------------------------


def test_tasks_that_were_not_stored_are_an_error_or_skipped(dead, fail):
    fail(dead, Task(data="x" * 2000), "0", max_bytes=1000)
    fail(dead, Task(data=threading.Lock()), "1")
    fail(dead, Task(data=5), "2", max_bytes=1000)
    large, locked, _ = read(dead)
    assert large.payload_bytes > 2000
    assert "max_bytes is 1,000" in large.payload_note
    assert "cannot pickle" in locked.payload_note
    error = refused(dead)
    assert error.message.startswith("2 of the tasks were not stored: '0', '1'; the task takes")
    assert "missing='skip'" in error.hint
    assert [task.data for task in load(dead, missing="skip")] == [5]
    with pytest.raises(ConfigurationError) as caught:
        load(dead, missing="ignore")
    assert caught.value.field == "missing"


def test_only_some_of_many_missing_tasks_are_named(tmp_path, fail):
    for number in range(12):
        fail(tmp_path, Task(data=1), str(number), max_bytes=0)
    assert "'8', '9' and 2 more; " in refused(tmp_path).message


@dataclass
class Passing(Task[bytes]):
    pass


def test_a_missing_class_is_an_error(tmp_path, fail, monkeypatch):
    fail(tmp_path, Passing(b"x"), "0")
    monkeypatch.delattr(f"{__name__}.Passing")
    error = refused(tmp_path, trust=True)
    assert error.field == str(tmp_path / "S" / "0.letter")
    assert "Passing: AttributeError" in error.message


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:50], lambda data: b"", lambda data: data[:-1] + b"!"],
    ids=["cut", "cut in the first line", "empty", "changed"],
)
def test_damaged_files_are_named(dead, fail, damage):
    for number in range(3):
        fail(dead, Task(data="x" * 100), str(number))
    fs, root = fsspec.core.url_to_fs(dead)
    path = f"{root}/S/1.letter"
    fs.pipe_file(path, damage(fs.cat_file(path)))
    error = refused(dead)
    assert error.field == f"{dead}/S/1.letter"
    assert "damaged" in error.message
    assert "copy it again" in error.hint


def test_a_file_that_is_not_a_letter_is_named(tmp_path):
    path = tmp_path / "mine.letter"
    path.write_bytes(b"Dear Anna" * 2_000_000)  # without a newline
    for place in (path, tmp_path):
        assert refused(place).field == str(path)
        with pytest.raises(DataError, match="not a dead letter"):
            read(place)


def test_an_unreadable_file_is_named(tmp_path, fail):
    fail(tmp_path, Task(data=1), "0")
    (tmp_path / "S" / "1.letter").symlink_to(tmp_path / "gone")
    error = refused(tmp_path)
    assert error.field == str(tmp_path / "S" / "1.letter")
    assert "does not exist" in error.message


def test_links_between_directories_are_not_followed(tmp_path, fail):
    fail(tmp_path, Task(data=1), "0")
    (tmp_path / "S" / "again").symlink_to(tmp_path)
    assert len(read(tmp_path)) == 1


def test_invalid_paths_are_rejected():
    for path in ("", None, 5, "a\0b", "~no-such-user/x"):
        with pytest.raises(ConfigurationError):
            load(path)
    with pytest.raises(ConfigurationError, match="no filesystem"):
        load("nosuch://dead")
