# SPDX-License-Identifier: Apache-2.0
"""The version of curator-core; the build reads it from here, and so does the package."""

__version__ = "0.1.0"
