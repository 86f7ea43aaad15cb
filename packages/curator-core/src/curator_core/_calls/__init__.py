# SPDX-License-Identifier: Apache-2.0
"""Calls of a stage's code: event loops, concurrent calls, and reading of returned generators."""
