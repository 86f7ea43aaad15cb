# SPDX-License-Identifier: Apache-2.0
"""The metadata and requirements of an installed package, from a wheel or from this tree."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from importlib.resources import files

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

PACKAGES = ("curator-core", "curator-xenna", "curator-otel")

# The requirements of each package without extras, so that none is added unnoticed.
REQUIREMENTS = {
    "curator-core": {"cloudpickle", "fsspec", "tqdm"},
    "curator-xenna": {"curator-core", "cosmos-xenna", "ray", "tqdm"},
    "curator-otel": {"curator-core", "opentelemetry-api"},
}

EXTRAS = {
    "curator-core": {"compression", "parquet", "testing"},
    "curator-xenna": {"gpu"},
    "curator-otel": {"otlp", "instrument"},
}

# Releases of requirements with a known vulnerability, and its public advisory. If a package has several, it is the one
# that was fixed last. Advisories about other requirements belong here as well.
KNOWN_HOLES = {
    "pyarrow": ("<14.0.1", "CVE-2023-47248"),
    "ray": ("<2.54.0", "CVE-2026-27482"),  # and CVE-2025-62593 before 2.52.0
    "tqdm": ("<4.66.3", "CVE-2024-34062"),
}

ENTRY_POINTS = {
    "curator-core": {
        ("curator.executors", "local", "curator_core._local.executor:LocalExecutor"),
        ("curator.observers", "progress", "curator_core._run.progress:ProgressBar"),
        ("curator.dialects", "nemo_curator.stages.base.ProcessingStage", "curator_core._nemo.dialect:NEMO"),
    },
    "curator-xenna": {("curator.executors", "xenna", "curator_xenna.executor:XennaExecutor")},
    "curator-otel": {
        ("curator.observers", "otel", "curator_otel.observer:OTelObserver"),
        ("opentelemetry_instrumentor", "curator", "curator_otel.instrumentor:CuratorInstrumentor"),
    },
}

# Modules that importing a package must not import: engines and the telemetry SDK are imported when they are used.
NOT_YET = {
    "curator-core": ("ray", "cosmos_xenna", "opentelemetry", "pyarrow", "pytest"),
    "curator-xenna": ("ray", "cosmos_xenna", "opentelemetry"),
    "curator-otel": ("opentelemetry.sdk", "opentelemetry.exporter", "ray", "cosmos_xenna"),
}


@pytest.fixture(params=PACKAGES)
def dist(request: pytest.FixtureRequest) -> Distribution:
    return distribution(request.param)


def import_name(dist: Distribution) -> str:
    return dist.name.replace("-", "_")


def lowest(required: Requirement) -> Version | None:
    """Return the oldest release that a requirement allows, or None if it has no lower bound."""
    bounds = [Version(each.version) for each in required.specifier if each.operator == ">="]
    return max(bounds, default=None)


def test_licence_is_named_and_shipped(dist: Distribution) -> None:
    assert dist.metadata["License-Expression"] == "Apache-2.0"
    assert dist.metadata.get_all("License-File") == ["LICENSE"]
    assert "Apache License" in (dist.read_text("licenses/LICENSE") or "")


def test_supports_the_pythons_that_it_is_tested_on(dist: Distribution) -> None:
    assert dist.metadata["Requires-Python"] == ">=3.11"
    classifiers = dist.metadata.get_all("Classifier") or []
    minors = {line.rsplit(" ")[-1] for line in classifiers if re.search(r":: 3\.\d+$", line)}
    assert minors == {"3.11", "3.12", "3.13"}


def test_describes_itself(dist: Distribution) -> None:
    assert dist.metadata["Summary"]
    assert dist.metadata["Description-Content-Type"] == "text/markdown"
    assert dist.metadata.get_payload().startswith(f"# {dist.name}\n")


def test_requirements(dist: Distribution) -> None:
    lines = dist.requires or []
    unconditional = [line for line in lines if "extra ==" not in line]
    assert {re.split(r"[^\w-]", line)[0] for line in unconditional} == REQUIREMENTS[dist.name]
    assert set(dist.metadata.get_all("Provides-Extra") or []) == EXTRAS[dist.name]


def test_every_requirement_has_a_lower_bound(dist: Distribution) -> None:
    """The session `minimums` tests that the bounds are correct."""
    assert [line for line in dist.requires or [] if lowest(Requirement(line)) is None] == []


def test_lower_bounds_exclude_releases_with_known_vulnerabilities(dist: Distribution) -> None:
    let_in = {
        str(required): KNOWN_HOLES[required.name]
        for required in map(Requirement, dist.requires or [])
        if required.name in KNOWN_HOLES
        and lowest(required) in SpecifierSet(KNOWN_HOLES[required.name][0], prereleases=True)
    }
    assert let_in == {}


def test_known_vulnerabilities_concern_required_packages() -> None:
    required = {Requirement(line).name for name in PACKAGES for line in distribution(name).requires or []}
    assert set(KNOWN_HOLES) <= required


def test_version_matches_the_package(dist: Distribution) -> None:
    about = importlib.import_module(f"{import_name(dist)}.__about__")
    assert about.__version__ == dist.version
    assert importlib.import_module(import_name(dist)).__version__ == dist.version


def test_is_typed(dist: Distribution) -> None:
    assert files(import_name(dist)).joinpath("py.typed").is_file()


def test_entry_points_can_be_loaded(dist: Distribution) -> None:
    found = dist.entry_points
    assert {(point.group, point.name, point.value) for point in found} == ENTRY_POINTS[dist.name]
    for point in found:
        if point.group != "curator.dialects":  # they need the framework that they translate: `nox -s nemo` loads them
            assert point.load().__name__ == point.attr


def test_import_loads_no_engine_and_no_telemetry(dist: Distribution) -> None:
    program = f"import json, sys, {import_name(dist)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not set(json.loads(done.stdout)) & set(NOT_YET[dist.name])


def test_all_lists_existing_names_once(dist: Distribution) -> None:
    module = importlib.import_module(import_name(dist))
    names = list(module.__all__)
    assert len(names) == len(set(names))
    missing = [name for name in names if not hasattr(module, name)]
    assert missing == []
