# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it, on both executors, and tests of some of its parts."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator_core import DocumentBatch, Pipeline

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("curator_otel")
pytest.importorskip("opentelemetry.sdk")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
GOOD = " ".join(f"This is sentence {number} of the text that we have to be rid of, and of more." for number in range(8))


def distribution(site: Path, folder: str, metadata: bytes | None) -> None:
    path = site / f"{folder}.dist-info"
    path.mkdir(parents=True)
    if metadata is not None:
        (path / "METADATA").write_bytes(metadata)


def described(name: str, text: str) -> bytes:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n\n{text}\n".encode()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Installed distributions beside those of the environment: good, equal, duplicate, broken."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    distribution(first, "demo_good-1.0", described("demo-good", f"# Demo\n\n{GOOD}"))
    distribution(first, "zzz_demo_copy-1.0", described("zzz-demo-copy", f"Demo\n====\n\n{GOOD}"))
    distribution(first, "demo_short-1.0", described("demo-short", "Too short."))
    distribution(first, "demo_empty-1.0", described("demo-empty", ""))
    distribution(first, "demo_unknown-1.0", described("demo-unknown", "UNKNOWN"))
    distribution(first, "demo_latin-1.0", described("demo-latin", "gr\u00fcn").replace(b"\xc3\xbc", b"\xfc"))
    distribution(first, "demo_bare-1.0", None)
    distribution(first, "demo_nameless-1.0", b"Metadata-Version: 2.1\nVersion: 1.0\n\nA text.\n")
    distribution(second, "Demo.Good-2.0", described("Demo.Good", "An older copy on a later path."))
    return [first, second]


@dataclass
class Demo:
    directory: Path
    output: str
    texts: list[str]
    counts: dict[str, int]
    spans: list[str]


