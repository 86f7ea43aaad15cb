# SPDX-License-Identifier: Apache-2.0
"""Adds the benchmarks to the path: they are programs that run in separate environments."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
