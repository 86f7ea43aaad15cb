# SPDX-License-Identifier: Apache-2.0
"""What can be made of a trace that was written to a file."""
