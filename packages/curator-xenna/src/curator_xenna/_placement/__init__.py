# SPDX-License-Identifier: Apache-2.0
"""Which stages share a worker, and how a plan fits the cluster."""
