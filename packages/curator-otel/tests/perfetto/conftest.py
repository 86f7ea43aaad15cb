# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures of timeline tests: a viewer, and data to draw."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from typing import Any

import pytest

from curator_core import StagePerfStats
from curator_otel import Drawn, to_perfetto

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


# --- a viewer -----------------------------------------------------------------------------------------------


class Viewer:
    """Reads a timeline like real viewers, and rejects what they would drop.

    Attributes:
        events: All events.
        slices: Complete events, with ``start`` and ``end`` in nanoseconds, and the names of their process and thread.
        links: For each link, the slices at its two ends.
    """

    def __init__(self, path):
        raw = path.read_bytes()
        text = gzip.decompress(raw) if path.suffix == ".gz" else raw
        document = json.loads(text, parse_constant=pytest.fail)  # NaN is not JSON
        self.about = document["otherData"]
        self.events = document["traceEvents"]
        for event in self.events:
            assert event.keys() >= {"ph", "ts", "pid", "tid", "name"}
            assert event["ph"] in "XMisf"
            assert event["ts"] >= 0
            assert event.get("dur", 0) >= 0
            assert ("dur" in event) == (event["ph"] == "X")
        self.processes = self._names("process_name", "pid")
        self.threads = self._names("thread_name", "tid")
        self._look()

    def _names(self, kind, number):
        found = Counter(event[number] for event in self.events if event["name"] == kind)
        assert set(found.values()) <= {1}
        return {event[number]: event["args"]["name"] for event in self.events if event["name"] == kind}

    def _look(self):
        """Process events like trace processors: by time, with a stack of open slices for each track."""
        assert len({(event["pid"], event["tid"]) for event in self.events}) == len({e["tid"] for e in self.events})
        self.slices, self.marks, ends = [], [], defaultdict(dict)
        stacks: dict[int, list[Any]] = defaultdict(list)
        timed = [event for event in self.events if event["ph"] != "M"]
        for event in sorted(timed, key=lambda event: int(event["ts"] * 1000)):
            event["process"], event["thread"] = self.processes[event["pid"]], self.threads[event["tid"]]
            event["start"] = int(event["ts"] * 1000)
            stack = stacks[event["tid"]]
            if event["ph"] == "X":
                event["end"] = event["start"] + int(event["dur"] * 1000)
                while stack and stack[-1]["end"] <= event["start"]:
                    stack.pop()
                assert not stack or event["end"] <= stack[-1]["end"], "a viewer would drop this slice"
                event["depth"] = len(stack)
                stack.append(event)
                self.slices.append(event)
            elif event["ph"] == "i":
                assert event["s"] == "t"
                self.marks.append(event)
            else:
                assert (event["ph"] == "f") == (event.get("bp") == "e")
                assert event["ph"] not in ends[event["id"]]
                ends[event["id"]][event["ph"]] = stack[-1]
        assert all(found.keys() == {"s", "f"} for found in ends.values())
        self.links = [(found["s"], found["f"]) for found in ends.values()]

    def of(self, category):
        return [event for event in self.slices if event["cat"] == category]

    def seconds(self, category="batch"):
        """Return the total length of slices by name."""
        total: Counter[str] = Counter()
        for event in self.of(category):
            total[event["name"]] += event["end"] - event["start"]
        return {name: ns / SECOND for name, ns in total.items()}

    def tracks(self):
        return {(event["process"], event["thread"]) for event in self.slices}


@pytest.fixture
def draw(tmp_path):
    """A function that draws a source, and reads the result like a viewer."""

    def draw(source, name="timeline.json"):
        drawn = to_perfetto(source, tmp_path / name)
        viewer = Viewer(tmp_path / name)
        assert drawn == Drawn(len(viewer.events), len(viewer.of("batch")), viewer.about["left_out"])
        return viewer

    return draw


# --- input --------------------------------------------------------------------------------------------------


@pytest.fixture
def perf():
    """A function that creates the statistics of a batch with its start time."""

    def make(stage="s", start=0.0, took=1.0, batch="0/0", **fields):
        start_ns = T0 + round(start * SECOND)
        return StagePerfStats(stage, took, start_time_unix_ns=start_ns, batch_id=batch, **fields)

    return make


@pytest.fixture
def file_of(tmp_path):
    """A function that writes spans to a trace file."""

    def write(*spans):
        path = tmp_path / "of-spans.json"
        path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}), encoding="utf-8")
        return path

    return write
