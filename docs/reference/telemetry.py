# SPDX-License-Identifier: Apache-2.0
"""Writes the page beside it, telemetry.md, from the tables in `curator_otel.conventions`.

Run ``python docs/reference/telemetry.py`` when they have changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from curator_otel.conventions import ATTRIBUTES, EVENTS, METRICS, SPANS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from curator_otel.conventions import Attribute, Metric

PAGE = Path(__file__).with_suffix(".md")

INTRODUCTION = """\
# What telemetry says

Every name that `curator-otel` emits; nothing else is. There is no OpenTelemetry convention for batch data pipelines, so
the names are our own. What is `stable` is OpenTelemetry's; what is in `development` may change with a minor version.
Units are written in [UCUM](https://ucum.org), as OpenTelemetry's are. An attribute that is also on `metric` is a label
of metrics. How to get a trace is told in [Tracing](../guides/tracing.md).

<!-- Made by docs/reference/telemetry.py: change the tables in curator_otel/conventions.py, and run it again. -->
"""


def render() -> str:
    """The page."""
    parts = [INTRODUCTION, "## Spans\n", *_spans(), "## Events\n", *_events()]
    parts += ["## Attributes\n", *_attributes(), "## Metrics\n", *_metrics()]
    return "\n".join(parts)


def _spans() -> Iterator[str]:
    rows = [(_code(span.key), _code(span.name), span.kind, span.description) for span in SPANS.values()]
    yield _table(("span", "its name", "kind", "stands for"), rows)


def _events() -> Iterator[str]:
    rows = [(_code(name), description) for name, description in EVENTS.items()]
    yield _table(("event", "says"), rows)


def _attributes() -> Iterator[str]:
    """A table for each span and event: the attributes that it is the first to have."""
    titles = {key: f"Of the span `{key}`" for key in SPANS} | {key: f"Of the event `{key}`" for key in EVENTS}
    for key, title in (titles | {"metric": "Of metrics only"}).items():
        found = [attribute for attribute in ATTRIBUTES.values() if attribute.on[0] == key]
        if found:
            yield f"### {title}\n"
            header = ("attribute", "type", "unit", "says", "also on", "stability")
            yield _table(header, [_attribute(attribute) for attribute in found])


def _attribute(attribute: Attribute) -> tuple[str, ...]:
    return (
        _code(attribute.name),
        attribute.type,
        _code(attribute.unit),
        attribute.description,
        ", ".join(map(_code, attribute.on[1:])),
        attribute.stability,
    )


def _metrics() -> Iterator[str]:
    header = ("metric", "instrument", "unit", "says", "labels", "stability")
    yield _table(header, [_metric(metric) for metric in METRICS.values()])
    histograms: dict[tuple[float, ...], list[str]] = {}
    for metric in METRICS.values():
        if metric.boundaries:
            histograms.setdefault(metric.boundaries, []).append(_code(metric.name))
    for boundaries, found in histograms.items():
        yield f"Buckets of {', '.join(found)} end at {', '.join(f'{bound:g}' for bound in boundaries)}.\n"


def _metric(metric: Metric) -> tuple[str, ...]:
    return (
        _code(metric.name),
        metric.instrument,
        _code(metric.unit),
        metric.description,
        ", ".join(map(_code, metric.labels)),
        metric.stability,
    )


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [_row(header), "|---" * len(header) + "|", *map(_row, rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    shown = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(shown)} |"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
