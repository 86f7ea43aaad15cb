# SPDX-License-Identifier: Apache-2.0
"""One run on Xenna: inputs, workers, reports, and the reason for an early end."""
