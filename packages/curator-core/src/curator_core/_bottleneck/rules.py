# SPDX-License-Identifier: Apache-2.0
"""Finds the bottleneck of a run: which stage limits it, why, and what to change.

Stages that overlap in time cannot be judged by how long they took. What counts is the share of the run in which their
workers were busy (`Team.use`), and what the other workers waited for: inputs that did not exist yet (starved), or
inputs that existed but had not arrived (a gap). The order of the rules matters: each rule handles what the rules before
it could not explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from curator_core.results import TOO_SHORT, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Evidence", "Loner", "StageEvidence", "Team", "judge"]

_SHORT_NS = 3_000_000_000  # less work than this says more about the engine than about the stages
_LONG_NS = 60_000_000_000  # less work than this is enough only if some stage had _FEW_BATCHES or more
_FEW_BATCHES = 20
_SETUP_SHARE = 0.3
# A single batch limited the run if it took this many times the stage's median, and no other worker had anything to do
# for this share of the run. Twice the median is common if sizes vary.
_LONE_SHARE = 0.2
_LONE_TIMES = 5
_FAILED_SHARE = 0.2
_ALIKE = 0.85  # share of the busiest team's use: more workers for the busiest alone would gain less than a sixth
_WAITING_CPU = 0.3
_BUSY = 0.5  # other teams do not wait for a team below this, whatever they wait for
_MIN_GAP = 0.1  # waiting for inputs in transit for a smaller share of the run does not limit it
_STARVED, _FED = 0.3, 0.15  # apart, so that a team in between counts as neither


@dataclass(frozen=True, slots=True)
class StageEvidence:
    """The totals of one stage.

    Attributes:
        name: Name of the stage.
        batches: Number of batches, including retried attempts.
        busy_ns: Time in the stage's code, over all workers.
        cpu_ns: CPU time of the threads that called the stage.
        failed_ns: Part of the busy time spent on tasks that failed or will be retried.
        setup_ns: Time that imports and setup took in the first worker to become ready.
        median_ns: Upper bound of the median batch duration, at most a quarter too high; 0 if unknown.
        is_source: Whether the stage is the first of the pipeline and a source.
        on_gpu: Whether the stage requests a GPU.
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
    """The workers that ran the same stages, without those that never had a batch.

    Attributes:
        stages: Positions of the stages.
        workers: Number of workers.
        use: Share of the run in which the workers were busy.
        own_use: Share of their lifetime in which the workers were busy.
        starved: Share of their lifetime in which the workers waited for inputs that did not exist yet.
        gap: Share of the run in which the workers waited for inputs that existed but had not arrived.
    """

    stages: tuple[int, ...]
    workers: int
    use: float
    own_use: float = 0.0
    starved: float = 0.0
    gap: float = 0.0


@dataclass(frozen=True, slots=True)
class Loner:
    """The batch of a stage that ran alone the longest: no other worker had anything to do in that time.

    Attributes:
        stage: Position of the stage.
        duration_ns: How long the batch took.
        alone_ns: Part of the duration in which no other worker was busy.
        tasks: Number of inputs.
        task_id: Id of the first input.
    """

    stage: int
    duration_ns: int
    alone_ns: int
    tasks: int
    task_id: str


@dataclass(frozen=True)
class Evidence:
    """The data from which `judge` finds the bottleneck of a run.

    Attributes:
        stages: The stages, in order.
        teams: The teams of workers, in the order of their first stages.
        work_ns: Total time in which at least one team was alive.
        setup_to_end_ns: Time from the start of the first setup to the end of the last batch.
        in_turn: Whether the teams ran one after the other.
        loners: For each stage, the batch that ran alone the longest, if there is one.
    """

    stages: tuple[StageEvidence, ...]
    teams: tuple[Team, ...]
    work_ns: int
    setup_to_end_ns: int
    in_turn: bool = False
    loners: tuple[Loner, ...] = ()

    @cached_property
    def busiest(self) -> Team:
        """The team that was busy for the largest share of the run."""
        return max(self.teams, key=lambda team: team.use)

    @cached_property
    def team(self) -> Team:
        """The team that limits the run."""
        busiest = self.busiest
        if busiest.use < _BUSY and busiest.starved > _STARVED:
            # It waits for an earlier team: the last of those that do not wait for inputs themselves.
            before = self.teams[: self.teams.index(busiest)]
            fed = [team for team in before if team.use and team.starved <= _FED]
            return fed[-1] if fed else busiest
        return busiest

    @cached_property
    def stage(self) -> StageEvidence:
        """The stage that took most of the time of the team that limits the run."""
        return self.main_stage(self.team)

    def main_stage(self, team: Team) -> StageEvidence:
        """Return the stage that took most of a team's time."""
        return max((self.stages[index] for index in team.stages), key=lambda stage: stage.busy_ns)

    def team_of(self, stage: int) -> Team:
        """Return the team that ran a stage."""
        return next(team for team in self.teams if stage in team.stages)


