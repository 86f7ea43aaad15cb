# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import stat
import time

import pytest

from curator_core import ConfigurationError, DataError
from curator_core._checkpoint.holder import Holder
from curator_core._checkpoint.lock import RunLock

HOLD = """if True:
    import sys
    from curator_core._checkpoint.lock import RunLock
    RunLock(sys.argv[1], "theirs").acquire()
    print("held", flush=True)
    sys.stdin.read()
"""
# Two of these run at once: each prints the outcome of each round, and releases the lock only on request.
FIGHT = """if True:
    import sys
    from curator_core import ConfigurationError
    from curator_core._checkpoint.lock import RunLock
    for go in sys.stdin:
        lock = RunLock(sys.argv[1], sys.argv[2])
        try:
            lock.acquire()
        except ConfigurationError:
            print("refused", flush=True)
        else:
            print("held", flush=True)
        sys.stdin.readline()
        lock.release()
        print("done", flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


def here(**changes):
    return dataclasses.replace(Holder.here("theirs"), **changes)


def put(path, holder):
    path.write_bytes(holder.dump())


def gone_pid(python):
    process = python("")
    process.communicate()
    return process.pid


def refused(tmp_path):
    before = {found.name: found.read_bytes() for found in tmp_path.iterdir()}
    with pytest.raises(ConfigurationError, match="in use by") as caught:
        RunLock(tmp_path, "ours").acquire()
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == before
    return caught.value


def taken_over(tmp_path):
    with RunLock(tmp_path, "ours"):
        assert [found.name for found in tmp_path.iterdir()] == ["lock"]
        held = json.loads((tmp_path / "lock").read_bytes())
    return held["run_id"] == "ours" and not list(tmp_path.iterdir())


# --- one at a time --------------------------------------------------------------------------------------


def test_the_lock_file_exists_while_held_and_names_its_holder(tmp_path, path):
    before = time.time()
    with RunLock(tmp_path, "ours"):
        held = json.loads(path.read_bytes())
    assert before <= held.pop("since") <= time.time()
    assert held.pop("started") > 0
    assert held.pop("boot_id")
    assert held.pop("pid_namespace").startswith("pid:")
    assert held == {"host": os.uname().nodename, "pid": os.getpid(), "run_id": "ours"}
    assert not path.exists()


def test_a_second_lock_is_rejected_even_in_the_same_process(tmp_path, path):
    with RunLock(tmp_path, "first"):
        error = refused(tmp_path)
    assert f"run first on host {os.uname().nodename}, process {os.getpid()}, since 2" in error.message
    assert error.field == str(path)
    assert error.expected
    assert "wait" in error.hint
    assert f"delete {path}" in error.hint
    with RunLock(tmp_path, "second"):
        pass


def test_another_process_is_rejected_until_the_lock_is_released(tmp_path, path, python):
    holder = python(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    assert f"run theirs on host {os.uname().nodename}, process {holder.pid}," in refused(tmp_path).message


def test_the_lock_of_a_killed_holder_is_taken_over(tmp_path, path, python, caplog):
    holder = python(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert path.exists()
    with caplog.at_level(logging.WARNING):
        assert taken_over(tmp_path)
    assert f"process {holder.pid}," in caplog.text
    assert "took over" in caplog.text


def test_the_lock_of_a_zombie_holder_is_taken_over(tmp_path, python):
    holder = python(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    os.kill(holder.pid, 0)  # it is a zombie: a process with that number exists
    assert taken_over(tmp_path)


@pytest.mark.parametrize("left_behind", [False, True])
def test_one_of_two_simultaneous_runs_gets_the_lock(tmp_path, path, python, left_behind):
    two = [python(FIGHT, tmp_path, name) for name in "ab"]
    stale = here(pid=gone_pid(python))
    for _ in range(25):
        if left_behind:
            put(path, stale)
        for process in two:
            process.stdin.write("go\n")
            process.stdin.flush()
        came = sorted(process.stdout.readline() for process in two)
        assert came == ["held\n", "refused\n"]
        for process in two:
            process.stdin.write("stop\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
        assert not list(tmp_path.iterdir())


# --- dead holders ---------------------------------------------------------------------------------------


def test_a_reused_process_id_is_another_process(tmp_path, path):
    put(path, here(started=1))
    assert taken_over(tmp_path)


def test_a_running_holder_is_recognized(tmp_path, path):
    put(path, here())
    refused(tmp_path)


def test_without_a_start_time_the_process_id_decides(tmp_path, path, python):
    put(path, here(started=0))
    refused(tmp_path)
    put(path, here(started=0, pid=gone_pid(python)))
    assert taken_over(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_counts_as_running(python):
    code = """if True:
        import os, sys
        from curator_core._checkpoint.holder import Holder
        Holder.parse(Holder.here("").dump())  # loads modules that another user may not be able to read
        os.setuid(65534)
        try:
            os.kill(int(sys.argv[1]), 0)
        except PermissionError:
            print(Holder.parse(sys.argv[2].encode()).is_gone(), Holder.parse(sys.argv[3].encode()).is_gone())
    """
    alive, gone = here(), here(started=1)
    done, _ = python(code, os.getpid(), alive.dump().decode(), gone.dump().decode()).communicate()
    assert done == "False True\n"


def test_processes_from_before_a_reboot_have_ended(tmp_path, path):
    put(path, here(boot_id="another", since=1.0))
    assert taken_over(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "elsewhere"},
        {"boot_id": "another"},  # another machine with the same name: this one was already running
        {"boot_id": "", "since": 1.0},
        {"pid_namespace": "pid:[1]"},  # another container: its process numbers are not valid here
    ],
    ids=str,
)
def test_an_unknown_holder_counts_as_alive(tmp_path, path, python, changes):
    put(path, here(pid=gone_pid(python), **changes))
    refused(tmp_path)


# --- unknown holders ------------------------------------------------------------------------------------


def changed(**changes):
    return json.dumps(dataclasses.asdict(here()) | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff", id="no text"),
        pytest.param(b"null", id="no object"),
        pytest.param(b"[" * 50_000, id="nested too deep"),
        pytest.param(here().dump()[:-20], id="cut off"),
        pytest.param(changed(pid=0), id="pid 0"),
        pytest.param(changed(pid=2**31), id="pid too large"),
        pytest.param(changed(pid=True), id="pid True"),
        pytest.param(changed(pid="1"), id="pid text"),
        pytest.param(changed(since=1e300), id="since too large"),
        pytest.param(changed(since=float("nan")), id="since nan"),
        pytest.param(changed(more=1), id="one more field"),
    ],
)
def test_a_garbled_lock_is_respected_until_it_is_old(tmp_path, path, data):
    path.write_bytes(data)
    assert "in use by an unknown run" in refused(tmp_path).message
    almost, old = time.time() - 50, time.time() - 61
    os.utime(path, (almost, almost))
    refused(tmp_path)
    os.utime(path, (old, old))
    assert taken_over(tmp_path)


def test_a_killed_takeover_is_named(tmp_path, path, python):
    stale = here(pid=gone_pid(python))
    put(path, stale)
    put(tmp_path / "lock.takeover", stale)
    error = refused(tmp_path)
    assert error.field == str(tmp_path / "lock.takeover")
    assert f"delete {tmp_path / 'lock.takeover'}" in error.hint


# --- release --------------------------------------------------------------------------------------------


def test_a_lock_that_was_replaced_is_not_removed(tmp_path, path, caplog):
    with RunLock(tmp_path, "ours"):
        put(path, here())
    assert path.read_bytes()
    path.unlink()
    with RunLock(tmp_path, "ours"):
        path.unlink()
    assert caplog.text.count("was removed or replaced") == 2


def test_releasing_twice_removes_nothing_else(tmp_path, path):
    lock = RunLock(tmp_path, "ours")
    lock.release()
    with lock:
        pass
    with RunLock(tmp_path, "next"):
        lock.release()
        assert path.exists()


def test_the_lock_is_released_after_an_error(tmp_path, path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path, "ours"):
        1 / 0  # noqa: B018
    assert not path.exists()


def test_a_fork_of_the_holder_releases_nothing(tmp_path, path, python):
    code = """if True:
        import os, sys
        from curator_core._checkpoint.lock import RunLock
        lock = RunLock(sys.argv[1], "ours")
        lock.acquire()
        if os.fork() == 0:
            lock.release()
            os._exit(0)
        os.wait()
        print(os.path.exists(sys.argv[1] + "/lock"), flush=True)
        lock.release()
    """
    done, _ = python(code, tmp_path).communicate()
    assert done == "True\n"
    assert not path.exists()


# --- files ----------------------------------------------------------------------------------------------


def test_a_path_that_is_not_a_regular_file_is_rejected(tmp_path, path, not_a_file):
    not_a_file(path)
    with pytest.raises(DataError, match="not a regular file") as caught:
        RunLock(tmp_path, "ours").acquire()
    assert caught.value.field == str(path)


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        RunLock(tmp_path / "none", "ours").acquire()


def test_a_full_disk_leaves_no_lock_behind(tmp_path, path, room_for):
    with room_for(0), pytest.raises(DataError, match="EFBIG"):
        RunLock(tmp_path, "ours").acquire()
    assert not path.exists()


def test_a_full_disk_does_not_change_a_stale_lock(tmp_path, path, python, room_for):
    put(path, here(pid=gone_pid(python)))
    before = path.read_bytes()
    with room_for(0), pytest.raises(DataError, match="EFBIG"):
        RunLock(tmp_path, "ours").acquire()
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_a_new_lock_respects_the_umask(tmp_path, path, umask, mask):
    with umask(mask), RunLock(tmp_path, "ours"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
