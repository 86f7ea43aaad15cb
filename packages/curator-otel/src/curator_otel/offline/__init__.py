# SPDX-License-Identifier: Apache-2.0
"""Trees, timelines, and replays from trace files."""
