# SPDX-License-Identifier: Apache-2.0
"""The settings of a stage, one row each: what its values must be, and what they affect.

`ProcessingStage` declares the settings with their types, defaults, and meanings, for users and type checkers.
Everything else reads these rows: ``with_()``, the plan, its groups, the fingerprints of checkpoints, and the guide.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from curator_core._numbers import is_amount, is_whole
from curator_core.errors import StageDefinitionError
from curator_core.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SETTINGS", "Setting", "as_tuple", "invalid_setting"]


class Setting(NamedTuple):
    """A setting of a stage.

    Attributes:
        name: The name of the attribute or method of `ProcessingStage`.
        is_valid: Whether a value is valid.
        expected: A description of valid values.
        is_method: Whether stages may compute it, in a method without arguments. An attribute is accepted too.
        is_of_worker: Whether it applies to a worker and not only to the stage: stages whose values differ do not share
            a worker. The plan compares ``resources``, ``fusible``, and ``full_batches`` by rules of their own.
        changes_outputs: Whether the outputs of the stage depend on it, so that a checkpoint must not mix values.
        compiled_name: The name of the field of `CompiledStage`; the same if empty.
    """

    name: str
    is_valid: Callable[[Any], bool]
    expected: str
    is_method: bool = False
    is_of_worker: bool = False
    changes_outputs: bool = False
    compiled_name: str = ""

    @property
    def field(self) -> str:
        """The name of the field of `CompiledStage`."""
        return self.compiled_name or self.name

    def read(self, stage: Any) -> Any:
        """Return the value that a stage has.

        Raises:
            StageDefinitionError: The value is invalid.
        """
        value = getattr(stage, self.name)
        if self.is_method and callable(value):
            value = value()
        if not self.is_valid(value):
            value = list(value) if isinstance(value, Mapping) else value  # keys only: values may be secrets
            hint = f"use with_({self.name}=…), or fix it in class {type(stage).__name__}"
            raise invalid_setting(stage, self.name, value, self.expected, hint)
        # A copy: later changes by the caller to a dict of settings must not change the plan.
        return copy.deepcopy(dict(value)) if isinstance(value, Mapping) else value


def invalid_setting(stage: Any, field: str, value: Any, expected: str, hint: str) -> StageDefinitionError:
    """Return the error about an invalid value of a setting."""
    name = stage.name if isinstance(stage.name, str) and stage.name.strip() else type(stage).__name__
    return StageDefinitionError("invalid setting", stage=name, field=field, given=value, expected=expected, hint=hint)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return a tuple as it is, and anything else as its only element."""
    return value if isinstance(value, tuple) else (value,)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_choice(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return is_whole(value, 1)


def _is_count(value: Any) -> bool:
    return value is None or is_whole(value, 1)


def _are_exceptions(value: Any) -> bool:
    return all(isinstance(each, type) and issubclass(each, BaseException) for each in as_tuple(value))


def _is_limit(value: Any) -> bool:
    return value is None or (is_amount(value) and value > 0)


def _is_options(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and all(isinstance(key, str) for key in value))


_COUNT = "a whole number, 1 or more"
_COUNT_OR_NONE = f"None, or {_COUNT}"
_LIMIT = "None, or a number of seconds above 0"
_CHOICE = "True, False, or None for the default"

SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("name", _is_name, "a non-empty string on one line"),
        Setting("resources", lambda value: isinstance(value, Resources), "an instance of Resources"),
        Setting("batch_size", _is_count, _COUNT),
        Setting("concurrency", _is_count, _COUNT),
        Setting("runtime_env", _is_options, "None, or a dict with string keys", is_of_worker=True),
        Setting("fusible", _is_choice, _CHOICE),
        Setting("fans_out", _is_choice, _CHOICE),
        Setting("full_batches", _is_choice, _CHOICE),
        Setting("max_attempts", _is_positive, _COUNT),
        Setting("retry_on", _are_exceptions, "an exception class, or a tuple of them"),
        Setting("retry_delay_s", is_amount, "a number of seconds, 0 or more"),
        Setting("timeout_s", _is_limit, _LIMIT),
        Setting("setup_timeout_s", _is_limit, _LIMIT),
        Setting("isolated", _is_choice, _CHOICE),
        Setting("min_workers", _is_count, _COUNT_OR_NONE, is_of_worker=True),
        Setting("max_workers", _is_count, _COUNT_OR_NONE, is_of_worker=True),
        Setting("initial_workers", _is_count, _COUNT_OR_NONE, is_of_worker=True),
        Setting("num_workers", _is_count, _COUNT_OR_NONE, is_method=True, is_of_worker=True),
        Setting(
            "xenna_stage_spec",
            _is_options,
            "a dict with string keys",
            is_method=True,
            is_of_worker=True,
            compiled_name="engine_options",
        ),
    )
}
