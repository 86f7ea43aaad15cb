# SPDX-License-Identifier: Apache-2.0
"""SIGKILL and SIGSTOP of the driver, a worker, and the coordinator."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
from curator_chaos import processes
from curator_chaos.checks import accounts_add_up, contents, holds, nothing_runs, shared_memory, temporary_files
from curator_chaos.work import FILES, RAISES, STALLS

PACE_S = 0.003  # per chapter: slow enough that there are different moments to choose from
SLOWER_PACE_S = 0.01  # if the fault must happen in the middle
STARTS_S = {"local": 1.0, "local-2": 2.0, "xenna": 8.0}  # seconds in which a driver may not have started its work yet
TARGET_SIZE = 5000  # bytes: several dozen documents
STOPPED_S = 60.0
POISON = 0.01

LONG = pytest.mark.everything
MOMENTS = [
    pytest.param("local", 10, marks=LONG),
    pytest.param("local-2", 10, marks=LONG),
    ("local-2", 3),
    ("xenna", 2),
    pytest.param("xenna", 5, marks=LONG),
]


@pytest.mark.parametrize(("executor", "most"), MOMENTS)
def test_the_driver_is_killed_again_and_again(executor, most, scene, tell):
    tell(fault="SIGKILL of the driver at random moments, resumed each time", on=executor)
    scene.add_poison(POISON, RAISES)
    job = scene.job(executor, PACE_S)
    kills = 0
    for number in range(most):
        driver = scene.start(job)
        if number % 4 == 0:
            driver.lives_for(scene.rng.uniform(0, STARTS_S[executor]))
        else:
            scene.reach_a_moment(driver)
        if not driver.kill():
            break
        kills += 1
    says = scene.run(job)
    holds(scene, says)
    assert kills
    tell(saw=f"{kills} kills; the last run skipped {says['accounting']['resumed']} of {FILES} source tasks")


@pytest.mark.parametrize(
    ("executor", "most"),
    [pytest.param("local-2", 10, marks=LONG), ("local-2", 3), pytest.param("xenna", 4, marks=LONG)],
)
def test_the_driver_is_killed_again_and_again_with_files_of_several_tasks(executor, most, scene, tell):
    tell(fault="SIGKILL of the driver, resumed each time, with files of several tasks", on=executor)
    scene.target_size = TARGET_SIZE
    scene.add_poison(POISON, RAISES)
    job = scene.job(executor, PACE_S)
    kills = 0
    for _ in range(most):
        driver = scene.start(job)
        scene.reach_a_moment(driver)
        if not driver.kill():
            break
        kills += 1
    holds(scene, scene.run(job))
    assert kills
    tell(saw=f"{kills} kills; each document is in one of {len(contents(scene.out))} files")


@LONG
def test_the_driver_is_killed_while_a_file_is_written(scene, tell):
    tell(fault="SIGKILL of the driver in the middle of a file, then resumed", on="local")
    job = replace(scene.job("local"), poison={scene.rng.choice(scene.source.chapters): STALLS})
    driver = scene.start(job)
    driver.wait_until((scene.marks / STALLS).exists)
    assert driver.kill()
    holds(scene, scene.run(job))
    tell(saw="nothing of the first attempt is left")


def test_the_driver_is_killed_while_its_workers_start(scene, tell):
    tell(fault="SIGKILL of the driver while its workers start, then resumed", on="local-2")
    job = scene.job("local-2")
    driver = scene.start(job)
    driver.wait_until(lambda: bool(shared_memory(driver)))
    assert driver.kill()
    holds(scene, scene.run(job))
    tell(saw="nothing of the first attempt is left")


def with_a_worker_killed(scene, job):
    """Kill a worker of a driver at a random moment, and return the final report of the driver."""
    driver = scene.start(job)
    scene.reach_a_moment(driver, before=0.7)
    os.kill(scene.rng.choice(scene.workers()), signal.SIGKILL)
    return driver.wait()


def test_a_worker_is_killed_on_xenna(scene, tell):
    tell(fault="SIGKILL of a worker at a random moment", on="xenna")
    scene.add_poison(POISON, RAISES)
    says = with_a_worker_killed(scene, scene.job("xenna", SLOWER_PACE_S))
    holds(scene, says)
    tell(saw=f"the run succeeds, restarts: {says['accounting']['restarts']}")


def test_a_worker_is_killed_locally(scene, tell):
    tell(fault="SIGKILL of a worker at a random moment", on="local-2")
    scene.add_poison(POISON, RAISES)
    says = with_a_worker_killed(scene, scene.job("local-2", SLOWER_PACE_S))
    holds(scene, says)
    assert says["accounting"]["restarts"] == 1
    tell(saw="the run succeeds, restarts: 1")


def kill_a_worker(scene):
    """Kill a random worker; return whether there was one."""
    if workers := scene.workers():
        with suppress(ProcessLookupError):  # it has ended in the meantime
            os.kill(scene.rng.choice(workers), signal.SIGKILL)
            return True
    return False


@LONG
@pytest.mark.timeout(900)  # on a slow machine, a worker starts for most of the second until it is killed
@pytest.mark.parametrize("executor", ["local-2", "xenna"])
def test_workers_are_killed_all_the_time(executor, scene, tell):
    tell(fault="SIGKILL of a random worker every second, resumed when restarts are used up", on=executor)
    scene.add_poison(POISON, RAISES)
    kills = 0

    def kill_one():
        nonlocal kills
        kills += kill_a_worker(scene)

    told = scene.outlast(scene.job(executor, PACE_S), kill_one)
    holds(scene, told[-1])
    assert kills
    tell(saw=f"{kills} kills, runs: {len(told)}")


@LONG
@pytest.mark.timeout(900)  # on a slow machine, a worker starts for most of the second until it is killed
@pytest.mark.parametrize("executor", ["local-2", "xenna"])
def test_workers_are_killed_all_the_time_with_files_of_several_tasks(executor, scene, tell):
    tell(fault="SIGKILL of a random worker every second, with files of several tasks", on=executor)
    scene.target_size = TARGET_SIZE
    scene.add_poison(POISON, RAISES)
    told = scene.outlast(scene.job(executor, PACE_S), partial(kill_a_worker, scene))
    holds(scene, told[-1])
    tell(saw=f"runs: {len(told)}; each document is in one of {len(contents(scene.out))} files")


@LONG
def test_the_coordinator_is_killed(scene, tell):
    tell(fault="SIGKILL of the coordinator at a random moment, then resumed", on="xenna")
    scene.add_poison(POISON, RAISES)
    job = scene.job("xenna", SLOWER_PACE_S)
    driver = scene.start(job)
    scene.reach_a_moment(driver, before=0.7)
    (coordinator,) = processes.find("ray::Coordinator")
    os.kill(coordinator, signal.SIGKILL)
    died = driver.wait()
    assert died["error"] == "ClusterError"
    assert "coordinator" in died["message"]
    nothing_runs()
    holds(scene, scene.run(job))
    tell(saw="`ClusterError`, then the run succeeds")


@LONG
@pytest.mark.timeout(600)  # the pause of a minute, plus the start, the run, and the end of Ray
@pytest.mark.parametrize("executor", ["local-2", "xenna"])
def test_a_stopped_worker_continues(executor, scene, tell):
    tell(fault=f"SIGSTOP of a worker at a random moment, SIGCONT {STOPPED_S:.0f} s later", on=executor)
    scene.add_poison(POISON, RAISES)
    driver = scene.start(scene.job(executor, SLOWER_PACE_S))
    scene.reach_a_moment(driver, before=0.7)
    worker = scene.rng.choice(scene.workers())
    os.kill(worker, signal.SIGSTOP)
    try:
        is_waited_for = driver.lives_for(STOPPED_S)
    finally:
        with suppress(ProcessLookupError):  # a run that does not need the worker kills it
            os.kill(worker, signal.SIGCONT)
    says = driver.wait()
    holds(scene, says)
    how = "waits for it and succeeds" if is_waited_for else "succeeds without it"
    tell(saw=f"the run {how}, restarts: {says['accounting']['restarts']}")


@LONG
def test_a_second_driver_is_rejected(scene, tell):
    tell(fault="a second driver with the checkpoint of a running one", on="local")
    scene.add_poison(POISON, RAISES)
    job = scene.job("local", SLOWER_PACE_S)
    first = scene.start(job)
    scene.reach_a_moment(first, before=0.3)
    assert first.runs
    os.kill(first.pid, signal.SIGSTOP)  # so that it keeps the lock until the second driver has ended
    try:
        second = scene.run(job)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second["error"] == "ConfigurationError"
    assert str(first.pid) in second["message"]
    says = first.wait()
    assert says["accounting"]["resumed"] == 0
    accounts_add_up(scene, says)
    holds(scene, says)
    assert temporary_files(scene) == []
    tell(saw="`ConfigurationError` for the second, the first succeeds")
