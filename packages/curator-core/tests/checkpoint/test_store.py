# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import ConfigurationError, DataError, Plan, ProcessingStage
from curator_core._checkpoint.finished import EarlierRuns, record_of
from curator_core._checkpoint.settings import Checkpoint
from curator_core._checkpoint.store import OpenCheckpoint

OUTPUTS = [{"path": "out/0.jsonl", "records": 3}]


class Stage(ProcessingStage):
    def __init__(self, setting=1):
        self.setting = setting

    def process(self, task):
        return task


def compiled(*stages):
    return Plan.from_stages(stages or [Stage()]).stages


def opened(path, *stages, run_id="run", **settings):
    return OpenCheckpoint.open(Checkpoint(path, **settings), compiled(*stages), run_id)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint"


# --- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["here/below", Path("here/below"), "file://here/below", "local://here/below"])
def test_a_path_becomes_absolute(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert Checkpoint(given).path == str(tmp_path / "here" / "below")


def test_a_name_with_colons_is_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Checkpoint("run::1").path == str(tmp_path / "run::1")


def test_a_tilde_is_expanded_to_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert Checkpoint("~/checkpoint").path == "/somewhere/checkpoint"


@pytest.mark.parametrize("given", [None, 1, "", b"", ["a"], "a\0b", "~no-such-user/x", "\ud800"])
def test_a_value_that_is_not_a_path_is_rejected(given):
    with pytest.raises(ConfigurationError) as caught:
        Checkpoint(given)
    assert caught.value.field == "path"
    assert caught.value.hint


@pytest.mark.parametrize("url", ["s3://bucket/c", "gs://bucket/c", "memory://c", "https://a/c", "zip://c::a.zip"])
def test_an_object_store_is_rejected(url):
    with pytest.raises(ConfigurationError, match="needs a file system") as caught:
        Checkpoint(url)
    assert caught.value.field == "path"
    assert url in caught.value.given
    assert caught.value.expected
    assert "object store" in caught.value.hint


@pytest.mark.parametrize("name", ["accept_changes", "retry_failed"])
def test_choices_are_true_or_false(name):
    with pytest.raises(ConfigurationError, match="invalid setting") as caught:
        Checkpoint("c", **{name: "yes"})
    assert (caught.value.field, caught.value.given) == (name, "'yes'")


# --- one run after the other ----------------------------------------------------------------------------


def test_finished_tasks_are_known_to_the_next_run(path):
    with opened(path) as checkpoint:
        assert len(checkpoint.finished) == 0
        checkpoint.finish("a")
        checkpoint.finish("b", outputs=OUTPUTS)
        checkpoint.finish("c", outputs=[])
        checkpoint.finish("d", failed=True)
        assert not checkpoint.is_finished("a")  # only for source tasks of earlier runs
    with opened(path) as checkpoint:
        assert isinstance(checkpoint.finished, Mapping)
        assert dict(checkpoint.finished) == {"a": [], "b": OUTPUTS, "c": [], "d": []}
        assert checkpoint.is_finished("a")
        assert not checkpoint.is_finished("x")
        with pytest.raises(KeyError):
            checkpoint.finished["x"]
        assert list(checkpoint.outputs()) == [("b", OUTPUTS)]
        checkpoint.finish("e")
    with opened(path) as checkpoint:
        assert set(checkpoint.finished) == set("abcde")


def test_a_checkpoint_has_the_documented_files(path):
    with opened(path) as checkpoint:
        assert {found.name for found in path.iterdir()} == {"pipeline.json", "finished.jsonl", "lock"}
        checkpoint.finish("a")
    assert {found.name for found in path.iterdir()} == {"pipeline.json", "finished.jsonl"}
    written = json.loads((path / "pipeline.json").read_text())
    assert written["format"] == 1
    assert [stage["name"] for stage in written["stages"]] == ["Stage"]
    assert (path / "finished.jsonl").read_text()[9:] == '{"id":"a"}\n'


def test_missing_directories_are_created(tmp_path):
    with opened(tmp_path / "made" / "here") as checkpoint:
        checkpoint.finish("a")
    with opened(f"file://{tmp_path}/made/here") as checkpoint:
        assert checkpoint.is_finished("a")


def test_a_link_to_a_directory_is_accepted(tmp_path, path):
    (tmp_path / "disk").mkdir()
    path.symlink_to(tmp_path / "disk")
    with opened(path) as checkpoint:
        checkpoint.finish("a")
    assert (tmp_path / "disk" / "finished.jsonl").exists()


def test_sync_saves_finished_tasks_before_the_end(path, python):
    code = """if True:
        import sys
        from curator_core._checkpoint.settings import Checkpoint
        from curator_core._checkpoint.store import OpenCheckpoint
        checkpoint = OpenCheckpoint.open(Checkpoint(sys.argv[1], accept_changes=True), (), "theirs")
        checkpoint.finish("a")
        checkpoint.sync()
        print("synced", flush=True)
        sys.stdin.read()
    """
    writer = python(code, path)
    assert writer.stdout.readline() == "synced\n"
    with pytest.raises(ConfigurationError, match=f"in use by run theirs on host .* process {writer.pid}"):
        opened(path)
    writer.kill()
    writer.wait()
    with opened(path, accept_changes=True) as checkpoint:  # it takes over the lock
        assert checkpoint.is_finished("a")


def test_two_simultaneous_runs_are_rejected(path):
    with opened(path, run_id="first"), pytest.raises(ConfigurationError, match="in use by run first"):
        opened(path, run_id="second")
    with opened(path, run_id="second"):
        pass


def test_closing_twice_does_nothing(path):
    checkpoint = opened(path)
    checkpoint.close()
    with opened(path):
        checkpoint.close()
        assert (path / "lock").exists()


def test_a_full_disk_at_the_end_is_an_error_and_releases_the_lock(path, room_for):
    checkpoint = opened(path)
    checkpoint.finish("a")
    with room_for(0), pytest.raises(DataError, match="EFBIG"):
        checkpoint.close()
    assert not (path / "lock").exists()


def test_a_torn_record_is_logged_and_its_task_run_again(path, caplog):
    with opened(path) as checkpoint:
        checkpoint.finish("a")
        checkpoint.finish("b")
    os.truncate(path / "finished.jsonl", (path / "finished.jsonl").stat().st_size - 3)
    with caplog.at_level(logging.WARNING), opened(path) as checkpoint:
        assert set(checkpoint.finished) == {"a"}
    assert caplog.text.count("will run again") == 1


# --- failed source tasks --------------------------------------------------------------------------------


def test_failed_tasks_are_finished_unless_retry_is_requested(path):
    with opened(path) as checkpoint:
        checkpoint.finish("good")
        checkpoint.finish("bad", failed=True)
        checkpoint.finish("half", failed=True, outputs=OUTPUTS)
    with opened(path) as checkpoint:
        assert dict(checkpoint.finished) == {"good": [], "bad": [], "half": OUTPUTS}
    with opened(path, retry_failed=True) as checkpoint:
        assert dict(checkpoint.finished) == {"good": []}
        checkpoint.finish("bad")
        checkpoint.finish("half", failed=True)
    with opened(path, retry_failed=True) as checkpoint:
        assert set(checkpoint.finished) == {"good", "bad"}
    with opened(path) as checkpoint:
        assert dict(checkpoint.finished) == {"good": [], "bad": [], "half": []}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.sampled_from([None, [], OUTPUTS]))), st.booleans())
