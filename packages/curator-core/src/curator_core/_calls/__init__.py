# SPDX-License-Identifier: Apache-2.0
"""Calls of a stage's code, also of many at once, and what they return."""
