# SPDX-License-Identifier: Apache-2.0
"""A pipeline, compiled: decomposed, checked, each stage read once, grouped."""
