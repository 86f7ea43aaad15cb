# SPDX-License-Identifier: Apache-2.0
"""The checks find what is left behind."""

from __future__ import annotations

import pytest
from curator_chaos.checks import temporary_files


@pytest.mark.parametrize(
    ("where", "left"), [("temporary", "curator-1-ab"), ("temporary", "a-file"), ("out", ".0.jsonl.tmp")]
)
def test_a_leftover_temporary_file_is_found(where, left, scene):
    assert temporary_files(scene) == []
    path = getattr(scene, where) / left
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert temporary_files(scene) == [path]


def test_leftovers_of_ray_are_ignored(scene):
    (scene.temporary / "pymp-abcdefgh").mkdir()
    assert temporary_files(scene) == []