def test_the_last_record_of_a_source_task_counts(said, retry_failed):
    finished, expected = EarlierRuns(retry_failed=retry_failed), {}
    for source_id, failed, outputs in said:
        finished.enter(record_of(source_id, failed=failed, outputs=outputs))
        expected.pop(source_id, None)
        if not (failed and retry_failed):
            expected[source_id] = outputs or []
    assert dict(finished) == expected
    assert len(finished) == len(expected)
    assert dict(finished.outputs()) == {key: value for key, value in expected.items() if value}


def test_records_of_other_kinds_are_ignored(path):
    finished = EarlierRuns()
    for record in ({}, {"id": 1}, {"id": None}, {"note": "a"}, {"id": "a", "outputs": "?"}, {"id": "b", "more": 1}):
        finished.enter(record)
    assert dict(finished) == {"a": [], "b": []}


# --- a changed pipeline ---------------------------------------------------------------------------------


def test_a_changed_pipeline_is_rejected_with_the_difference(path):
    with opened(path, Stage(1)) as checkpoint:
        checkpoint.finish("a")
    before = {found.name: found.read_bytes() for found in path.iterdir()}
    with pytest.raises(ConfigurationError) as caught:
        opened(path, Stage(2), Stage().with_(name="Dedup"))
    assert caught.value.message.endswith(": stage 'Stage': setting has changed; stage 'Dedup' was added")
    assert caught.value.field == str(path / "pipeline.json")
    assert caught.value.expected
    assert "accept_changes=True" in caught.value.hint
    assert {found.name: found.read_bytes() for found in path.iterdir()} == before


