# SPDX-License-Identifier: Apache-2.0
"""User code that leaves its caller in an unusual way: a run always has an outcome and never hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from curator_chaos.unruly import EXECUTORS, METHODS, WAYS

HERE = Path(__file__).parent
DEADLINE_S = 600.0  # for fifteen runs, on a busy machine
GOES_THROUGH = "all succeed"
FAILS = "1 of 3 fails"

pytestmark = [pytest.mark.everything, pytest.mark.timeout(1.5 * DEADLINE_S)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("on", EXECUTORS)
def test_unruly_code(on, way, tmp_path, tell):
    limit = ", with time limits of 2 s" if way == "hangs" else ""
    tell(fault=f"a stage that {way}, in each of its methods under each `on_error`{limit}", on=on)
    command = [sys.executable, "-m", "curator_chaos.unruly", on, way, str(tmp_path)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {method: expected(on, way, method) for method in METHODS}
    tell(saw=summary(found))


def expected(on: str, way: str, method: str) -> dict[str, str]:
    """Return the expected outcome of a run under each policy."""
    error = "StageTimeoutError" if way == "hangs" else "StageError"
    if way == "forks":
        whole = skipped = GOES_THROUGH
    elif way == "raises KeyboardInterrupt" and on == "local":  # in the main thread of the driver, this is a Ctrl-C
        whole = skipped = "`KeyboardInterrupt`"
    elif method == "teardown":
        kinds = {"panics": "PanicError", "exits": "SystemExit", "hangs": error}
        whole = skipped = f"{GOES_THROUGH}, reported: `{kinds.get(way, 'KeyboardInterrupt')}`"
    else:
        whole = f"`{error}`"
        skipped = FAILS if method.startswith("process") else whole
    return {"raise": whole, "skip": skipped, "dead letter": skipped}


def summary(found: dict[str, dict[str, str]]) -> str:
    """Describe the outcomes, each with its methods and policies."""
    seen = defaultdict(list)
    for method, outcomes in found.items():
        for policy, outcome in outcomes.items():
            seen[outcome].append((method, policy))
    parts = []
    for outcome, where in seen.items():
        methods = list(dict.fromkeys(method for method, _ in where))
        policies = list(dict.fromkeys(policy for _, policy in where))
        if len(seen) == 1:
            return outcome
        in_all = len(where) == len(methods) * len(policies)
        under = f" ({' and '.join(policies)})" if in_all and len(policies) < len(found[methods[0]]) else ""
        parts.append(f"{', '.join(f'`{name}`' for name in methods)}{under}: {outcome}")
    return "; ".join(parts)
