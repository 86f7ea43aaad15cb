# SPDX-License-Identifier: Apache-2.0
"""Runs a runner: ``python -m curator_bench.run plain --workload tiny --size 1000``.

The runners are not main modules: the classes of a main module are pickled by value, and a task class would be pickled
with every single task. No framework should be measured with that.
"""

from __future__ import annotations

import importlib
import sys

from curator_bench.harness import main

if __name__ == "__main__":
    runner = importlib.import_module(f"curator_bench.run_{sys.argv.pop(1)}")
    main(runner.prepare, runner.OPTIONS)
