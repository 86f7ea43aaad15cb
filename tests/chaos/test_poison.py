# SPDX-License-Identifier: Apache-2.0
"""Documents that a stage cannot stand: they are set aside, and take nothing else along."""

from __future__ import annotations

import pytest
from curator_chaos.checks import holds
from curator_chaos.work import RAISES, RUBBISH

XENNA = pytest.param("xenna", marks=pytest.mark.slow)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2], ids=lambda share: f"{share:.1%}")
@pytest.mark.parametrize(("kind", "faults"), [("raises", RAISES), ("returns rubbish", RUBBISH)])
@pytest.mark.parametrize("executor", ["local", "local-2", XENNA])
def test_poison(executor, kind, faults, share, scene, tell):
    tell(fault=f"poison that {kind}, {share:.1%} of the tasks, in batches of 16", on=executor)
    scene.add_poison(share, faults)
    says = scene.run(scene.job(executor))
    holds(scene, says)
    tell(saw=f"{len(scene.poison)} letters")
