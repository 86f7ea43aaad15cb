# SPDX-License-Identifier: Apache-2.0
"""Everything that crosses a process: pickles, exceptions, arrays, bundles."""
