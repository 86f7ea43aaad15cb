# SPDX-License-Identifier: Apache-2.0
"""What user code and signals may do to a run, and what protects it."""
