# SPDX-License-Identifier: Apache-2.0
"""Settings of the tests of curator-core."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_NOBODY = 65534


@pytest.fixture
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """A context that limits the size of files: the operating system fails larger writes as on a full disk."""
    return _room_for


@contextmanager
def _room_for(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python does not notice that it wrote half the bytecode of a module that is imported in here.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = writes


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory like tmp_path, but accessible to all users, including all directories above it."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")) as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


@pytest.fixture
def as_nobody() -> Callable[[], AbstractContextManager[None]]:
    """A context without root's privilege to read and write everything."""
    return _as_nobody


@contextmanager
def _as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.setegid(_NOBODY)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
