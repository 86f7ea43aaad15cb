# SPDX-License-Identifier: Apache-2.0
"""The compiled pipeline: expanded, checked, each stage read once, and grouped."""
