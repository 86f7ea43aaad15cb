# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: this project compared with alternatives. `nox -s bench` runs them."""
