# SPDX-License-Identifier: Apache-2.0
"""A stage's resources and runtime environment in Xenna's terms."""
