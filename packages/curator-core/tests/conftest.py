# SPDX-License-Identifier: Apache-2.0
"""Settings of the tests of curator-core."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is no failure: no test here has a time limit of its own.
settings.register_profile("curator", deadline=None)
settings.load_profile("curator")
