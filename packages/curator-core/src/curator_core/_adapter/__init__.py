# SPDX-License-Identifier: Apache-2.0
"""Runs one batch through a stage: the call, retries, the settling of outputs, and the report."""
