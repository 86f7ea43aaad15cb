# SPDX-License-Identifier: Apache-2.0
"""One progress line per stage, in a terminal or a notebook."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from curator_core._reports.observers import RunObserver

if TYPE_CHECKING:
    from typing import TextIO

    from curator_core._reports.batch import BatchReport, RunInfo
    from curator_core.results import RunResult

__all__ = ["ProgressBar"]


class ProgressBar(RunObserver):
    """Shows one line per stage. Silent if the output is neither a terminal nor a notebook.

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
        in_notebook = _in_notebook()
        if not (in_notebook or (file is not None and file.isatty())):
            return
        width = max(len(stage.name) for stage in run.stages)
        first = 1 if run.num_source_tasks is None else run.num_source_tasks  # a source receives one task
        self._failed = [0] * len(run.stages)
        draw = _tqdm(in_notebook=in_notebook)
        self._bars = [
            draw(
                desc=stage.name.ljust(width),
                total=None if stage.index else first,
                unit="task",
                position=stage.index,
                file=file,
                leave=True,
            )
            for stage in run.stages
        ]

    def on_batch(self, report: BatchReport) -> None:
        """Advance the stage's line, and set how many tasks the next stage can expect."""
        if not self._bars:
            return
        bar = self._bars[report.stage_index]
        tally = report.tally()
        if tally.failed:
            self._failed[report.stage_index] += tally.failed
            bar.set_postfix(failed=self._failed[report.stage_index], refresh=False)
        bar.update(report.num_in - tally.retried)
        if tally.out and report.stage_index + 1 < len(self._bars):
            below = self._bars[report.stage_index + 1]
            below.total = (below.total or 0) + tally.out

    def on_run_end(self, result: RunResult, error: BaseException | None) -> None:
        """Leave the lines on the screen."""
        del result, error
        for bar in self._bars:
            bar.refresh()
            bar.close()
        self._bars = []


def _tqdm(*, in_notebook: bool) -> Any:
    """Return the bar class to use here; imported only now, because core imports in milliseconds without it."""
    from importlib.util import find_spec  # noqa: PLC0415 - see above

    if in_notebook and find_spec("ipywidgets"):  # without it, a notebook shows the lines as text
        from tqdm.notebook import tqdm  # noqa: PLC0415 - see above
    else:
        from tqdm import tqdm  # noqa: PLC0415 - see above
    return tqdm


def _in_notebook() -> bool:
    """Whether this runs under a Jupyter kernel; asks IPython only if it is already imported."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"
