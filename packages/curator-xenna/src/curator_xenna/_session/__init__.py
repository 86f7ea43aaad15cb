# SPDX-License-Identifier: Apache-2.0
"""One run on Xenna: what it is fed, its workers, their reports, and why it ended."""
