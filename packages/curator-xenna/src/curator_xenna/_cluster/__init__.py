# SPDX-License-Identifier: Apache-2.0
"""The Ray cluster of a run: connection, nodes, and cleanup."""
