# SPDX-License-Identifier: Apache-2.0
"""Every stage that NeMo Curator has and that can be imported here is compiled, or refused for a reason on the page."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from nemo_curator import stages
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.video.io.video_reader import VideoReader
from tests.nemo.library import reference

from curator_core import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "coming-from-nemo-curator.md"
VALUES = (("Callable", len), ("int", 1), ("float", 0.5), ("bool", True), ("list", ["x"]), ("dict", {}))


@cache
def modules() -> dict[str, bool]:
    """Return the modules below `nemo_curator.stages`, and whether each can be imported here."""
    found = {}
    for module in pkgutil.walk_packages(stages.__path__, "nemo_curator.stages."):
        try:
            importlib.import_module(module.name)
        except ImportError:  # a package that only some stages need
            found[module.name] = False
        else:
            found[module.name] = True
    return found


def below(stage_class: type) -> Iterator[type]:
    for each in stage_class.__subclasses__():
        yield each
        yield from below(each)


@cache
def classes() -> list[type]:
    modules()
    of_functions = "nemo_curator.stages.function_decorators"  # those of the tests
    found = {each for each in below(ProcessingStage) if each.__module__.startswith("nemo_curator.stages.")}
    mine = {each for each in found if not (inspect.isabstract(each) or each.__module__ == of_functions)}
    return sorted(mine, key=str)


def area_of(name: str) -> str:
    part = name.split(".")[2]
    return {"client_partitioning": "partitioning", "file_partitioning": "partitioning"}.get(part, part)


def constructed(stage_class: type) -> Any:
    """Return a stage with made-up arguments; None if it needs real ones."""
    _, *parameters = inspect.signature(stage_class.__init__).parameters.values()
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    arguments = {each.name: made_up(str(each.annotation)) for each in named if each.default is each.empty}
    try:
        return stage_class(**arguments)
    except (ValueError, TypeError, AttributeError, ImportError, OSError):
        return None


def made_up(annotation: str) -> Any:
    return next((value for name, value in VALUES if name in annotation), "x")


def table() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `nemo_curator\.stages\.(\w+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {area: [cell.strip() for cell in cells.split("|")] for area, cells in rows}


def test_every_stage_compiles_and_the_table_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some of them create directories
    counts: dict[str, Counter[str]] = {}
    for stage_class in classes():
        stage = constructed(stage_class)
        if stage is not None:
            Plan.from_stages([stage])
        counts.setdefault(area_of(stage_class.__module__), Counter())[("compiled", "needs more")[stage is None]] += 1
    imported: dict[str, Counter[bool]] = {}
    for name, is_imported in modules().items():
        imported.setdefault(area_of(name), Counter())[is_imported] += 1
    assert {area: cells[:3] for area, cells in table().items()} == {
        area: [
            f"{number[True]} of {number.total()}",
            str(counts.get(area, Counter())["compiled"]),
            str(counts.get(area, Counter())["needs more"]),
        ]
        for area, number in sorted(imported.items())
        if area in counts
    }


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("videos")
    for number in range(3):
        with av.open(str(directory / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(10):
                frame = np.full((48, 64, 3), 20 * number, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return directory


def test_videos_are_read(executor, videos):
    expected = reference([VideoReader(str(videos))])
    result = Pipeline("videos", stages=[VideoReader(str(videos))]).run(executor)
    assert len(result) == 3
    facts = [
        sorted((task.task_id, str(task.data.input_video), bytes(task.data.source_bytes)) for task in tasks)
        for tasks in (result, expected)
    ]
    assert facts[0] == facts[1]
