# SPDX-License-Identifier: Apache-2.0
"""The contenders and their cases."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from curator_bench.workloads import NEMO, WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AGAIN",
    "GROWTH",
    "MAIN",
    "OURS_IN_NEMO",
    "Case",
    "Contender",
    "chosen",
    "contenders",
    "growth_contenders",
    "versions_of",
]

OURS_IN_NEMO = "nemo-ours"  # name of the contender that others are compared with on stages of NeMo Curator
XENNA = "xenna-"  # names of the other environments begin with this, followed by the version of cosmos-xenna


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that runs workloads.

    Attributes:
        name: Its name on the command line and in the results.
        label: Its name in tables.
        runner: The runner: ours, nemo, xenna_by_hand, or plain.
        environment: Name of its environment.
        arguments: Arguments for the runner.
        only: The workloads that it runs; empty for all.
        always: Whether it is measured in every round even if it is slow, because others are compared with it.
        limit: The version of Xenna whose practical limit it may define; empty for other contenders.
    """

    name: str
    label: str
    runner: str
    environment: str
    arguments: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    always: bool = False
    limit: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """A workload at one size.

    Attributes:
        workload: The workload.
        size: Number of tasks.
        stages: Number of stages; 0 for the workload's default.
        nbytes: Bytes of a payload; 0 for the workload's default.
        rounds: Maximum number of rounds.
    """

    workload: str
    size: int
    stages: int = 0
    nbytes: int = 0
    rounds: int = 1000

    def is_for(self, contender: Contender) -> bool:
        """Whether a contender runs the workload."""
        is_chosen = not contender.only or self.workload in contender.only
        return is_chosen and WORKLOADS[self.workload].environment in ("", contender.environment)

    def smaller(self, times: int) -> Case:
        """Return the same case with fewer tasks, for trial runs."""
        return replace(self, size=max(min(self.size, 8), self.size // times))

    @property
    def key(self) -> str:
        """Its name in the results."""
        stages = f"-{self.stages}-stages" if self.stages else ""
        nbytes = f"-{self.nbytes}-bytes" if self.nbytes else ""
        return f"{self.workload}-{self.size}{stages}{nbytes}"

    @property
    def arguments(self) -> list[str]:
        """Arguments for a runner."""
        given = ["--workload", self.workload, "--size", str(self.size)]
        given += ["--stages", str(self.stages)] if self.stages else []
        return [*given, "--nbytes", str(self.nbytes)] if self.nbytes else given


MAIN = (
    Case("tiny", 1000),
    Case("tiny", 10_000),
    Case("cpu", 200),
    Case("payload", 100),
    Case("skew", 64),
    Case("text", 1),  # one directory of packages
    Case("deep", 200),
    Case("nemo-light", 2000),
    Case("nemo-text", 20_000),
)

# How cost grows, one dimension at a time. The first dimension shares two points with the workloads above.
GROWTH = {
    "tasks": tuple(Case("tiny", size, rounds=1) for size in (100, 1000, 10_000, 100_000)),
    "stages": tuple(Case("tiny", 1000, stages=stages, rounds=1) for stages in (1, 2, 4, 8, 16)),
    "payload": tuple(
        Case("payload", 16, nbytes=nbytes, rounds=1) for nbytes in (1000, 32_000, 1_000_000, 8_000_000, 64_000_000)
    ),
}

# A second run on the same executor, by the number of its groups of stages.
AGAIN = tuple(Case("tiny", 100, stages=groups) for groups in (1, 2, 3, 4))

_LIGHT, _HEAVY = ("tiny", "deep"), ("cpu", "payload", "skew", "text")
# Bundles and workers of the hand-written fused stage: what a user would try to make it fast.
_BY_HAND = (
    (64, 1, _LIGHT),
    (256, 1, _LIGHT),
    (1, 0, _HEAVY),
    (8, 0, _HEAVY),
)


def versions_of(environments: Sequence[str]) -> list[str]:
    """Return the versions of Xenna that have environments, oldest first."""
    found = [name.removeprefix(XENNA) for name in environments if name.startswith(XENNA)]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def contenders(environments: Sequence[str], cores: int) -> list[Contender]:
    """Return all contenders that these environments can run."""
    versions = versions_of(environments)
    found = [one for version in versions for one in _on_xenna(version, cores, newest=version == versions[-1])]
    if versions:
        found += _in_process(f"{XENNA}{versions[-1]}", cores)
    if NEMO in environments:
        found += _nemo_curator(cores)
    return found


def growth_contenders(found: Sequence[Contender], case: Case) -> list[Contender]:
    """Return the contenders that are cheap enough to show how their cost grows."""
    newest = max((one.limit for one in found if one.limit), key=lambda v: [int(p) for p in v.split(".")], default="")
    by_hand = "hand-1x0" if case.workload == "payload" else "hand-256x1"
    wanted = (f"ours@{newest}", "local", f"{by_hand}@{newest}")
    return [one for one in found if one.name in wanted]


def chosen(found: Sequence[Contender], patterns: Sequence[str]) -> list[Contender]:
    """Return the contenders whose names match a pattern, such as ``ours*``; all without patterns."""
    return [one for one in found if not patterns or any(fnmatchcase(one.name, pattern) for pattern in patterns)]


def _ours(name: str, label: str, version: str, settings: dict[str, bool], **more: object) -> Contender:
    arguments = ("--executor", "xenna", "--settings", json.dumps(settings))
    return Contender(f"{name}@{version}", f"{label} ({version})", "ours", f"{XENNA}{version}", arguments, **more)  # type: ignore[arg-type]


def _traced(version: str) -> Contender:
    plain = _ours("ours-traced", "Curator on Xenna, traced", version, {}, only=("tiny",), always=True)
    return replace(plain, arguments=(*plain.arguments, "--traced", "yes"))


def _safe(name: str, label: str, version: str, settings: dict[str, bool]) -> Contender:
    label = f"{label}, with checkpoint and dead letters"
    plain = _ours(name, label, version, settings, only=("tiny",), always=True)
    return replace(plain, arguments=(*plain.arguments, "--safe", "yes"))


def _again(version: str) -> Contender:
    label = "Curator on Xenna, a second run on the same cluster"
    plain = _ours("ours-again", label, version, {"fuse": False}, only=("again",), always=True)
    return replace(plain, arguments=(*plain.arguments, "--again", "yes"))


def _again_by_hand(version: str, cores: int) -> Contender:
    label = f"Xenna by hand, a second run on the same cluster ({version})"
    arguments = ("--again", "yes", "--workers", str(cores))
    environment = f"{XENNA}{version}"
    return Contender(f"hand-again@{version}", label, "xenna_by_hand", environment, arguments, ("again",), always=True)


def _on_xenna(version: str, cores: int, *, newest: bool) -> list[Contender]:
    environment = f"{XENNA}{version}"
    unbundled = ("skew", "tiny") if newest else ("skew",)
    found = [
        _ours("ours", "**Curator on Xenna**", version, {}, always=True),
        _ours("ours-unbundled", "Curator, bundles off", version, {"bundle": False}, only=unbundled, always=True),
        _traced(version),
        _safe("ours-safe", "Curator on Xenna", version, {}),
        _again(version),
        _again_by_hand(version, cores),
    ]
    if newest:  # no contender is compared with these: one version is enough
        found += [
            _safe("ours-safe-unbundled", "Curator, bundles off", version, {"bundle": False}),
            _ours("ours-off", "Curator, fusion and bundles off", version, {"fuse": False, "bundle": False}),
            Contender(f"hand@{version}", f"Xenna by hand, a stage per step ({version})", "xenna_by_hand", environment),
        ]
    for bundle, workers, only in _BY_HAND:
        found.append(
            Contender(
                f"hand-{bundle}x{workers}@{version}",
                f"Xenna by hand, one stage, bundles of {bundle} ({version})",
                "xenna_by_hand",
                environment,
                ("--bundle", str(bundle), "--workers", str(workers)),
                only=only,
                always=True,
                limit=version,
            )
        )
    return found


def _in_process(environment: str, cores: int) -> list[Contender]:
    local = ("--executor", "local", "--settings")
    long = ("cpu", "skew", "payload", "text")
    return [
        Contender("local", "Curator, `LocalExecutor()`", "ours", environment, (*local, "{}"), always=True),
        Contender(
            "local-all",
            f"**Curator, `LocalExecutor(workers={cores})`**",
            "ours",
            environment,
            (*local, json.dumps({"workers": cores})),
            always=True,
        ),
        Contender("plain", "a plain loop", "plain", environment),
        Contender(
            "plain-all", f"a plain loop in {cores} processes", "plain", environment, ("--processes", "1"), only=long
        ),
    ]


def _nemo_curator(cores: int) -> list[Contender]:
    own = tuple(name for name, workload in WORKLOADS.items() if workload.environment == NEMO)
    local = ("--executor", "ours-local", "--settings", json.dumps({"workers": cores}))
    # Its other executors need not place all stages at once: with a whole CPU per stage they start fewer workers, and
    # were faster on every workload that was tried.
    return [
        Contender("nemo-xenna", "NeMo Curator on Xenna", "nemo", NEMO, ("--executor", "xenna"), always=True),
        Contender("nemo-ray-data", "NeMo Curator on Ray Data", "nemo", NEMO, ("--executor", "ray-data", "--cpus", "1")),
        Contender(
            "nemo-actor-pool",
            "NeMo Curator on actor pools",
            "nemo",
            NEMO,
            ("--executor", "actor-pool", "--cpus", "1"),
        ),
        Contender(
            OURS_IN_NEMO, "**Curator on Xenna**", "nemo", NEMO, ("--executor", "ours-xenna"), only=own, always=True
        ),
        Contender(
            f"{OURS_IN_NEMO}-local",
            f"**Curator, `LocalExecutor(workers={cores})`**",
            "nemo",
            NEMO,
            local,
            only=own,
            always=True,
        ),
    ]
