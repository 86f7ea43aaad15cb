# SPDX-License-Identifier: Apache-2.0
"""The common parts of all executors: arguments, accounts, results, observers."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from typing import Any

import pytest

from curator_core import (
    BaseExecutor,
    ConfigurationError,
    ExecutorError,
    FailureLimitError,
    LocalExecutor,
    Pipeline,
    PipelineError,
    ProcessingStage,
    RunResult,
    StageDefinitionError,
    StageError,
    Task,
    TasksLostError,
    WorkerDiedError,
)
from curator_core._plan.plan import Plan
from curator_core._reports.batch import BatchReport, ErrorInfo, InputOutcome, Tally, WorkerReport, input_fields
from curator_core._run.run_totals import RunTotals
from curator_core.results import Accounting, StageSummary
from curator_core.testing import Recorder
from curator_core.testing.recorder import Troublemaker


class Pass(ProcessingStage):
    def process(self, task):
        return task


class CountUp(ProcessingStage):
    def process(self, task):
        yield from (Task(data=number) for number in range(3))


class Fail(ProcessingStage):
    def process(self, task):
        raise ValueError("bad\nand more of it")


def tasks(count: int) -> list[Task]:
    return [Task(data=number) for number in range(count)]


def run(*stages: Any, count: int = 3, **options: Any) -> RunResult:
    return Pipeline("p", stages or [Pass()]).run(initial_tasks=tasks(count), **options)


class Losing(LocalExecutor):
    """Loses the first task."""

    def run_plan(self, run):
        sources = run.initial_tasks
        run.initial_tasks = sources[1:]
        super().run_plan(run)
        run.fed = len(sources)


# --- arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [Task(data=1), 5])
def test_initial_tasks_that_are_not_a_list_are_rejected(given):
    with pytest.raises(ConfigurationError, match="initial_tasks is not a list of tasks") as raised:
        Pipeline("p", [Pass()]).run(initial_tasks=given)
    assert "initial_tasks=[task]" in raised.value.hint


@pytest.mark.parametrize("given", [[Task(data=1), "text"], [Task(data=1), Task], "ab"])
def test_initial_tasks_that_are_not_tasks_are_rejected(given):
    with pytest.raises(ConfigurationError, match="an initial task is not a Task") as raised:
        Pipeline("p", [Pass()]).run(initial_tasks=given)
    assert raised.value.field.startswith("initial_tasks[")


def test_initial_tasks_can_be_any_iterable():
    assert len(Pipeline("p", [Pass()]).run(initial_tasks=(task for task in tasks(3)))) == 3


@pytest.mark.parametrize("policy", ["ignore", None, True])
def test_an_unknown_failure_policy_is_rejected(policy):
    with pytest.raises(ConfigurationError, match="unknown failure policy") as raised:
        run(on_error=policy)
    assert raised.value.field == "on_error"


@pytest.mark.parametrize("observer", [object(), Recorder, print])
def test_an_invalid_observer_is_rejected(observer):
    with pytest.raises(ExecutorError, match="an observer is not a RunObserver") as raised:
        run(observers=[Recorder(), observer])
    assert raised.value.field == "observers[1]"


def test_nothing_runs_if_an_argument_is_invalid():
    recorder = Recorder()
    with pytest.raises(ConfigurationError):
        Pipeline("p", [Pass()]).run(initial_tasks=["text"], observers=[recorder])
    assert recorder.run is None
    assert recorder.ends == []


# --- settings of an executor ------------------------------------------------------------------------------


def test_settings_of_with_are_for_the_runs_of_the_copy():
    plain, seen = LocalExecutor(), Recorder()
    chosen = plain.with_(on_error="skip").with_(observers=[seen])
    assert run(Fail(), executor=chosen).stages[0].tasks_failed == 3
    assert len(seen.batches) == 3
    with pytest.raises(FailureLimitError):
        run(Fail(), executor=chosen, max_failures=2)
    with pytest.raises(StageError):
        run(Fail(), executor=plain)


def test_settings_of_with_change_stages():
    seen, given = Recorder(), {"Pass": {"batch_size": 3, "name": "through"}}
    executor = LocalExecutor().with_(stages=given, observers=[seen])
    given["Pass"]["batch_size"] = 1  # too late
    result = run(Pass(), CountUp(), executor=executor)
    assert [stage.name for stage in result.stages] == ["through", "CountUp"]
    assert seen.batches[0].num_in == 3


def test_settings_of_with_are_for_the_whole_pipeline_even_if_a_run_starts_later():
    executor = LocalExecutor().with_(stages={"Pass": {"batch_size": 3}, "CountUp": {"batch_size": 2}})
    assert len(run(Pass(), CountUp(), executor=executor, start_at="CountUp")) == 9
    with pytest.raises(PipelineError, match="settings for an unknown stage"):
        run(Pass(), CountUp(), executor=executor.with_(stages={"Other": {}}), start_at="CountUp")


def test_stages_without_settings_are_not_read_again():
    plan = Plan.from_stages([Pass(), CountUp()])
    assert plan.with_settings({"Pass": {"batch_size": 3}}).stages[1] is plan.stages[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_eror": "skip"}, "unknown setting.*\n.*expected:.*on_error"),
        ({"observers": "progress"}, "observers is not a list of observers"),
        ({"observers": Recorder()}, "observers is not a list of observers"),
        ({"stages": "Pass"}, "stages is not a dict of settings by stage"),
        ({"stages": {"Pass": 3}}, "stages is not a dict of settings by stage"),
        ({"stages": {Pass: {}}}, "stages is not a dict of settings by stage"),
        ({"stages": {"Pass": {1: 2}}}, "stages is not a dict of settings by stage"),
    ],
)
def test_an_invalid_setting_of_with_is_rejected(settings, message):
    with pytest.raises(ExecutorError, match=f"(?s){message}"):
        LocalExecutor().with_(**settings)


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ({"Pas": {}}, PipelineError, "settings for an unknown stage.*did you mean 'Pass'"),
        ({"Pass": {"batchsize": 2}}, StageDefinitionError, "did you mean 'batch_size'"),
        ({"Pass": {"batch_size": 0}}, StageDefinitionError, "a whole number, 1 or more"),
        ({"Pass": {"name": "CountUp"}}, PipelineError, "have the same name"),
    ],
)
def test_invalid_settings_of_stages_are_rejected(stages, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        run(Pass(), CountUp(), executor=LocalExecutor().with_(stages=stages))


# --- accounts -------------------------------------------------------------------------------------------


def test_a_run_that_loses_a_task_is_an_error():
    recorder = Recorder()
    with pytest.raises(TasksLostError, match="1 of 3 tasks between the input and 'Pass'") as raised:
        run(executor=Losing(), observers=[recorder])
    assert len(raised.value.result) == 2
    assert "unaccounted for: 1 of 3 tasks" in raised.value.result.summary()
    assert recorder.ends[0][1] is raised.value
    assert raised.value.result.lost


def test_a_run_that_skips_failures_reports_lost_tasks():
    result = run(executor=Losing(), on_error="skip")
    assert result.lost == ("1 of 3 tasks between the input and 'Pass'",)
    assert "unaccounted for" in result.summary()


def report(stage: int, *outcomes: tuple[str, int], **fields: Any) -> BatchReport:
    return BatchReport(
        run_id="r",
        stage_index=stage,
        stage_name="ab"[stage],
        batch_id="",
        worker_id="w",
        node_id="n",
        pid=1,
        sequence=0,
        start_unix_ns=fields.pop("start_unix_ns", 1000),
        duration_ns=fields.pop("duration_ns", 10),
        **input_fields(InputOutcome(str(n), kind, count) for n, (kind, count) in enumerate(outcomes)),
        **fields,
    )


class TestStageTotals:
    @pytest.fixture
    def ledger(self) -> RunTotals:
        return RunTotals(Plan.from_stages([Pass().with_(name="a"), Pass().with_(name="b")]))

    def test_batches_add_up(self, ledger):
        ledger.on_batch(report(0, ("out", 3), ("filtered", 0), num_items=7, cpu_ns=5, idle_ns=1))
        ledger.on_batch(report(0, ("failed", 0), num_items=1, start_unix_ns=500, duration_ns=2_000))
        summary = ledger.summaries()[0]
        assert (summary.batches, summary.tasks_in, summary.items) == (2, 3, 8)
        assert (summary.tasks_passed, summary.tasks_filtered, summary.tasks_failed) == (1, 1, 1)
        assert summary.tasks_out == 3
        assert (summary.process_s, summary.cpu_s, summary.idle_s) == (2_010 / 1e9, 5 / 1e9, 1 / 1e9)
        assert (summary.first_start_unix_ns, summary.last_end_unix_ns) == (500, 2_500)
        assert summary.items_per_s == 8 / summary.process_s

    def test_a_retried_attempt_counts_only_as_retried(self, ledger):
        error = ErrorInfo("ValueError", "bad", "")
        ledger.on_batch(report(0, ("retried", 0), ("retried", 0), error=error))
        summary = ledger.summaries()[0]
        assert (summary.attempts_retried, summary.batches, summary.tasks_in) == (1, 0, 0)
        assert summary.process_s == 10 / 1e9
        assert summary.first_error == ""

    def test_the_first_error_is_kept(self, ledger):
        for message in ("first", "second"):
            ledger.on_batch(report(0, ("failed", 0), error=ErrorInfo("pkg.OddError", message, "")))
        assert ledger.summaries()[0].first_error == "OddError: first"

    def test_each_count_of_a_withdrawn_task_is_subtracted(self, ledger):
        for outcome in (("out", 3), ("filtered", 0), ("failed", 1)):
            ledger.on_batch(report(0, outcome, error=ErrorInfo("pkg.OddError", "bad", "")))
        before = ledger.summaries()[0]
        undo = ledger.mark()
        again = report(0, ("out", 2), ("filtered", 0), ("failed", 1))
        ledger.on_batch(again)
        assert ledger.summaries()[0].tasks_in == 6
        undo()
        assert ledger.summaries()[0] == replace(before, batches=4, process_s=40 / 1e9)
        ledger.withdraw(0, Tally(passed=1, filtered=1, failed=1, out=4))
        after = ledger.summaries()[0]
        assert (after.tasks_in, after.tasks_passed, after.tasks_filtered, after.tasks_failed) == (0, 0, 0, 0)
        assert (after.tasks_out, after.first_error) == (0, "")

    def test_workers_are_counted(self, ledger):
        for event in ("ready", "ready", "setup_failed", "ended"):
            ledger.on_worker(WorkerReport("r", 1, "b", "w", "n", 1, event, 0, 5))
        assert ledger.summaries()[1].workers == 2
        assert ledger.summaries()[1].startup_s == 10 / 1e9


# --- results --------------------------------------------------------------------------------------------


def test_a_result_is_a_sequence_of_the_outputs():
    result = run()
    assert [task.data for task in result] == [0, 1, 2]
    assert len(result) == 3
    assert result[0].data == 0
    assert result.pipeline_name == "p"
    assert result.complete
    assert result.lost == ()
    assert result.wall_time_s > 0
    assert repr(result) == f"<RunResult {result.run_id}: 3 tasks, 1 stages>"


def test_a_result_can_be_pickled():
    result = run()
    again = pickle.loads(pickle.dumps(result))
    assert again == result
    assert vars(again) == vars(result)


def test_the_summary_is_a_table():
    result = RunResult(
        tasks(2),
        run_id="abc",
        pipeline_name="demo",
        wall_time_s=1.25,
        stages=[
            StageSummary("read", 1, 1, 1, 1234, items=10, process_s=0.5, startup_s=0.25, workers=1),
            StageSummary("a longer name", 2, 1234, 2, 2, 1230, 2, first_error="ValueError: bad\nmore"),
        ],
    )
    assert result.summary().splitlines() == [
        "demo: 2 tasks out in 1.2 s, run abc",
        "stage          batches     in  passed  filtered  failed    out  process s  idle s  start-up s  items/s",
        "-" * 102,
        "read                 1      1       1         0       0  1,234       0.50    0.00        0.25     20.0",
        "a longer name        2  1,234       2     1,230       2      2       0.00    0.00        0.00      0.0",
        "no tasks lost: in = passed + filtered + failed in each stage, and each output went into the next stage",
        "run too short to find a bottleneck",
        "'a longer name' failed on 2 tasks; first error: ValueError: bad",
    ]


def test_the_summary_of_a_large_run_fits_into_a_terminal():
    name, many = "FilterByAestheticScore", 12_345_678
    stage = StageSummary(name, many, many, many, many, 1234, 5, items=many, process_s=1234.56, idle_s=1234.56)
    lines = RunResult(stages=[stage, StageSummary("read")]).summary().splitlines()
    assert max(map(len, lines)) == 120
    assert lines[3].startswith("FilterByAes…  12,345,678  12,345,678  ")


def test_the_summary_says_that_counts_add_up_only_if_they_were_checked():
    assert "no tasks lost: in = passed + filtered + failed" in run().summary()
    assert "no tasks lost" not in RunResult(stages=[StageSummary("read")], lost=["1 of 3 tasks"]).summary()
    with pytest.raises(StageError) as raised:
        run(Fail())
    assert "no tasks lost" not in raised.value.result.summary()


def test_the_summary_names_unfinished_tasks():
    class FailsOnTheSecond(ProcessingStage):
        def process(self, task):
            if task.data == 1:
                raise ValueError("bad")
            return task

    with pytest.raises(StageError) as raised:
        run(FailsOnTheSecond(), count=9)
    assert raised.value.result.summary().splitlines()[-1] == (
        "unfinished: 7 of 9 source tasks: '2', '3', '4', '5', '6', and 2 more"
    )
    one = RunResult(accounting=Accounting(admitted=1, unfinished=("",)))
    assert one.summary().splitlines()[-1] == "unfinished: 1 of 1 source task"
    assert "not finished" not in run().summary()


def test_the_summary_has_the_number_of_restarts():
    for restarts, shown in ((1, "1 time"), (2, "2 times")):
        result = RunResult(accounting=Accounting(restarts=restarts))
        assert result.summary().splitlines()[-1] == (
            f"the engine restarted {shown} because it had lost some of the work"
        )
    assert "started again" not in run().summary()


def test_the_summary_has_one_line_of_failures_per_stage():
    result = run(Fail(), on_error="skip")
    assert result.summary().splitlines()[-1] == "'Fail' failed on 3 tasks; first error: ValueError: bad"


def test_the_summary_names_corrected_clocks():
    result = RunResult(clock_offsets={"ab12cd34ef": 0.0123, "0123456789": -2.5})
    assert result.summary().splitlines()[-1] == (
        "clocks corrected: node 01234567 by -2.500 s, node ab12cd34 by +0.012 s"
    )
    many = RunResult(clock_offsets={f"node-{number}": number / 100 for number in range(1, 100)})
    assert many.summary().splitlines()[-1].endswith("node node-96 by +0.960 s, and 95 more")


def test_a_run_on_one_machine_does_not_correct_clocks():
    result = run()
    assert result.clock_offsets == {}
    assert "clocks" not in result.summary()


def test_corrections_of_clocks_are_in_the_result():
    class Distant(LocalExecutor):
        def run_plan(self, run):
            super().run_plan(run)
            run.clock_offsets["far"] = -0.25

    assert run(executor=Distant()).clock_offsets == {"far": -0.25}


def test_run_ids_do_not_use_the_global_random_state():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    ids = {run().run_id for _ in range(3)}
    assert random.random() == expected
    assert len(ids) == 3


# --- observers ------------------------------------------------------------------------------------------


def test_an_observer_that_is_given_twice_is_notified_once():
    recorder = Recorder()
    run(observers=[recorder, recorder])
    assert len(recorder.ends) == 1
    assert len(recorder.batches) == 3


def test_a_failing_observer_is_logged_once_and_notified_of_the_end(caplog):
    class Odd(Troublemaker):
        calls = 0
        ended = False

        def on_batch(self, report):
            self.calls += 1
            raise ValueError("at the batch")

        def on_run_start(self, run):
            pass

        def on_worker(self, report):
            pass

        def on_run_end(self, result, error):
            self.ended = True
            raise ValueError("at the end")

    odd, recorder = Odd(), Recorder()
    assert run(observers=[odd, recorder]).complete
    assert (odd.calls, odd.ended) == (1, True)
    assert len(recorder.batches) == 3
    assert caplog.text.count("the run continues without it") == 1
    assert "at the batch" in caplog.text


def test_a_failing_observer_does_not_hide_the_error_of_the_run():
    with pytest.raises(Exception, match="bad"):
        run(Fail(), observers=[Troublemaker()])


def test_observers_are_notified_of_the_end_if_the_executor_fails():
    class Breaking(BaseExecutor):
        def run_plan(self, run):
            raise RuntimeError("a bug")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="a bug"):
        run(executor=Breaking(), observers=[recorder])
    ((result, error),) = recorder.ends
    assert not result.complete
    assert isinstance(error, RuntimeError)


def test_the_number_of_source_tasks_is_unknown():
    recorder = Recorder()
    Pipeline("p", [Pass()]).run(observers=[recorder])
    assert recorder.run.num_source_tasks is None


# --- restarts -------------------------------------------------------------------------------------------


class DiesOnce(BaseExecutor):
    """Processes one task, then its worker dies; the next attempt processes the others."""

    in_process = True

    def __init__(self, wrap=lambda tasks: tasks, max_restarts=2):
        self.wrap, self.max_restarts = wrap, max_restarts

    def run_plan(self, run):
        with run.source() as tasks:
            for attempt in run.attempts(self.wrap(tasks), self.max_restarts):
                (compiled,) = run.stages
                adapter = run.adapter(compiled)
                with attempt:
                    for task in attempt.tasks:
                        run.collect(adapter.process_batch([task]))
                        if run.context.epoch == 0:
                            raise WorkerDiedError("the worker died")


@pytest.mark.parametrize("wrap", [lambda tasks: tasks, list, tuple])
def test_a_restart_processes_the_unfinished_initial_tasks(wrap):
    result = run(executor=DiesOnce(wrap))
    assert sorted(task.task_id for task in result) == ["0", "1", "2"]
    assert result.accounting.restarts == 1
    assert result.lost == ()


@pytest.mark.parametrize("wrap", [lambda tasks: tasks, list])
def test_a_restart_processes_the_unfinished_tasks_of_a_source_and_those_to_come(wrap):
    result = Pipeline("p", [CountUp(), Pass()]).run(DiesOnce(wrap))
    assert sorted(task.data for task in result) == [0, 1, 2]
    assert (result.accounting.restarts, result.lost) == (1, ())


def test_a_death_without_restarts_left_ends_the_run():
    with pytest.raises(WorkerDiedError) as raised:
        run(executor=DiesOnce(max_restarts=0))
    assert [task.task_id for task in raised.value.result] == ["0"]
