# SPDX-License-Identifier: Apache-2.0
"""A batch's report, and who reads it."""
