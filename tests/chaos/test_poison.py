# SPDX-License-Identifier: Apache-2.0
"""Documents on which a stage fails: only these are set aside, and no other document is affected."""

from __future__ import annotations

from dataclasses import replace

import pytest
from curator_chaos.checks import holds
from curator_chaos.scene import DEADLINE_S
from curator_chaos.work import CRASHES, HANGS, RAISES, RUBBISH

PROCESSES_S = 2.0  # for the processes that a poisoned chapter may cost, on a busy machine
SHARE = "{:.1%}".format  # for the names of tests
LONG = pytest.mark.everything
SHARES = pytest.mark.parametrize("share", [0.001, 0.01, 0.2], ids=SHARE)
LIMITS = {0.001: 2.0, 0.01: 2.0, 0.2: 0.5}  # seconds per call by the share of poison, which uses them up

pytestmark = pytest.mark.timeout(900)


@LONG
@SHARES
@pytest.mark.parametrize(("kind", "faults"), [("raises", RAISES), ("returns invalid outputs", RUBBISH)])
@pytest.mark.parametrize("executor", ["local", "local-2"])
def test_poison(executor, kind, faults, share, scene, tell):
    check(f"poison that {kind}, {100 * share:g}% of the tasks, in batches of 16", executor, share, faults, scene, tell)


@LONG
@SHARES
def test_poison_on_xenna(share, scene, tell):
    """Test both kinds together: a run takes ten times as long as a local one."""
    fault = f"poison that raises or returns invalid outputs, {100 * share:g}% of the tasks, in batches of 16"
    check(fault, "xenna", share, [*RUBBISH, *RAISES], scene, tell)


@pytest.mark.parametrize("share", [pytest.param(0.001, marks=LONG), 0.01, pytest.param(0.2, marks=LONG)], ids=SHARE)
@pytest.mark.parametrize("executor", [pytest.param("local", marks=LONG), "local-2"])
def test_poison_that_crashes(executor, share, scene, tell):
    fault = f"poison that segfaults or exits, {100 * share:g}% of the tasks, in batches of 16, isolated"
    check(fault, executor, share, CRASHES, scene, tell, isolated=True)


@LONG
@SHARES
@pytest.mark.parametrize("executor", ["local", "local-2"])
def test_poison_that_hangs(executor, share, scene, tell):
    check_that_hangs(executor, share, scene, tell)


@LONG
@SHARES
def test_poison_that_crashes_on_xenna(share, scene, tell):
    """The stage is not isolated from the start: workers die until a restart isolates it."""
    fault = f"poison that segfaults or exits, {100 * share:g}% of the tasks, in batches of 16"
    check(fault, "xenna", share, CRASHES, scene, tell)


@LONG
@SHARES
def test_poison_that_hangs_on_xenna(share, scene, tell):
    check_that_hangs("xenna", share, scene, tell)


def check_that_hangs(executor, share, scene, tell):
    limit = LIMITS[share]
    fault = f"poison that hangs, {100 * share:g}% of the tasks, in batches of 16, with a time limit of {limit:g} s"
    check(fault, executor, share, HANGS, scene, tell, timeout_s=limit)


def check(fault, executor, share, faults, scene, tell, **settings):
    tell(fault=fault, on=executor)
    scene.add_poison(share, faults)
    driver = scene.start(replace(scene.job(executor), settings=settings))
    says = driver.wait(DEADLINE_S + PROCESSES_S * len(scene.poison))
    holds(scene, says)
    restarts = says["accounting"]["restarts"]
    tell(saw=f"letters: {len(scene.poison)}" + (f", restarts: {restarts}" if restarts else ""))
