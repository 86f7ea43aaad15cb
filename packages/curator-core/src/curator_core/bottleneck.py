# SPDX-License-Identifier: Apache-2.0
"""Which stage holds a run up, why, and what to change.

Stages that overlap in time cannot be judged by how long they took. What counts is how much of the run's time their
workers were at work (`Team.use`), and what the others waited for: inputs that did not exist yet (starved), or that did
and had not arrived (a gap). The order of the rules matters: each takes what the ones before it could not explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from curator_core.verdict import TOO_SHORT, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Evidence", "Loner", "StageEvidence", "Team", "judge"]

_SHORT_NS = 3_000_000_000  # less work than this says more about the engine than about the stages
_LONG_NS = 60_000_000_000  # … and less than this says enough only where there were
_FEW_BATCHES = 20  # batches in some stage
_SETUP_SHARE = 0.3
# One batch held the run up where for this share of it no other worker had anything to do, and the batch took so many
# times the stage's median: twice that is common where sizes vary.
_LONE_SHARE = 0.2
_LONE_TIMES = 5
_FAILED_SHARE = 0.2
_ALIKE = 0.85  # of the busiest: more of that one alone would gain less than a sixth
_WAITING_CPU = 0.3
_BUSY = 0.5  # a team below this is not what others wait for, whoever else may be
_STARVED, _FED = 0.3, 0.15  # apart, so that a team in between is neither


@dataclass(frozen=True, slots=True)
class StageEvidence:
    """What is known of a stage.

    Attributes:
        name: Its name.
        batches: Batches, retried attempts included.
        busy_ns: Time in its code, over all workers.
        cpu_ns: CPU time of the threads that called it.
        failed_ns: The part of the busy time that went into tasks that failed, or will be tried again.
        setup_ns: How long it held up the first of its workers to be ready.
        median_ns: What half of its batches took at most, to a quarter; 0 where it is not known.
        is_source: Whether it begins the pipeline.
        on_gpu: Whether it asks for a GPU.
    """

    name: str
    batches: int = 0
    busy_ns: int = 0
    cpu_ns: int = 0
    failed_ns: int = 0
    setup_ns: int = 0
    median_ns: int = 0
    is_source: bool = False
    on_gpu: bool = False


@dataclass(frozen=True, slots=True)
class Team:
    """The workers that ran some stages, those of them that had anything to do.

    Attributes:
        stages: Positions of the stages.
        workers: How many workers.
        use: Share of the run's time in which they were at work.
        own_use: Share of the time they lived in which they were at work.
        starved: Share of the time they lived in which they waited for inputs that did not exist yet.
        gap: Share of the time they lived in which their inputs existed and had not arrived.
    """

    stages: tuple[int, ...]
    workers: int
    use: float
    own_use: float = 0.0
    starved: float = 0.0
    gap: float = 0.0


@dataclass(frozen=True, slots=True)
class Loner:
    """The batch of a stage during which, for longest, no other worker had anything to do.

    Attributes:
        stage: Position of the stage.
        duration_ns: How long the batch took.
        alone_ns: How much of that no other worker was at work.
        tasks: How many inputs it had.
        task_id: The first of them.
    """

    stage: int
    duration_ns: int
    alone_ns: int
    tasks: int
    task_id: str


@dataclass(frozen=True)
class Evidence:
    """What a run is judged by.

    Attributes:
        stages: The stages, in order.
        teams: The workers, in the order of their first stages.
        work_ns: How long some team was there to work, all in all.
        setup_to_end_ns: From the start of the first set-up to the end of the last batch.
        in_turn: Whether the teams came one after the other.
        loners: For each stage that has one.
    """

    stages: tuple[StageEvidence, ...]
    teams: tuple[Team, ...]
    work_ns: int
    setup_to_end_ns: int
    in_turn: bool = False
    loners: tuple[Loner, ...] = ()

    @cached_property
    def busiest(self) -> Team:
        """The team that was at work for the largest share of the run."""
        return max(self.teams, key=lambda team: team.use)

    @cached_property
    def team(self) -> Team:
        """The team that holds the others up."""
        busiest = self.busiest
        if busiest.use < _BUSY and busiest.starved > _STARVED:
            # It waits for somebody before it: the last one there that does not wait itself.
            before = self.teams[: self.teams.index(busiest)]
            fed = [team for team in before if team.use and team.starved <= _FED]
            return fed[-1] if fed else busiest
        return busiest

    @cached_property
    def stage(self) -> StageEvidence:
        """The stage that took most of the time of the team that holds the others up."""
        return self.main_stage(self.team)

    def main_stage(self, team: Team) -> StageEvidence:
        """The stage that took most of a team's time."""
        return max((self.stages[index] for index in team.stages), key=lambda stage: stage.busy_ns)

    def team_of(self, stage: int) -> Team:
        """The workers that ran a stage."""
        return next(team for team in self.teams if stage in team.stages)


