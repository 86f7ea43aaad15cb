# SPDX-License-Identifier: Apache-2.0
"""The report of a batch: its fields, its form in transit, and errors as data."""
