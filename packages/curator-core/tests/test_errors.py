# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import pickle
import re

import pytest

import curator_core
from curator_core import errors
from curator_core.errors import ConfigurationError, CuratorError, StageError, nearest, unknown_name

CLASSES = [getattr(errors, name) for name in errors.__all__ if name != "RunStopped"]


def tree_of(cls: type) -> dict[str, str]:
    """Return each class of the tree with its parent."""
    found = {}
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            found[child.__name__] = cls.__name__
            found |= tree_of(child)
    return found


def tree_in_docstring() -> dict[str, str]:
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in inspect.getdoc(errors).splitlines():
        match = re.match(r"(\s*[│├└─\s]*)(\w+Error)\b", line)
        if not match:
            continue
        depth, name = len(match[1]), match[2]
        while path and path[-1][0] >= depth:
            path.pop()
        if path:
            found[name] = path[-1][1]
        path.append((depth, name))
    return found


def test_the_docstring_shows_the_real_tree():
    assert tree_in_docstring() == tree_of(CuratorError)
    assert set(tree_of(CuratorError)) | {"CuratorError", "RunStopped"} == set(errors.__all__)


def test_the_whole_tree_is_public():
    assert set(errors.__all__) <= set(curator_core.__all__)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_pickles_with_all_its_fields(cls):
    error = cls("something is wrong", stage="S", field="f", given=[1], expected="e", hint="h")
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert again.args == error.args == ("something is wrong",)
    assert vars(again) == vars(error)
    assert again.__notes__ == ["a note"]


def test_a_subclass_of_an_error_pickles():
    again = pickle.loads(pickle.dumps(OwnError("x.mp4")))
    assert (again.path, again.message, again.stage) == ("x.mp4", "cannot read x.mp4", "Reader")


class OwnError(errors.DataError):
    def __init__(self, path: str) -> None:
        super().__init__(f"cannot read {path}", stage="Reader")
        self.path = path


def test_the_text_has_stage_field_given_expected_and_hint():
    error = CuratorError("is wrong", stage="S", field="f", given=1.5, expected="a whole number", hint="round it")
    assert str(error) == ("stage 'S': is wrong\n  field: f\n  given: 1.5\n  expected: a whole number\n  hint: round it")


def test_names_that_are_not_unicode_can_be_printed():
    error = CuratorError("no column '\ud800'", field="\udcff.jsonl")
    assert str(error).encode() == b"no column '\\ud800'\n  field: \\udcff.jsonl"


def test_empty_fields_are_omitted():
    assert str(CuratorError("is wrong")) == "is wrong"
    assert CuratorError("is wrong").given is None


def test_a_given_none_is_shown():
    assert "given: None" in str(CuratorError("is wrong", given=None))


@pytest.mark.parametrize("given", ["x" * 10**7, b"x" * 10**7, list(range(10**6)), dict.fromkeys(range(999), "y" * 999)])
def test_a_long_value_is_shortened(given):
    error = CuratorError("is wrong", given=given)
    assert len(error.given) <= 201
    assert "…" in error.given or "..." in error.given


def test_a_short_value_is_not_shortened():
    assert CuratorError("is wrong", given="x" * 150).given == repr("x" * 150)


def test_errors_store_the_value_as_text():
    class Payload:
        pass

    error = CuratorError("is wrong", given=Payload())
    assert isinstance(error.given, str)
    pickle.dumps(error)


def test_a_broken_repr_does_not_hide_the_error():
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert "Broken" in CuratorError("is wrong", given=Broken()).given
    assert "Broken" in CuratorError("is wrong", given=[Broken()]).given


def test_configuration_errors_are_value_errors():
    with pytest.raises(ValueError, match="is wrong"):
        raise ConfigurationError("is wrong")


def test_a_run_error_has_no_result_by_default():
    assert StageError("raised").result is None


@pytest.mark.parametrize(
    ("typed", "meant"), [("batchsize", "batch_size"), ("resource", "resources"), ("qqqq", None), ("", None)]
)
def test_nearest_finds_the_closest_name(typed, meant):
    assert nearest(typed, ["batch_size", "resources", "name"]) == meant


def test_the_error_for_an_unknown_name_lists_known_ones():
    details = unknown_name("setting", "batchsize", ["name", "batch_size"])
    assert details["field"] == "batchsize"
    assert details["expected"] == "one of the settings: batch_size, name"
    assert details["hint"] == "did you mean 'batch_size'?"
    assert "none is known" in unknown_name("observer", "x", [])["expected"]
