# SPDX-License-Identifier: Apache-2.0
"""Sets the OpenTelemetry SDK up for programs that have not done so."""
