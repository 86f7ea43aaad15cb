# SPDX-License-Identifier: Apache-2.0
"""The spans of a run."""
