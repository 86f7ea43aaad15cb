# SPDX-License-Identifier: Apache-2.0
"""`LocalExecutor` on several processes of this machine.

`scheduler` is the loop in the driver, and `worker` runs in the processes of a `pool`. `queues` has the queue of each
group of stages, `parcels` packs the tasks that travel between processes, `outgoing` those that a worker makes, and
`directory` is where large ones lie.
"""
