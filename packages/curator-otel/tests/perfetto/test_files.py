# SPDX-License-Identifier: Apache-2.0
"""The files that timelines are drawn from and written to."""

from __future__ import annotations

import pytest

from curator_core import ConfigurationError, StagePerfStats, Task
from curator_otel import to_perfetto


def test_file_is_gzipped_where_its_name_ends_in_gz(draw, tmp_path, run):
    result = run()
    plain, packed = draw(result), draw(result, "deep/timeline.json.gz")
    assert packed.events == plain.events
    assert (tmp_path / "deep" / "timeline.json.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_paths_may_be_strings(tmp_path, traced, run):
    assert to_perfetto(str(traced(run)), str(tmp_path / "out.json")).batches == 7


def test_empty_result_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="nothing to draw") as raised:
        to_perfetto([], tmp_path / "out.json")
    assert "that has tasks" in raised.value.hint
    assert not (tmp_path / "out.json").exists()


def test_result_without_any_start_is_refused(tmp_path, finished):
    with pytest.raises(ConfigurationError, match="nothing to draw") as raised:
        to_perfetto([finished(StagePerfStats("s", 1.0, batch_id="0/0"))], tmp_path / "out.json")
    assert raised.value.hint.startswith("none of its 1 batches says when it began")


@pytest.mark.parametrize("text", ["", "\n", '{"resourceSpans": []}', '{"resourceMetrics": []}'])
def test_file_without_spans_is_refused(tmp_path, text):
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="nothing to draw") as raised:
        to_perfetto(path, tmp_path / "out.json")
    assert str(path) in raised.value.given


def test_file_that_is_no_trace_is_refused(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text("{}\nnonsense")
    with pytest.raises(ConfigurationError, match="this is no trace") as raised:
        to_perfetto(path, tmp_path / "out.json")
    assert raised.value.field == f"{path}:2"


def test_missing_trace_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        to_perfetto(tmp_path / "missing.json", tmp_path / "out.json")


@pytest.mark.parametrize(("source", "field"), [(None, "source"), (7, "source"), ([Task(data=1), 7], "source[1]")])
def test_other_sources_are_refused(tmp_path, source, field):
    with pytest.raises(ConfigurationError, match="neither a result nor a trace") as raised:
        to_perfetto(source, tmp_path / "out.json")
    assert raised.value.field == field


def test_path_that_cannot_be_written_is_refused(tmp_path, run):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "out.json", "/dev/full"):
        with pytest.raises(ConfigurationError, match="cannot be written") as raised:
            to_perfetto(run(), path)
        assert raised.value.field == "path"


@pytest.mark.parametrize("path", [None, 7])
def test_target_that_is_not_a_path_is_refused(path, run):
    with pytest.raises(ConfigurationError, match="no path"):
        to_perfetto(run(), path)


def test_trace_itself_is_not_overwritten(traced, run):
    path = traced(run)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="would overwrite the trace"):
        to_perfetto(path, path)
    assert path.read_bytes() == before
