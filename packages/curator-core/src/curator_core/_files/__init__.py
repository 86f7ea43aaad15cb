# SPDX-License-Identifier: Apache-2.0
"""Paths on any filesystem, file names, atomic writes, and staged files that the driver publishes."""
