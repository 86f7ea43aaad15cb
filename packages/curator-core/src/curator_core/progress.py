# SPDX-License-Identifier: Apache-2.0
"""One progress line a stage, in a terminal or a notebook."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from curator_core.report import RunObserver

if TYPE_CHECKING:
    from typing import TextIO

    from curator_core.executor import RunResult
    from curator_core.report import BatchReport, RunInfo

__all__ = ["ProgressBar"]


class ProgressBar(RunObserver):
    """Shows one line a stage. Silent where the output is neither a terminal nor a notebook.

    Args:
        file: Where to draw; standard error by default.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file
        self._bars: list[Any] = []
        self._failed: list[int] = []

    def on_run_start(self, run: RunInfo) -> None:
        """Draw an empty line for each stage."""
        file = self._file or sys.stderr
        notebook = _in_notebook()
        if not (notebook or file.isatty()):
            return
        if notebook:
            from tqdm.notebook import tqdm  # noqa: PLC0415 - needs ipywidgets, which a terminal need not have
        else:
            from tqdm import tqdm  # noqa: PLC0415 - core imports in milliseconds without it
        width = max(len(stage.name) for stage in run.stages)
        totals = [run.num_source_tasks, *(None for _ in run.stages[1:])]
        self._failed = [0] * len(run.stages)
        self._bars = [
            tqdm(desc=stage.name.ljust(width), total=total, unit="task", position=stage.index, file=file, leave=True)
            for stage, total in zip(run.stages, totals, strict=True)
        ]

    def on_batch(self, report: BatchReport) -> None:
        """Move the stage's line on, and set what the next stage is to expect."""
        if not self._bars:
            return
        bar = self._bars[report.stage_index]
        failed = sum(outcome.kind == "failed" for outcome in report.inputs)
        done = sum(outcome.kind != "retried" for outcome in report.inputs)
        if failed:
            self._failed[report.stage_index] += failed
            bar.set_postfix(failed=self._failed[report.stage_index], refresh=False)
        bar.update(done)
        if report.num_out and report.stage_index + 1 < len(self._bars):
            below = self._bars[report.stage_index + 1]
            below.total = (below.total or 0) + report.num_out

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        """Leave the lines standing as they are."""
        del result, error
        for bar in self._bars:
            bar.refresh()
            bar.close()
        self._bars = []


def _in_notebook() -> bool:
    """Whether this runs under a Jupyter kernel; IPython is asked only where it is loaded already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"
