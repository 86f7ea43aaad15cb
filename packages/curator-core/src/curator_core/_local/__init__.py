# SPDX-License-Identifier: Apache-2.0
"""`LocalExecutor` on several processes: `flow` is the driver's loop, `worker` the other side.

A `queue` is a group of stages as the driver sees it, a `pool` the processes, `parcels` what travels between them.
"""
