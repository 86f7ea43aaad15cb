# SPDX-License-Identifier: Apache-2.0
"""Pipelines of NVIDIA NeMo Curator 1.4 on our executors.

Loaded through the entry point ``curator.dialects`` when a pipeline has its stages: `dialect` is the way in, `stages`
and `tasks` hold the wrappers, and `lineage` decides which outputs a stage made of which inputs.
"""
