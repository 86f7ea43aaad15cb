# SPDX-License-Identifier: Apache-2.0
"""Which stage held a run up, and why."""