def judge(evidence: Evidence) -> Verdict:
    """Return the verdict on the bottleneck of a run."""
    if not evidence.teams:
        return TOO_SHORT
    for rule in _RULES:
        verdict = rule(evidence)
        if verdict is not None:
            return verdict
    busiest = evidence.busiest
    name = evidence.main_stage(busiest).name
    return Verdict(
        "unclear", reason=f"no bottleneck found: the busiest stage, '{name}', was busy {busiest.use:.0%} of the time"
    )


# --- the rules, each of which returns None if it does not apply ---------------------------------------------


def _setup(run: Evidence) -> Verdict | None:
    number, stage = max(enumerate(run.stages), key=lambda pair: pair[1].setup_ns)
    if run.setup_to_end_ns < _SHORT_NS or stage.setup_ns < _SETUP_SHARE * run.setup_to_end_ns:
        return None
    share = stage.setup_ns / run.setup_to_end_ns
    return Verdict(
        "setup",
        stage.name,
        run.team_of(number).use,
        f"'{stage.name}' took {stage.setup_ns / 1e9:.1f} s to start, {share:.0%} of the time until the last batch",
        "give each run more work, reuse the executor for several runs, or import and load less",
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
    what = f"task '{loner.task_id}'" if loner.tasks == 1 else f"a batch of {loner.tasks} from task '{loner.task_id}'"
    return Verdict(
        "skew",
        stage.name,
        run.team_of(loner.stage).use,
        f"{what} took {loner.duration_ns / 1e9:.1f} s in '{stage.name}', where half of the batches take "
        f"{stage.median_ns / 1e9:.2g} s or less; all other workers were idle for {loner.alone_ns / 1e9:.1f} s of it",
        "split such tasks before this stage, or list the largest first in the source",
    )


def _is_skew(loner: Loner, run: Evidence) -> bool:
    # If a stage has only one worker, all of its batches delay the run alike.
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
        f"'{stage.name}' spends {stage.failed_ns / stage.busy_ns:.0%} of its time on attempts that fail, including "
        "those that are retried",
        "look at its first error, and check whether retries are worth their time",
    )


def _in_turn(run: Evidence) -> Verdict | None:
    """Judge stages that run one after the other, as in Xenna's batch mode: none of them waits for another."""
    teams = [team for team in run.teams if not run.stages[team.stages[0]].is_source]
    if len(teams) < 2 or not run.in_turn or run.busiest.own_use < _BUSY:
        return None
    name = run.main_stage(run.busiest).name
    return Verdict(
        "busy",
        name,
        run.busiest.use,
        f"the stages ran one after the other, and '{name}' took {run.busiest.use:.0%} of the time",
        "make it faster, or run the stages at the same time",
    )


def _transport(run: Evidence) -> Verdict | None:
    team = run.team
    if team.use >= _BUSY or team.gap <= max(team.use, _MIN_GAP):
        return None
    return Verdict(
        "transport",
        run.stage.name,
        team.use,
        f"tasks spend more time in transit than in stages: the workers of '{run.stage.name}' were busy {team.use:.0%} "
        f"of the time, and waited for inputs in transit for {team.gap:.0%} of it",
        "let stages share workers (fuse=True, equal resources) and bundle tasks (bundle=True), or make tasks larger",
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
        f"{_listed(names)} are equally busy, {min(team.use for team in alike):.0%} to {run.team.use:.0%} of the time",
        "give more workers to all of them; more for one of them alone will not help",
    )


def _waits(run: Evidence) -> Verdict | None:
    stage = run.stage
    # A stage on a GPU uses little CPU time even if it is busy.
    if run.team.use < _BUSY or stage.on_gpu or stage.cpu_ns >= _WAITING_CPU * stage.busy_ns:
        return None
    return Verdict(
        "waits",
        stage.name,
        run.team.use,
        f"{_at_work(run)}, and its threads spend {1 - stage.cpu_ns / stage.busy_ns:.0%} of that waiting",
        "if they wait for a disk, a network, or a service, give it more workers with a fraction of a CPU each, or "
        "larger batches",
    )


def _busy(run: Evidence) -> Verdict | None:
    if run.team.use < _BUSY:
        return None
    advice = "give it more workers or make it faster"
    company = [run.stages[index].name for index in run.team.stages if run.stages[index] is not run.stage]
    if run.stage.is_source:
        advice = "let it only list the inputs, and move the work to the stages after it"
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
    """Describe how busy a stage is, with its share of the time if its workers also run other stages."""
    team, stage = run.team, run.stage
    whole = sum(run.stages[index].busy_ns for index in team.stages)
    share = stage.busy_ns / whole if whole else 0.0
    if len(run.teams) == 1 and len(team.stages) > 1:
        return f"'{stage.name}' takes {share:.0%} of the time in all stages"
    if stage.is_source:
        return f"the source '{stage.name}' is busy {team.use:.0%} of the time"
    others = " while the others wait" if len(run.teams) > 1 else ""
    within = f" ({share:.0%} of that in this stage)" if len(team.stages) > 1 else ""
    return f"the workers of '{stage.name}' are busy {team.use:.0%} of the time{others}{within}"


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
