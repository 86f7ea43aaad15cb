# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint: which source tasks earlier runs have finished, so that the next run skips them.

A checkpoint is a directory on a local or network filesystem. Only the driver writes to it, and reading it executes no
code: all of it is JSON.

    pipeline.json     the stages, as digests of their settings: a changed pipeline is refused
    finished.jsonl    a journal with a record for each finished source task
    lock              the run that uses it: a second one is refused

To read the source, start with these modules, in this order: ``settings``, ``journal``, ``lock``, ``content``,
``fingerprint``, ``store``.
"""
