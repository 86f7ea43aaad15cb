# SPDX-License-Identifier: Apache-2.0
"""The version of curator-core, which the build and the package read from here."""

__version__ = "0.1.0"
