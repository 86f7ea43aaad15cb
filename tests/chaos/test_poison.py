# SPDX-License-Identifier: Apache-2.0
"""Documents that a stage cannot stand: they are set aside, and take nothing else along."""

from __future__ import annotations

import pytest
from curator_chaos.checks import holds
from curator_chaos.work import RAISES, RUBBISH

SHARES = pytest.mark.parametrize("share", [0.001, 0.01, 0.2], ids=lambda share: f"{share:.1%}")


@SHARES
@pytest.mark.parametrize(("kind", "faults"), [("raises", RAISES), ("returns rubbish", RUBBISH)])
@pytest.mark.parametrize("executor", ["local", "local-2"])
def test_poison(executor, kind, faults, share, scene, tell):
    check(f"poison that {kind}, {100 * share:g} % of the tasks, in batches of 16", executor, share, faults, scene, tell)


@pytest.mark.slow
@SHARES
def test_poison_on_xenna(share, scene, tell):
    """Both at once: a run takes ten times as long as a local one."""
    fault = f"poison that raises or returns rubbish, {100 * share:g} % of the tasks, in batches of 16"
    check(fault, "xenna", share, [*RUBBISH, *RAISES], scene, tell)


def check(fault, executor, share, faults, scene, tell):
    tell(fault=fault, on=executor)
    scene.add_poison(share, faults)
    says = scene.run(scene.job(executor))
    holds(scene, says)
    tell(saw=f"letters: {len(scene.poison)}")