def run(executor: str, directory: Path, sites: list[Path], *arguments: str) -> Demo:
    path = os.pathsep.join(filter(None, [*map(str, sites), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, str(EXAMPLES / "curate_package_docs.py"), "--executor", executor]
    done = subprocess.run(
        [*command, "--output", str(directory), *arguments],
        env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
        cwd=directory.parent,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = sorted((directory / "parquet").iterdir())
    assert all(file.suffix == ".parquet" for file in files)
    texts = [text for file in files for text in pq.read_table(file).column("text").to_pylist()]
    counts = {name: int(n) for name, n in re.findall(r"^ *([a-z_]+) +(\d+)$", done.stdout, re.MULTILINE)}
    requests = [json.loads(line) for line in (directory / "trace.json").read_text().splitlines()]
    scopes = [scope for request in requests for r in request["resourceSpans"] for scope in r["scopeSpans"]]
    return Demo(directory, done.stdout, texts, counts, [span["name"] for scope in scopes for span in scope["spans"]])


@pytest.fixture(scope="module")
def local(sites: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run("local", tmp_path_factory.mktemp("local") / "out", sites)


def check(demo: Demo) -> None:
    counts = dict(demo.counts)
    found, kept, dropped = counts.pop("found"), counts.pop("kept"), counts.pop("dropped")
    assert found == kept + dropped
    assert dropped == sum(counts.values())
    assert kept == len(demo.texts) == len(set(demo.texts))
    assert f"Demo\n\n{GOOD}" in demo.texts
    assert counts["duplicate"] >= 1
    assert counts["broken_metadata"] >= 3
    assert counts["no_description"] >= 2
    assert counts["too_short"] >= 1
    assert not any("An older copy" in text for text in demo.texts)
    assert "run curate package docs" in demo.spans
    assert "02 CleanMarkup" in demo.spans
    for shown in ("curate package docs:", "items/s", "CleanMarkup", "slowest stage: ", "texts: ", "trace: "):
        assert shown in demo.output


def test_the_demo_in_this_process(local: Demo) -> None:
    check(local)


def test_the_demo_on_xenna_gives_the_same_texts_and_counts(local: Demo, sites: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("curator_xenna")
    xenna = run("xenna", tmp_path / "out", sites)
    check(xenna)
    assert set(xenna.texts) == set(local.texts)
    assert xenna.counts == local.counts


def test_a_second_run_replaces_the_output(local: Demo, sites: list[Path]) -> None:
    again = run("local", local.directory, sites, "--limit", "20")
    assert again.counts["found"] == 20 + again.counts["broken_metadata"]  # those have no name to be counted by
    assert len(again.texts) == again.counts["kept"] < local.counts["kept"]


# --- parts of the demo ----------------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("curate_package_docs")


@pytest.fixture(scope="module")
def quality():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("text_quality")


def test_a_retried_batch_keeps_its_own_documents(example) -> None:
    class Flaky(example.DropDuplicates):
        def process(self, task):
            kept = super().process(task)
            if not self.__dict__.setdefault("failed", set()) & {task.task_id}:
                self.failed.add(task.task_id)
                raise ConnectionError("after the work was done")
            return kept

    batches = [DocumentBatch([{"text": text} for text in texts]) for texts in (["a", "b", "a"], ["b", "c"], ["c"])]
    counts = example.CountReasons()
    result = Pipeline("test", [Flaky()]).run(initial_tasks=batches, observers=[counts])
    assert [[record["text"] for record in batch.data] for batch in result] == [["a", "b"], ["c"]]
    assert counts.dropped == {"duplicate": 3}
    assert result.stages[0].attempts_retried == 3


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("# Title #1\n\nSome *emphasis*, **more**, `code`.", "Title #1\n\nSome emphasis, more, code."),
        ("Title\n=====\n\n.. image:: x.png\n   :alt: y\n\nText.", "Title\n\nText."),
        ("See [the docs](https://x.org/a) and ![badge](b.svg)[![c](d)](e).", "See the docs and ."),
        ("See `the docs <https://x.org>`_ and :ref:`this <that>`.", "See the docs and this ."),
        ("Before\n```python\nx = {}\n```\nafter", "Before\n\nafter"),
        ("~~~\n```\n~~~\nafter", "after"),
        ("Usage::\n\n    x = {}\n\nAfter", "Usage::\n\nAfter"),
        (">>> x\n$ pip install x\nText", "Text"),
        ("<p align='center'>A &amp; B</p><!-- no\nmore -->", "A & B"),
        ("| a | b |\n|---|---|\n[1]: https://x.org\n- item", "b |\n- item"),
        ("", ""),
    ],
)
def test_cleaning(quality, markup: str, text: str) -> None:
    assert quality.clean(markup) == text


def test_cleaning_takes_linear_time() -> None:
    """Run it in a process that can be killed: if it takes more than linear time, it does not return."""
    pieces = ["[", "<!--", "<a", "*", "`", "{", "![x](", ":a:", "|", "`a <", "\n", " ", "__", "``` \n", ".. \n", "&"]
    code = """
import json, sys, text_quality
for piece in json.loads(sys.argv[1]):
    print(repr(piece), flush=True)
    text_quality.clean(piece * 100_000)
"""
    subprocess.run([sys.executable, "-c", code, json.dumps(pieces)], cwd=EXAMPLES, timeout=60, check=True)


@given(st.text())
def test_quality_signals_are_in_their_ranges(quality, text: str) -> None:
    signals = quality.measure(quality.clean(text))
    assert list(signals) == list(quality.SIGNALS)
    assert all(value >= 0 for value in signals.values())
    assert all(value <= 1 for name, value in signals.items() if name.endswith("_line_ratio"))


def test_each_rule_is_broken_by_a_text(quality) -> None:
    words = "the quick brown fox jumps over that lazy dog and it is of no use to be here. "
    numbered = "\n".join(f"{number} {words}" for number in range(8))
    bad = {
        "too_short": "the and.",
        "too_long": words * 6000,
        "odd_word_length": "a b c d " * 50,
        "too_many_symbols": numbered + " ticket#" * 20,
        "mostly_bullets": "\n".join(f"- {number} {words}" for number in range(8)),
        "mostly_ellipses": "\n".join(f"{number} {words} and so on ..." for number in range(8)),
        "too_few_letters": "the and " + "1234 " * 300 + "of. " * 10,
        "too_few_stop_words": "\n".join(f"Nothing common here, {number} times. " * 3 for number in range(10)),
        "repeated_lines": f"{words}\n" * 8,
        "too_few_sentences": numbered.replace(".", ""),
        "curly_brackets": f"{numbered} {{",
        "lorem_ipsum": f"{numbered} Lorem ipsum.",
    }
    assert quality.broken_rule(quality.measure(numbered)) is None
    assert {rule.reason for rule in quality.RULES} == set(bad)
    for reason, text in bad.items():
        assert quality.broken_rule(quality.measure(text)).reason == reason, reason
