# SPDX-License-Identifier: Apache-2.0
"""Objects that cross a process boundary: pickles, exceptions, arrays, and bundles."""
