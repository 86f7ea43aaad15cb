# SPDX-License-Identifier: Apache-2.0
"""A run: executor base, settings, source, accounts, and shutdown."""
