# SPDX-License-Identifier: Apache-2.0
"""Ray's messages about dead workers that arrive after the run has ended. Without Ray."""

from __future__ import annotations

import logging

import pytest

from curator_xenna._session.deaths import DeathNotices

MESSAGE = (
    "A worker died or was killed while executing a task by an unexpected system error. Lease ID: 07 Worker ID: 1f "
    "Node ID: 2a Worker IP address: 127.0.0.1 Worker port: 10002 Worker PID: 4711 Worker exit type: SYSTEM_ERROR "
    "Worker exit detail: Worker unexpectedly exits with a connection error code 2."
)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_worker_that_never_signed_in_is_not_printed_if_the_run_started_ray(
    is_ours: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    notices = DeathNotices([], list, is_ours=is_ours)
    notices.close([])
    assert notices.hear(MESSAGE) is is_ours
    assert [record.levelname for record in caplog.records] == ["INFO"] * is_ours


def test_other_messages_after_a_run_are_left_to_ray() -> None:
    notices = DeathNotices([], list, is_ours=True)
    notices.close([])
    assert not notices.hear("the disk is almost full")
