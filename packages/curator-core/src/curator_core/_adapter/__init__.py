# SPDX-License-Identifier: Apache-2.0
"""The one path of every batch: called, tried again, settled, reported."""
