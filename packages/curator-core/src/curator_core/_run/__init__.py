# SPDX-License-Identifier: Apache-2.0
"""A run: its settings, its source, its accounts, its end."""
