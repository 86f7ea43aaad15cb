# SPDX-License-Identifier: Apache-2.0
"""The plots of the page, as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curator_bench.capacity import SWEPT, swept
from curator_bench.contenders import OURS_IN_NEMO, growth_contenders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from curator_bench.contenders import Case, Contender
    from curator_bench.results import Results

__all__ = ["draw"]

OURS, OTHERS, LIMITS = "#1b7f5c", "#9aa5b1", "#d9b44a"
TITLES = {"tasks": "tasks", "stages": "stages, 1,000 tasks", "payload": "bytes of a payload, 16 tasks"}


def draw(
    results: Results,
    cases: Sequence[Case],
    growth: Mapping[str, Sequence[Case]],
    contenders: Sequence[Contender],
    directory: Path,
) -> None:
    """Write the plots, ``benchmarks*.svg``, if there are results to draw."""
    import matplotlib as mpl

    mpl.use("svg")
    # Keep text as text and ids stable: files are small, and so are the differences between versions.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 8})
    _bars(results, cases, contenders, directory / "benchmarks.svg")
    _curves(results, growth, contenders, directory / "benchmarks-growth.svg")
    _capacity(results, directory / "benchmarks-capacity.svg")


def _bars(results: Results, cases: Sequence[Case], contenders: Sequence[Contender], path: Path) -> None:
    from matplotlib.figure import Figure

    shown = [(case, bars) for case in cases if (bars := _medians(results, contenders, case))]
    if not shown:
        return
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(10, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (case, bars) in zip(axes.flat, shown, strict=False):
        axis.barh([bar[0] for bar in bars], [bar[1] for bar in bars], color=[bar[2] for bar in bars])
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(case.key if case.workload != "text" else "text", loc="left")
        axis.set_xlabel("seconds, median")
    figure.savefig(path, metadata={"Date": None})


def _medians(results: Results, contenders: Sequence[Contender], case: Case) -> list[tuple[str, float, str]]:
    found = []
    for one in contenders:
        limits = [other.name for other in contenders if other.limit == one.limit]
        if one.limit and results.limit(case.key, limits) != one.name:
            continue  # only the best of the contenders for the same limit
        value = results.median(case.key, one.name)
        if value is not None:
            mine = one.runner == "ours" or one.name.startswith(OURS_IN_NEMO)
            colour = OURS if mine else LIMITS if one.limit or one.runner == "plain" else OTHERS
            found.append((one.label.replace("**", "").replace("`", ""), value, colour))
    return sorted(found, key=lambda bar: bar[1])


def _curves(
    results: Results, growth: Mapping[str, Sequence[Case]], contenders: Sequence[Contender], path: Path
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    drawn = False
    for axis, (side, cases) in zip(figure.subplots(1, len(growth)), growth.items(), strict=True):
        curves = _points(results, side, cases, contenders)
        for label, points in curves.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axis.set_xlabel(TITLES[side])
        axis.set_xscale("linear" if side == "stages" else "log")
        axis.set_yscale("log")
        axis.set_ylabel("seconds")
        axis.spines[["top", "right"]].set_visible(False)
        if curves:
            axis.legend(frameon=False, fontsize=6)
            drawn = True
    if drawn:
        figure.savefig(path, metadata={"Date": None})


def _capacity(results: Results, path: Path) -> None:
    from matplotlib.figure import Figure

    planned = next((record.values for record in results.records if record.case == "capacity" and record.values), None)
    if planned is None:
        return
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(SWEPT, [planned[swept(nodes)] for nodes in SWEPT], marker="o", markersize=3, color=OURS)
    axis.set_xlabel("nodes")
    axis.set_ylabel("source tasks per second")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def _points(
    results: Results, side: str, cases: Sequence[Case], contenders: Sequence[Contender]
) -> dict[str, list[tuple[int, float]]]:
    curves = {}
    for one in growth_contenders(contenders, cases[0]):
        points = sorted((_x(side, case), y) for case in cases if (y := results.median(case.key, one.name)))
        if len(points) > 1:
            curves[one.label.replace("**", "").replace("`", "")] = points
    return curves


def _x(side: str, case: Case) -> int:
    return {"tasks": case.size, "stages": case.stages, "payload": case.nbytes}[side]
