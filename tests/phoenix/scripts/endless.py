# SPDX-License-Identifier: Apache-2.0
"""A driver that runs until it is killed. Arguments: the address of a receiver, and a directory for snapshots."""

from __future__ import annotations

import sys
import time
from itertools import count

from curator_core import Pipeline, ProcessingStage, RunObserver, Task, processing_stage
from curator_otel import OTelObserver, configure


class Numbers(ProcessingStage):
    """An endless source."""

    def process(self, task):
        return (Task(data=number) for number in count())


@processing_stage()
def think(task):
    time.sleep(0.02)


class SayId(RunObserver):
    """Sends the run id to the parent process."""

    def on_run_start(self, run):
        print(run.run_id, flush=True)  # noqa: T201 - the parent process reads it


if __name__ == "__main__":
    telemetry = configure(endpoint=sys.argv[1], set_global=False)
    tracing = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider, snapshots=sys.argv[2])
    Pipeline("endless", [Numbers(), think]).run(observers=[tracing, SayId()])
