# SPDX-License-Identifier: Apache-2.0
"""The table of settings: a setting that is missing in one place is named, with the place."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from curator_core import Plan, ProcessingStage, Resources
from curator_core._checkpoint.fingerprint import difference, fingerprint
from curator_core._plan.compiled import CompiledStage
from curator_core._plan.groups import StageGroup
from curator_core._settings import SETTINGS

OTHER_VALUES = {
    "name": "other",
    "resources": Resources(cpus=2),
    "batch_size": 64,
    "concurrency": 2,
    "runtime_env": {"pip": ["x"]},
    "fusible": False,
    "fans_out": True,
    "full_batches": True,
    "max_attempts": 2,
    "retry_on": ValueError,
    "retry_delay_s": 1.0,
    "timeout_s": 1.0,
    "setup_timeout_s": 1.0,
    "isolated": True,
    "min_workers": 2,
    "max_workers": 2,
    "initial_workers": 2,
    "num_workers": 2,
    "xenna_stage_spec": {"slots_per_actor": 3},
}
SEPARATE_BY_OWN_RULES = {"resources", "fusible", "full_batches"}


class Waits(ProcessingStage[Any, Any]):
    """Has a value for every setting: concurrency is only for stages like this one."""

    batch_size = 4

    async def process(self, task):
        return task


def changed(name: str) -> Waits:
    return Waits().with_(**{name: OTHER_VALUES[name]})


def compiled(stage: Any) -> CompiledStage:
    return Plan.from_stages([stage]).stages[0]


def test_the_class_and_the_table_have_the_same_attributes_in_the_same_order():
    declared = [name for name in inspect.get_annotations(ProcessingStage) if not name.startswith("_")]
    rows = [setting.name for setting in SETTINGS.values() if not setting.is_method]
    assert sorted(set(declared) - set(rows)) == [], "add a row to SETTINGS in _settings.py"
    assert sorted(set(rows) - set(declared)) == [], "declare it in class ProcessingStage in stages.py"
    assert declared == rows


def test_every_method_of_the_table_is_one_of_the_class():
    methods = [setting.name for setting in SETTINGS.values() if setting.is_method]
    assert [name for name in methods if not inspect.isfunction(getattr(ProcessingStage, name, None))] == []


def test_the_docstring_of_the_class_describes_every_attribute():
    described = inspect.getdoc(ProcessingStage) or ""
    attributes = [setting.name for setting in SETTINGS.values() if not setting.is_method]
    missing = [name for name in attributes if f"\n    {name}: " not in described]
    assert missing == [], "describe it in the docstring of class ProcessingStage"


def test_a_compiled_stage_has_a_field_for_every_setting():
    fields = {field.name for field in dataclasses.fields(CompiledStage)}
    assert [setting.name for setting in SETTINGS.values() if setting.field not in fields] == [], (
        "add a field to CompiledStage in _plan/compiled.py"
    )


def test_a_group_has_a_property_for_every_setting_of_its_workers():
    fields = [setting.field for setting in SETTINGS.values() if setting.is_of_worker]
    missing = [field for field in fields if not isinstance(getattr(StageGroup, field, None), property)]
    assert missing == [], "add a property to StageGroup in _plan/groups.py"


def test_every_setting_has_another_value_in_these_tests():
    assert set(OTHER_VALUES) == set(SETTINGS), "correct OTHER_VALUES in this module"


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_a_changed_setting_reaches_the_compiled_stage(name):
    field = SETTINGS[name].field
    assert getattr(compiled(changed(name)), field) != getattr(compiled(Waits()), field)


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_only_stages_with_equal_settings_of_a_worker_share_one(name):
    plan = Plan.from_stages([Waits().with_(name="a"), changed(name).with_(name="b")], fed=True)
    is_apart = SETTINGS[name].is_of_worker or name in SEPARATE_BY_OWN_RULES
    assert len(plan.groups) == 1 + is_apart


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_a_checkpoint_compares_settings_that_change_outputs(name):
    old, new = (fingerprint(Plan.from_stages([stage.with_(name="a")]).stages) for stage in (Waits(), changed(name)))
    assert bool(difference(old, new)) is SETTINGS[name].changes_outputs


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_an_invalid_value_is_an_error_that_names_the_setting(setting):
    with pytest.raises(ValueError, match="invalid setting") as raised:
        compiled(Waits().with_(**{setting.name: -1}))
    assert (raised.value.field, raised.value.given, raised.value.expected) == (setting.name, "-1", setting.expected)
