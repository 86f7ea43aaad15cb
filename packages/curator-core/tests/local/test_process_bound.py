# SPDX-License-Identifier: Apache-2.0
"""Globals of scripts that belong to their process: looked up again in a worker, or rejected by name."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
from tests.waiting import DEADLINE_S

from curator_core._transport.pickling import dumps, loads

LOCK = threading.Lock()


def run_script(directory: Any, code: str, executor: str) -> list[str]:
    """Run a script with the executor as its argument; return the lines that it prints."""
    (directory / "script.py").write_text(textwrap.dedent(code))
    command = [sys.executable, str(directory / "script.py"), executor]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


RUN = """
import sys
from curator_core import LocalExecutor, Pipeline, ProcessingStage, Task
{things}

class Use(ProcessingStage):
    {held}
    def process(self, task):
        {use}
        return Task(data=task.data + 1)

class Pass(ProcessingStage):
    fusible = False
    def process(self, task):
        {use_again}
        return task

executor = LocalExecutor(workers=int(sys.argv[1]))
print([task.data for task in Pipeline("p", [Use(), Pass()]).run(executor, [Task(data=1), Task(data=2)])])
"""
KINDS = {
    "functions with a cache": (
        "import functools\n@functools.cache\ndef sums(n): return n and n + sums(n - 1)",
        "assert (sums(3), self.twice(2)) == (6, 4)",
        "twice = __import__('functools').lru_cache(maxsize=4)(lambda self, n: 2 * n)",
    ),
    "locks": (
        (
            "import threading\nlock, again, enough, ready = "
            "threading.Lock(), threading.RLock(), threading.BoundedSemaphore(), threading.Condition()"
        ),
        "with lock, again, enough, ready, self.own: ready.notify()",
        "own = threading.Lock()",
    ),
    "logging": ("import logging\nlog = logging.getLogger('mine')", "log.warning('said')", ""),
    "loguru": (
        "from loguru import logger\nlogger.remove()\nlogger.add(open('said', 'w'))\nlog = logger.bind(who='script')",
        "logger.info('said'); log.info('said')",
        "",
    ),
    "structlog": (
        (
            "import structlog\nlog = structlog.get_logger()\nlog.info('once')\nbound = log.bind(who='script')\n"
            "structlog.configure(logger_factory=structlog.PrintLoggerFactory(open('said', 'w')),"
            " cache_logger_on_first_use=True)\nlog.info('made')\nother = log.bind(who='script')"
        ),
        "[each.new() for each in (log, bound, other)]",
        "",
    ),
    "opentelemetry": (
        (
            "from opentelemetry import metrics, trace\n"
            "early, meter = trace.get_tracer('early'), metrics.get_meter('early')\nfirst = meter.create_counter('a')\n"
            "from opentelemetry.sdk.metrics import MeterProvider\nfrom opentelemetry.sdk.trace import TracerProvider\n"
            "trace.set_tracer_provider(TracerProvider())\nmetrics.set_meter_provider(MeterProvider())\n"
            "late, later = trace.get_tracer('late', '1', attributes={'a': 1}), metrics.get_meter('late', '1')\n"
            "second = later.create_histogram('b')"
        ),
        "early.start_span('s'), late.start_span('s'), first.add(1), second.record(1), meter.create_counter('c')",
        "",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_globals_that_every_process_has_are_looked_up_again(tmp_path, monkeypatch, kind):
    if kind in ("loguru", "structlog", "opentelemetry"):
        pytest.importorskip("opentelemetry.sdk" if kind == "opentelemetry" else kind)
    monkeypatch.chdir(tmp_path)
    things, use, held = KINDS[kind]
    script = RUN.format(things=things, use=use, held=held, use_again="")
    for workers in ("1", "2"):
        assert run_script(tmp_path, script, workers)[-1] == "[2, 3]"


def test_all_stages_of_a_worker_share_globals_of_modules(tmp_path):
    (tmp_path / "beside.py").write_text(
        "import sqlite3, threading\ndb, gate = sqlite3.connect(':memory:'), threading.Lock()"
    )
    seen = "(id(lock), id(gate), id(db), beside.gate is gate, beside.db is db)"
    script = f"""
        import sys, threading
        import beside
        from beside import db, gate
        from curator_core import LocalExecutor, Pipeline, Task, processing_stage

        lock = threading.Lock()

        @processing_stage(num_workers=1)
        def first(task):
            return Task(data=[{seen}])

        @processing_stage(fusible=False, num_workers=2)
        def second(task):
            return Task(data=[*task.data, {seen}])

        executor = LocalExecutor(workers=int(sys.argv[1]))
        source = [Task(data=None)]
        ((here, there),) = [task.data for task in Pipeline("p", [first, second]).run(executor, source)]
        print(here[3:], there[3:], here == there or executor.workers > 1)
        """
    for workers in ("1", "2"):
        assert run_script(tmp_path, script, workers) == ["(True, True) (True, True) True"]


def test_a_lock_of_a_script_is_one_lock_per_process(tmp_path):
    script = """
        import subprocess, sys, threading
        from curator_core._transport.pickling import dumps, loads

        lock = threading.RLock()

        def guarded():
            return lock

        assert loads(dumps(guarded))() is lock
        there = "import sys; from curator_core._transport.pickling import *"
        there += "; a, b = (loads(bytes.fromhex(each))() for each in sys.argv[1:])"
        there += "; print(a is b, dumps(a).hex())"
        sent = [dumps(guarded).hex(), dumps(lambda: [lock][0]).hex()]
        said, back = subprocess.check_output([sys.executable, "-c", there, *sent], text=True).split()
        print(said, loads(bytes.fromhex(back)) is lock)
        """
    assert run_script(tmp_path, script, "1") == ["True True"]


def test_a_lock_of_a_module_is_found_and_other_locks_are_rejected():
    assert loads(dumps([LOCK]))[0] is LOCK
    with pytest.raises(TypeError, match=r"cannot pickle '_thread\.lock' object"):
        dumps([threading.Lock()])


REFUSED = """
    import contextvars, sqlite3, sys
    from concurrent.futures import ThreadPoolExecutor
    from tqdm import tqdm
    from curator_core import LocalExecutor, Pipeline, ProcessingStage, StageDefinitionError, Task

    db, var, pool = sqlite3.connect(":memory:"), contextvars.ContextVar("v"), ThreadPoolExecutor(1)
    bar = tqdm(total=3)
    everything = {"deep": [pool]}

    class Use(ProcessingStage):
        def process(self, task):
            self.use()
            return task

    class Connection(Use):
        def use(self): db.execute("select 1")
    class Variable(Use):
        def use(self): var.set(1)
    class Pool(Use):
        @property
        def pool(self): return everything["deep"][0]
        def use(self): self.pool.submit(int)
    class Bar(Use):
        def use(self): helper()

    def helper(): bar.update(0)

    for stage in (Connection(), Variable(), Pool(), Bar()):
        pipeline = Pipeline("p", [stage])
        pipeline.compile()
        assert len(pipeline.run(LocalExecutor(), [Task(data=1)])) == 1
        for refused in (
            lambda: pipeline.run(LocalExecutor(workers=2), [Task(data=1)]),
            lambda: pipeline.compile(fed=True, executor=LocalExecutor(workers=2)),
            lambda: Pipeline("p", [stage.with_(isolated=True)]).run(LocalExecutor(), [Task(data=1)]),
        ):
            try:
                refused()
            except StageDefinitionError as exc:
                said = exc.field, str(exc).partition("worker: ")[2].partition(":")[0]
            else:
                sys.exit(f"{stage} was not refused")
        print(*said, sep=" | ")
    print("curator_core._local.pool" in sys.modules)
