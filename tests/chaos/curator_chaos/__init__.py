# SPDX-License-Identifier: Apache-2.0
"""Real faults in real runs. Read `work`, `driver`, `scene`, and `checks`, in this order; `results` and `page` write the
results.
"""
