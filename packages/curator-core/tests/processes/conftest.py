# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from .machine import files_of, workers_of  # noqa: TID252 - no import can write this directory's name

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert workers_of(os.getpid()) == []
    assert files_of(os.getpid()) == []
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("curator-")] == []
