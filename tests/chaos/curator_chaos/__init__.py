# SPDX-License-Identifier: Apache-2.0
"""Real faults against real runs. Read `work`, `driver`, `scene`, `checks`, in this order; `results`
and `page` tell what came of them.
"""
