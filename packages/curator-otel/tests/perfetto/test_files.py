# SPDX-License-Identifier: Apache-2.0
"""Input and output files of timelines."""

from __future__ import annotations

import pytest

from curator_core import ConfigurationError, StagePerfStats, Task
from curator_otel import to_perfetto


def test_file_is_gzipped_if_its_name_ends_in_gz(draw, tmp_path, run):
    result = run()
    plain, packed = draw(result), draw(result, "deep/timeline.json.gz")
    assert packed.events == plain.events
    assert (tmp_path / "deep" / "timeline.json.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_paths_can_be_strings(tmp_path, traced, run):
    assert to_perfetto(str(traced(run)), str(tmp_path / "out.json")).batches == 7


def refused(source, path):
    with pytest.raises(ConfigurationError) as raised:
        to_perfetto(source, path)
    assert not path.exists()
    return raised.value


def test_result_without_start_times_is_rejected(tmp_path, finished):
    nothing = refused([], tmp_path / "out.json")
    assert "nothing to draw" in nothing.message
    assert "that has tasks" in nothing.hint
    no_start = refused([finished(StagePerfStats("s", 1.0, batch_id="0/0"))], tmp_path / "out.json")
    assert no_start.hint == "pass tasks with start times: none of the 1 batches has one"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "nothing to draw"),
        ('\n{"resourceSpans": []}', "nothing to draw"),
        ('{"resourceMetrics": []}', "nothing to draw"),
        ("{}\nnonsense", "not a trace"),
    ],
)
def test_file_without_spans_is_rejected(tmp_path, text, message):
    path = tmp_path / "trace.json"
    if text is not None:
        path.write_text(text)
    error = refused(path, tmp_path / "out.json")
    assert message in error.message
    assert str(path) in str(error)


@pytest.mark.parametrize(("source", "field"), [(None, "source"), (7, "source"), ([Task(data=1), 7], "source[1]")])
def test_other_sources_are_rejected(tmp_path, source, field):
    error = refused(source, tmp_path / "out.json")
    assert "neither a result nor a trace" in error.message
    assert error.field == field


def test_unwritable_path_is_rejected(tmp_path, run):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "out.json", "/dev/full"):
        with pytest.raises(ConfigurationError, match="cannot be written") as raised:
            to_perfetto(run(), path)
        assert raised.value.field == "path"


@pytest.mark.parametrize("path", [None, 7, "", "a\0b", "\ud800", "s3://bucket/out.json"])
def test_target_that_is_not_a_local_path_is_rejected(path, run):
    with pytest.raises(ConfigurationError) as raised:
        to_perfetto(run(), path)
    assert (raised.value.field, raised.value.expected) == ("path", "a path on a local or network file system")


def test_trace_itself_is_not_overwritten(traced, run):
    path = traced(run)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="would overwrite the trace"):
        to_perfetto(path, path)
    assert path.read_bytes() == before
