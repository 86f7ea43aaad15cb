# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: this project beside what its users would run instead. `nox -s bench` runs them."""
