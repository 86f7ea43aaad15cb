# SPDX-License-Identifier: Apache-2.0
"""Real faults against real runs. Read `work`, `driver`, `scene`, `checks`, in this order; `page` tells the results."""
