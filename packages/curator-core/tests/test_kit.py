# SPDX-License-Identifier: Apache-2.0
"""The conformance kit detects faults of an executor."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import curator_core

SABOTEURS = """
    import pytest
    from curator_core import LocalExecutor
    from curator_core._adapter.adapter import BaseStageAdapter
    from curator_core.tasks import stamp, state_of
    from curator_core.testing import ExecutorConformance


    class WithBatchesOfTheirOwn(LocalExecutor):
        def run_plan(self, run):
            for view in run.plan.stages:
                object.__setattr__(view, "batch_size", 1000)
            super().run_plan(run)


    class Losing(LocalExecutor):
        def run_plan(self, run):
            super().run_plan(run)
            del run.outputs[:1]


    class Hushing(LocalExecutor):
        def run_plan(self, run):
            report, seen = run.report, []
            run.report = lambda r: seen.append(r) or (report(r) if len(seen) % 7 else None)
            super().run_plan(run)


    class Repeating(LocalExecutor):
        def run_plan(self, run):
            report = run.report
            run.report = lambda r: (report(r), report(r))
            super().run_plan(run)


    class Forgetting(LocalExecutor):
        def run_plan(self, run):
            super().run_plan(run)
            for task in run.outputs:
                stamp(task, (state_of(task)[0], (), None))


    class Untidy(LocalExecutor):
        def run_plan(self, run):
            teardown, BaseStageAdapter.teardown = BaseStageAdapter.teardown, lambda self: None
            try:
                super().run_plan(run)
            finally:
                BaseStageAdapter.teardown = teardown


    class Unprepared(LocalExecutor):
        def run_plan(self, run):
            prepare, BaseStageAdapter.setup_on_node = BaseStageAdapter.setup_on_node, lambda self, node, worker: None
            try:
                super().run_plan(run)
            finally:
                BaseStageAdapter.setup_on_node = prepare


    class Shuffling(LocalExecutor):
        def run_plan(self, run):
            super().run_plan(run)
            run.outputs.reverse()


    class UsingTheCallersStages(LocalExecutor):
        def run_plan(self, run):
            kind = type(run.plan.stages[0])
            fresh, kind.fresh_stage = kind.fresh_stage, lambda self: self.stage
            try:
                super().run_plan(run)
            finally:
                kind.fresh_stage = fresh


    class Swallowing(LocalExecutor):
        def execute(self, *args, **options):
            return super().execute(*args, **(options | {"on_error": "skip"}))
"""
FOUND = {
    "WithBatchesOfTheirOwn": "test_batches_have_at_most_batch_size_tasks",
    "Losing": "test_ids_gain_a_segment_at_each_fan_out",
    "Hushing": "test_reports_add_up_to_the_result",
    "Repeating": "test_each_input_has_one_outcome",
    "Forgetting": "test_stage_perf_is_the_history_of_the_task_oldest_first",
    "Untidy": "test_every_worker_is_set_up_before_it_works_and_torn_down_after",
    "Unprepared": "test_every_node_is_set_up_once_and_first",
    "Shuffling": "test_outputs_are_in_order_if_the_executor_promises_it",
    "UsingTheCallersStages": "test_objects_of_the_caller_are_not_modified",
    "Swallowing": "test_the_error_names_the_stage_and_its_exception",
}
TEST_CLASS = """

    class Test{name}(ExecutorConformance):
        ordered = True

        @pytest.fixture(scope="class")
        @classmethod
        def executor(cls):
            return {name}()
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the tests of the kit that fail, each run on an executor with the fault that it should detect.

    Tests with a fixture that raises do not count: an assertion must describe the fault.
    """
    directory = tmp_path_factory.mktemp("saboteurs")
    test_file = directory / "test_saboteurs.py"
    classes = "".join(textwrap.dedent(TEST_CLASS.format(name=name)) for name in FOUND)
    test_file.write_text(textwrap.dedent(SABOTEURS) + classes)
    source = str(Path(curator_core.__file__).parents[1])
    chosen = [f"{test_file}::Test{name}::{test}" for name, test in FOUND.items()]
    shown = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf", "--tb=no", "-p", "no:cacheprovider", *chosen],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert shown.returncode == 1, shown.stdout + shown.stderr
    lines = [line for line in shown.stdout.splitlines() if line.startswith("FAILED ")]
    return {line.partition("::")[2].partition(" - ")[0] for line in lines}


@pytest.mark.xdist_group("saboteurs")
@pytest.mark.parametrize("name", FOUND)
def test_faults_of_an_executor_are_found(failed, name):
    assert f"Test{name}::{FOUND[name]}" in failed
