# SPDX-License-Identifier: Apache-2.0
"""The benchmarks are programs that run in environments of their own; their tests find them here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
