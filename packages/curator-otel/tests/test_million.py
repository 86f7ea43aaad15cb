# SPDX-License-Identifier: Apache-2.0
"""A million batches: the trace stays small, and so does the driver."""

from __future__ import annotations

import json
import subprocess
import sys

# In a process of its own, so that what the tests before it have left does not count.
PROGRAM = """
import json, sys, time
from pathlib import Path
from curator_core import RunResult
from curator_core.report import BatchReport, Outcomes, RunInfo, StageInfo
from curator_otel import OTelObserver, configure

BATCHES, STAGES, WORKERS = 1_000_000, 10, 64
RUN = "0af7651916cd43dd8448eb211c80319c"

def memory():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096

def report(number):
    task, stage = divmod(number, STAGES)
    return BatchReport(
        RUN, stage, f"stage{stage}", f"{stage}/{task}", f"w{task % WORKERS}", "n", 1, task // WORKERS,
        1_700_000_000_000_000_000 + number * 1_000_000, 1_000_000 + number % 977, Outcomes((str(task),), {}),
        parents=(f"{stage - 1}/{task}",) if stage else (),
    )

telemetry = configure(json_file=sys.argv[1], json_metrics_file=sys.argv[1] + ".metrics", set_global=False)
observer = OTelObserver(telemetry.tracer_provider, telemetry.meter_provider)
stages = tuple(StageInfo(index, f"stage{index}", "Stage") for index in range(STAGES))
observer.on_run_start(RunInfo(RUN, "million", "None", stages, 1_700_000_000_000_000_000))
for number in range(1000):
    observer.on_batch(report(number))
before, spent = memory(), 0
for number in range(1000, BATCHES):
    one = report(number)
    start = time.thread_time_ns()
    observer.on_batch(one)
    took = time.thread_time_ns() - start
    spent += took
grown = memory() - before
observer.on_run_end(RunResult(run_id=RUN), None)
telemetry.shutdown()
print(json.dumps({"grown_mb": grown / 1e6, "dropped": telemetry.dropped, "us_a_batch": spent / BATCHES / 1e3}))
"""


def test_a_million_batches(spans_of, tmp_path, capsys):
    trace = tmp_path / "trace.json"
    done = subprocess.run([sys.executable, "-c", PROGRAM, trace], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    told = json.loads(done.stdout)
    spans = [
        {"name": span["name"]} | {pair["key"]: next(iter(pair["value"].values())) for pair in span["attributes"]}
        for span in spans_of(trace)
    ]
    megabytes = trace.stat().st_size / 1e6
    figures = (
        f"1,000,000 batches: {len(spans):,} spans in {megabytes:.1f} MB, driver {told['grown_mb']:+.1f} MB, "
        f"{told['dropped']} dropped, {told['us_a_batch']:.1f} us a batch"
    )
    with capsys.disabled():
        print(f"\n{figures}")  # noqa: T201 - people want to see them, and not only that they are small enough
    assert 100 < len(spans) <= 1500
    assert megabytes < 5  # what Tempo takes
    assert told["grown_mb"] < 50
    assert told["dropped"] == 0
    stages = [span for span in spans if "curator.stage.batches" in span]
    assert [int(stage["curator.stage.batches"]) for stage in stages] == [100_000] * 10
    kept = sum(span["name"].startswith("process_batch") for span in spans)
    assert sum(int(stage["curator.spans.left_out"]) for stage in stages) == 1_000_000 - kept
    metrics = trace.with_suffix(".json.metrics").read_text().splitlines()[-1]
    assert sum(counts(json.loads(metrics), "curator.batch.count")) == 1_000_000


def counts(request, name):
    for resource in request["resourceMetrics"]:
        for scope in resource["scopeMetrics"]:
            for metric in scope["metrics"]:
                if metric["name"] == name:
                    yield from (int(point["asInt"]) for point in metric["sum"]["dataPoints"])
