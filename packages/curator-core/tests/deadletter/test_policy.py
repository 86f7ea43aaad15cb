# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from curator_core import ConfigurationError
from curator_core.deadletter import DeadLetter


def test_a_path_is_made_absolute_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert DeadLetter("dead/").path == DeadLetter(Path("dead")).path == str(tmp_path / "dead")
    assert DeadLetter("run::1").path == str(tmp_path / "run::1")
    assert DeadLetter("s3://bucket/dead").path == "s3://bucket/dead"


def test_defaults():
    policy = DeadLetter("/dead")
    assert (policy.max_bytes, policy.storage_options) == (64 * 1024 * 1024, {})


def test_storage_options_are_not_shown_and_not_shared():
    options = {"secret": "hunter2"}
    policy = DeadLetter("s3://bucket", max_bytes=5, storage_options=options)
    options["secret"] = "other"  # noqa: S105 - not a real secret
    assert policy.storage_options == {"secret": "hunter2"}
    assert repr(policy) == "DeadLetter(path='s3://bucket', max_bytes=5)"


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda p: pickle.loads(pickle.dumps(p)), dataclasses.replace]
)
def test_copies_are_equal(duplicate):
    policy = DeadLetter("/dead", max_bytes=5, storage_options={"a": [1]})
    again = duplicate(policy)
    assert again == policy
    assert hash(again) == hash(policy)
    assert again != DeadLetter("/dead", max_bytes=6)


def test_the_policy_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DeadLetter("/dead").path = "x"


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("path", {"path": ""}),
        ("path", {"path": 5}),
        ("path", {"path": None}),
        ("path", {"path": "a\0b"}),
        ("path", {"path": "~no-such-user/x"}),
        ("max_bytes", {"max_bytes": -1}),
        ("max_bytes", {"max_bytes": 1.5}),
        ("max_bytes", {"max_bytes": True}),
        ("max_bytes", {"max_bytes": None}),
        ("storage_options", {"storage_options": ["hunter2"]}),
        ("storage_options", {"storage_options": {5: "hunter2"}}),
    ],
)
def test_invalid_arguments_are_rejected(field, arguments):
    with pytest.raises(ConfigurationError) as caught:
        DeadLetter(**{"path": "/dead", **arguments})
    assert caught.value.field == field
    assert caught.value.expected
    assert caught.value.hint
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("module", ["curator_core", "curator_core._dead_letter"])
def test_the_policy_is_imported_without_readers_and_writers(module):
    code = f"import sys; before = {{*sys.modules}}; import {module}; print(*{{*sys.modules}} - before)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert module in loaded
    assert not loaded & {"json", "hashlib", "concurrent.futures", "pickle", "fsspec", "cloudpickle", "curator_core.io"}
