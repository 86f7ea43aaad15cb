# SPDX-License-Identifier: Apache-2.0
"""Paths of any file system, and files that appear at once or not at all."""
