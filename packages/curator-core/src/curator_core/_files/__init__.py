# SPDX-License-Identifier: Apache-2.0
"""Paths on any filesystem, atomic writes, and staged files that the driver publishes."""