"""


def test_other_unpicklable_globals_are_named_before_a_worker_starts(tmp_path):
    assert run_script(tmp_path, REFUSED, "1") == [
        "stage.use's global db | stage.use uses the global 'db'",
        "stage.use's global var | stage.use uses the global 'var'",
        "stage.pool's global everything['deep'][0]._work_queue | stage.pool uses the global 'everything'",
        "stage.use's global helper's global bar | stage.use's global helper uses the global 'bar'",
        "False",
    ]


MAIN = """
    import dataclasses, enum, pickle, sys
    from curator_core import LocalExecutor, Pipeline, ProcessingStage, Task

    @dataclasses.dataclass
    class Word(Task[str]):
        length: int = 0

    class Color(enum.Enum):
        RED = 1

    def twice(number):
        return limit(2 * number)

    def limit(number):
        return number

    class Work(ProcessingStage):
        def process(self, task):
            again, color, function = pickle.loads(pickle.dumps((task, Color.RED, twice)))
            assert type(again) is type(task) and color is Color.RED and function is twice
            return Word(data=pickle.dumps((Word("", length=function(2)), twice)))

    process = Work.process
    tasks = [Word(data="a"), Word(data="b")]
    found = Pipeline("p", [Work(), Work().with_(name="again", fusible=False)]).run(
        LocalExecutor(workers=int(sys.argv[1])), tasks
    )
    print([type(word) is Word for word in found], *(pickle.loads(word.data)[0].length for word in found))
    print(all(pickle.loads(word.data)[1] is twice for word in found), Work.process is process)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stage_can_pickle_objects_that_the_script_defines(tmp_path, workers):
    assert run_script(tmp_path, MAIN, workers) == ["[True, True] 4 4", "True True"]
