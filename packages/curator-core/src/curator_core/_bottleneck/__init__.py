# SPDX-License-Identifier: Apache-2.0
"""Finds the stage that limited a run, and explains why."""
