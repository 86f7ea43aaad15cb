# SPDX-License-Identifier: Apache-2.0
"""With many batches, the trace and the driver stay small."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# In a separate process: memory that earlier tests have left does not count.
PROGRAM = """
import gc, json, sys
from pathlib import Path
from curator_core import RunResult
from curator_core._reports.batch import BatchReport, RunInfo, StageInfo
from curator_otel import OTelObserver, configure

STAGES, WORKERS = 10, 64
RUN = "0af7651916cd43dd8448eb211c80319c"
trace, batches = sys.argv[1], int(sys.argv[2])

def held():
    assert telemetry.flush(120)
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return sys.getallocatedblocks(), pages * 4096

def report(number):
    task, stage = divmod(number, STAGES)
    return BatchReport(
        RUN, stage, f"stage{stage}", f"{stage}/{task}", f"w{task % WORKERS}", "n", 1, task // WORKERS,
        1_700_000_000_000_000_000 + number * 1_000_000, 1_000_000 + number % 977, (str(task),), {},
        parents=(f"{stage - 1}/{task}",) if stage else (),
    )

telemetry = configure(json_file=trace, json_metrics_file=trace + ".metrics", set_global=False, shutdown_timeout_s=120)
observer = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider)
stages = tuple(StageInfo(index, f"stage{index}", "Stage") for index in range(STAGES))
observer.on_run_start(RunInfo(RUN, "million", "None", stages, 1_700_000_000_000_000_000))
for number in range(10_000):  # all spans that any run makes up to this point
    observer.on_batch(report(number))
blocks, size = held()
for number in range(10_000, batches):
    observer.on_batch(report(number))
blocks_now, size_now = held()
observer.on_run_end(RunResult(run_id=RUN), None)
telemetry.shutdown()
more = {"blocks_a_batch": (blocks_now - blocks) / (batches - 10_000), "bytes": size_now - size}
print(json.dumps(more | {"dropped": telemetry.dropped}))
"""


@pytest.mark.parametrize("batches", [40_000, pytest.param(1_000_000, marks=pytest.mark.everything)])
def test_memory_and_trace_stay_small_however_many_batches(spans_of, tmp_path, batches):
    trace = tmp_path / "trace.json"
    command = [sys.executable, "-c", PROGRAM, str(trace), str(batches)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads(done.stdout)
    assert seen["blocks_a_batch"] < 0.5  # not even the id of a batch is kept
    assert seen["bytes"] < 50_000_000
    assert seen["dropped"] == 0
    spans = [
        {"name": span["name"]} | {pair["key"]: next(iter(pair["value"].values())) for pair in span["attributes"]}
        for span in spans_of(trace)
    ]
    assert 100 < len(spans) <= 1500
    assert trace.stat().st_size < 5_000_000  # the maximum size for Tempo
    stages = [span for span in spans if "curator.stage.class" in span]
    assert [int(stage["curator.batch.ended"]) for stage in stages] == [batches // 10] * 10
    kept = sum(span["name"].startswith("process_batch") for span in spans)
    assert sum(int(stage["curator.span.left_out"]) for stage in stages) == batches - kept
    metrics = trace.with_suffix(".json.metrics").read_text().splitlines()[-1]
    assert sum(counts(json.loads(metrics), "curator.batch.count")) == batches


def counts(request, name):
    for resource in request["resourceMetrics"]:
        for scope in resource["scopeMetrics"]:
            for metric in scope["metrics"]:
                if metric["name"] == name:
                    yield from (int(point["asInt"]) for point in metric["sum"]["dataPoints"])
