# SPDX-License-Identifier: Apache-2.0
"""Sets up the OpenTelemetry SDK for programs that have not done so."""
