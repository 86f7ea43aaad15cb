# SPDX-License-Identifier: Apache-2.0
"""The Ray that a run works on: started or joined, its nodes, and what is cleaned up there."""