def judge(evidence: Evidence) -> Verdict:
    """Say what held a run up."""
    if not evidence.teams:
        return TOO_SHORT
    for rule in _RULES:
        verdict = rule(evidence)
        if verdict is not None:
            return verdict
    busiest = evidence.busiest
    name = evidence.main_stage(busiest).name
    return Verdict(
        "unclear", reason=f"no stage held the run up: the busiest, '{name}', was at work {busiest.use:.0%} of the time"
    )


# --- the rules, each of which says nothing where it does not apply ------------------------------------------


def _setup(run: Evidence) -> Verdict | None:
    number, stage = max(enumerate(run.stages), key=lambda pair: pair[1].setup_ns)
    if run.setup_to_end_ns < _SHORT_NS or stage.setup_ns < _SETUP_SHARE * run.setup_to_end_ns:
        return None
    share = stage.setup_ns / run.setup_to_end_ns
    return Verdict(
        "setup",
        stage.name,
        run.team_of(number).use,
        f"the set-up of '{stage.name}' took {stage.setup_ns / 1e9:.1f} s, {share:.0%} of the time until the last batch",
        "give each run more work, keep the executor for several runs, or load less in setup()",
    )


def _too_short(run: Evidence) -> Verdict | None:
    few = all(stage.batches < _FEW_BATCHES for stage in run.stages)
    return TOO_SHORT if run.work_ns < (_LONG_NS if few else _SHORT_NS) else None


def _skew(run: Evidence) -> Verdict | None:
    found = [loner for loner in run.loners if _is_skew(loner, run)]
    if not found:
        return None
    loner = max(found, key=lambda one: one.alone_ns)
    stage = run.stages[loner.stage]
    what = f"task '{loner.task_id}'" if loner.tasks == 1 else f"the batch of {loner.tasks} from '{loner.task_id}' on"
    return Verdict(
        "skew",
        stage.name,
        run.team_of(loner.stage).use,
        f"{what} took {loner.duration_ns / 1e9:.1f} s in '{stage.name}', whose batches mostly take "
        f"{stage.median_ns / 1e9:.2g} s or less, and for {loner.alone_ns / 1e9:.1f} s all others had nothing to do",
        "split such tasks before this stage, or let the source list the largest first",
    )


def _is_skew(loner: Loner, run: Evidence) -> bool:
    # Where a stage has one worker, that is held up by all of its work alike.
    is_large = loner.duration_ns >= _LONE_TIMES * run.stages[loner.stage].median_ns
    return is_large and loner.alone_ns >= _LONE_SHARE * run.work_ns and run.team_of(loner.stage).workers > 1


def _retries(run: Evidence) -> Verdict | None:
    stage = run.stage
    if not stage.busy_ns or stage.failed_ns < _FAILED_SHARE * stage.busy_ns:
        return None
    return Verdict(
        "retries",
        stage.name,
        run.team.use,
        f"'{stage.name}' spends {stage.failed_ns / stage.busy_ns:.0%} of its time on tasks that fail, at the first "
        "attempt or for good",
        "see its first error, and whether another attempt is worth its time",
    )


