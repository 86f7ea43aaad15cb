# SPDX-License-Identifier: Apache-2.0
"""Protection from stage code that raises anything, forks, or swallows signals."""
