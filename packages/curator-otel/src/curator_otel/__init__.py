# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry for curator pipelines: traces and metrics from the reports of all batches.

    from curator_otel import configure

    with configure(json_file="trace.json"):
        pipeline.run(observers=["otel"])

`OTelObserver` needs only the OpenTelemetry API. `configure` imports and sets up the SDK for programs that do not do so
themselves. All names that are emitted are in `curator_otel.conventions`.
"""

from curator_otel.__about__ import __version__
from curator_otel.observer import OTelObserver
from curator_otel.offline.perfetto import Drawn, to_perfetto
from curator_otel.offline.recover import Recovered, recover
from curator_otel.offline.replay import Replayed, replay
from curator_otel.offline.speeds import read_speeds
from curator_otel.offline.tree import render_tree, slowest_stage
from curator_otel.sdk.setup import Telemetry, configure

__all__ = [
    "Drawn",
    "OTelObserver",
    "Recovered",
    "Replayed",
    "Telemetry",
    "__version__",
    "configure",
    "read_speeds",
    "recover",
    "render_tree",
    "replay",
    "slowest_stage",
    "to_perfetto",
]
