# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint: which source tasks earlier runs have finished, so that the next one skips them.

A checkpoint is a directory on a local or network file system. The driver alone writes to it, and reading it executes
nothing: all of it is JSON.

    pipeline.json     the stages, as digests of their settings: a changed pipeline is refused
    finished.jsonl    a journal with a record for each finished source task
    lock              who uses it now: a second run is refused

Read it in this order: ``settings``, ``journal``, ``lock``, ``content``, ``fingerprint``, ``store``.
"""