def _in_turn(run: Evidence) -> Verdict | None:
    """Stages that run one after the other, as in Xenna's batch mode, wait for nobody."""
    teams = [team for team in run.teams if not run.stages[team.stages[0]].is_source]
    if len(teams) < 2 or not run.in_turn or run.busiest.own_use < _BUSY:
        return None
    name = run.main_stage(run.busiest).name
    return Verdict(
        "busy",
        name,
        run.busiest.use,
        f"the stages ran one after the other, and '{name}' took {run.busiest.use:.0%} of the time",
        "make it faster, or let the stages run side by side",
    )


def _transport(run: Evidence) -> Verdict | None:
    team = run.team
    if team.use >= _BUSY or team.gap <= team.use:
        return None
    return Verdict(
        "transport",
        run.stage.name,
        team.use,
        f"tasks are longer on their way than at work: the workers of '{run.stage.name}' were at work {team.use:.0%} "
        f"of the time, and {team.gap:.0%} of theirs their inputs were on the way",
        "let stages share workers (fuse=True, equal resources) and tasks travel together (bundle=True), or make tasks "
        "larger",
    )


def _equal(run: Evidence) -> Verdict | None:
    alike = [team for team in run.teams if team.use >= _ALIKE * run.team.use]
    if len(alike) < 2 or run.team.use < _BUSY:
        return None
    names = [run.main_stage(team).name for team in alike]
    return Verdict(
        "equal",
        run.stage.name,
        run.team.use,
        f"{_listed(names)} are at work alike, {min(team.use for team in alike):.0%} to {run.team.use:.0%} of the time",
        "one of them alone will not help: give more workers to all of them",
    )


def _waits(run: Evidence) -> Verdict | None:
    stage = run.stage
    # A GPU, too, is something else than a CPU.
    if run.team.use < _BUSY or stage.on_gpu or stage.cpu_ns >= _WAITING_CPU * stage.busy_ns:
        return None
    return Verdict(
        "waits",
        stage.name,
        run.team.use,
        f"{_at_work(run)}, and {1 - stage.cpu_ns / stage.busy_ns:.0%} of that its threads wait",
        "if that is for a disk, a network or a service, give it more workers with a part of a CPU each, or larger "
        "batches",
    )


def _busy(run: Evidence) -> Verdict | None:
    if run.team.use < _BUSY:
        return None
    advice = "give it more workers, or make it faster"
    company = [run.stages[index].name for index in run.team.stages if run.stages[index] is not run.stage]
    if run.stage.is_source:
        advice = "let it list what there is, and leave the work to the stages after it"
    elif company and len(run.teams) > 1:
        advice += f"; it shares its workers with {_listed(company)}"
    return Verdict("busy", run.stage.name, run.team.use, _at_work(run), advice)


_RULES: tuple[Callable[[Evidence], Verdict | None], ...] = (
    _setup,
    _too_short,
    _skew,
    _retries,
    _in_turn,
    _transport,
    _equal,
    _waits,
    _busy,
)


def _at_work(run: Evidence) -> str:
    """How much a stage works: by its share where its workers run others as well."""
    team, stage = run.team, run.stage
    whole = sum(run.stages[index].busy_ns for index in team.stages)
    share = stage.busy_ns / whole if whole else 0.0
    if len(run.teams) == 1 and len(team.stages) > 1:
        return f"'{stage.name}' takes {share:.0%} of the time in all stages"
    if stage.is_source:
        return f"the source '{stage.name}' is at work {team.use:.0%} of the time"
    others = " while the others wait" if len(run.teams) > 1 else ""
    within = f" ({share:.0%} of that is its own)" if len(team.stages) > 1 else ""
    return f"the workers of '{stage.name}' are at work {team.use:.0%} of the time{others}{within}"


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