def test_a_changed_pipeline_can_be_accepted(path, caplog):
    with opened(path, Stage(1)) as checkpoint:
        checkpoint.finish("a")
    with caplog.at_level(logging.WARNING), opened(path, Stage(2), accept_changes=True) as checkpoint:
        assert checkpoint.is_finished("a")
    assert "continuing although stage 'Stage': setting has changed" in caplog.text
    with opened(path, Stage(2)):
        pass
    with pytest.raises(ConfigurationError, match="setting has changed"):
        opened(path, Stage(1))


def test_an_unchanged_pipeline_is_not_rewritten(path):
    with opened(path):
        before = (path / "pipeline.json").stat()
    with opened(path, accept_changes=True):
        assert (path / "pipeline.json").stat() == before


def test_a_long_list_of_differences_is_shortened(path):
    with opened(path, *(Stage().with_(name=f"s{number}") for number in range(50))):
        pass
    with pytest.raises(ConfigurationError, match=r"stage 's10' was removed; and 39 more\n"):
        opened(path, Stage().with_(name="s0"))


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"\xff", b"[]", b'{"format": 1}', b'{"format": 1, "stages": [1]}']
)
def test_records_of_an_unknown_pipeline_are_rejected(path, content):
    with opened(path) as checkpoint:
        checkpoint.finish("a")
    (path / "pipeline.json").unlink()
    if content is not None:
        (path / "pipeline.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match="does not record its stages"):
        opened(path)
    with opened(path, accept_changes=True) as checkpoint:
        assert checkpoint.is_finished("a")
    with opened(path):
        pass


def test_a_checkpoint_killed_during_creation_is_created_again(path):
    path.mkdir()
    (path / "finished.jsonl").touch()
    with opened(path):
        assert {found.name for found in path.iterdir()} == {"pipeline.json", "finished.jsonl", "lock"}


@pytest.mark.parametrize("accept_changes", [False, True])
def test_a_format_of_another_release_is_rejected(path, accept_changes):
    with opened(path):
        pass
    (path / "pipeline.json").write_text('{"format": 2}')
    with pytest.raises(ConfigurationError, match="another release") as caught:
        opened(path, accept_changes=accept_changes)
    assert caught.value.given == "2"


# --- files ----------------------------------------------------------------------------------------------


def test_the_pipeline_file_is_synced_before_it_appears(path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        synced.append((os.fstat(descriptor).st_size, (path / "pipeline.json").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with opened(path):
        assert ((path / "pipeline.json").stat().st_size, False) in synced


@pytest.mark.parametrize("name", ["pipeline.json", "finished.jsonl", "lock"])
def test_a_path_that_is_not_a_regular_file_is_rejected_and_leaves_no_lock(path, not_a_file, name):
    path.mkdir()
    not_a_file(path / name)
    with pytest.raises(DataError, match="not a regular file") as caught:
        opened(path)
    assert caught.value.field == str(path / name)
    assert name == "lock" or not (path / "lock").exists()


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_place_of_the_directory_is_an_error(path, below):
    path.write_text("mine")
    with pytest.raises((ConfigurationError, DataError)) as caught:
        opened(path / below)
    assert caught.value.field
    assert path.read_text() == "mine"


@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_new_files_respect_the_umask(path, umask, mask):
    with umask(mask), opened(path) as checkpoint:
        checkpoint.finish("a")
        modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.iterdir()}
    assert modes == dict.fromkeys(["pipeline.json", "finished.jsonl", "lock"], 0o666 & ~mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~mask
