"""Grids: an arm under several settings, of which validation scores choose the one that is judged.

    grid      {key: [value, ...], ...} of an arm: every combination is run, as `arm[key=value]`
    choose    of an arm, or of the claim for all arms with a grid:
              highest | lowest   the measure that decides
              where              what must hold before that: {measure, at_least | at_most}
              by                 all (default): one setting for all seeds, by means over them;
                                 seed: each seed its own; calibration: by means over
                                 `calibrated_on`, and only the chosen setting is run on the seeds
    from      of an arm: another arm, whose model of the same seed it starts from (`model.from`)

Measures that choose are of validation data (`val:...`), so that what is chosen is not what is
reported. Where no setting meets `where`, the one nearest to it stands in and the arm is unmatched:
no bar that speaks of it can be reproduced. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from statistics import fmean
from typing import Any

from cl.config import show
from cl.errors import ContractError, unknown
from cl.measures import check_measure, measure

OWN = ("grid", "choose", "from")  # keys of an arm that are no settings
BY = ("all", "seed", "calibration")
MOST = 200  # settings of one arm

Results = dict[str, dict[int, dict]]  # {arm or member of its grid: {seed: results.json}}


@dataclass(frozen=True)
class Choice:
    """How one setting is chosen. sign: 1 highest, -1 lowest of `measure`; bound as in a bar."""

    measure: str
    sign: int
    by: str = "all"
    where: str | None = None
    bound_sign: int = 1  # 1: at least, -1: at most
    bound: float = 0.0

    @property
    def condition(self) -> str:
        """What must hold."""
        return f"{self.where} {'≥' if self.bound_sign > 0 else '≤'} {self.bound:g}"

    @staticmethod
    def of(content: Any, where: str) -> Choice:
        """A `choose` of a claim's file. Raises ContractError."""
        content = content if isinstance(content, dict) else {}
        known = ("highest", "lowest", "where", "by")
        for key in content:
            if key not in known:
                raise ContractError(f"{where}: {unknown('key of choose', str(key), known)}")
        ends = [name for name in ("highest", "lowest") if name in content]
        if len(ends) != 1:
            raise ContractError(f"{where}: choose needs one measure as highest or lowest")
        by = content.get("by", "all")
        if by not in BY:
            raise ContractError(f"{where}: {unknown('by of choose', str(by), BY)}")
        deciding, sign = content[ends[0]], 1 if ends[0] == "highest" else -1
        wanted = dict(content.get("where") or {})
        for name in (deciding, *([wanted.get("measure")] if wanted else [])):
            check_measure(str(name), where)
            if not str(name).startswith("val:"):
                raise ContractError(f"{where}: choose looks at validation scores, val:{name}")
        if not wanted:
            return Choice(deciding, sign, by)
        bounds = {k: v for k, v in wanted.items() if k != "measure"}
        if len(bounds) != 1 or not {"at_least", "at_most"} & bounds.keys():
            raise ContractError(f"{where}: choose.where needs measure and at_least or at_most")
        ((kind, bound),) = bounds.items()
        bound_sign = 1 if kind == "at_least" else -1
        return Choice(deciding, sign, by, wanted["measure"], bound_sign, float(bound))

    def best(self, runs: dict[str, Sequence[dict]]) -> tuple[str, bool]:
        """(the member chosen by the means over its runs, whether it meets the condition)."""
        decisive = {m: self.sign * _mean(self.measure, found) for m, found in runs.items()}
        if self.where is None:
            return max(decisive, key=decisive.__getitem__), True
        short = {
            m: max(0.0, self.bound_sign * (self.bound - _mean(self.where, found)))
            for m, found in runs.items()
        }
        least = min(short.values())
        kept = [m for m in runs if short[m] <= least]  # 0 for all that meet it
        return max(kept, key=decisive.__getitem__), least == 0


@dataclass
class Chosen:
    """results: {arm: {seed: those of the member chosen}}; unmatched: {arm: seeds}."""

    results: Results = field(default_factory=dict)
    member: dict[str, dict[int, str]] = field(default_factory=dict)
    unmatched: dict[str, list[int]] = field(default_factory=dict)


def members(arm: str, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{name: settings} of an arm's runs; without a grid it is its only one."""
    plain = {key: value for key, value in content.items() if key not in OWN}
    grid = content.get("grid")
    if not grid:
        return {arm: plain}
    found = {}
    for values in product(*grid.values()):
        own = dict(zip(grid, values, strict=True))
        title = ",".join(f"{key.rpartition('.')[2]}={show(v)}" for key, v in own.items())
        found[f"{arm}[{title}]"] = plain | own
    return found


def check_arm(name: str, arms: dict[str, dict], default: Choice | None, where: str) -> None:
    """Whether grid, choose and from of an arm can be followed. Raises ContractError."""
    arm, where = arms[name], f"{where}: arm {name}"
    grid, base = arm.get("grid"), arm.get("from")
    if grid is not None:
        lists = isinstance(grid, dict) and all(isinstance(v, list) and v for v in grid.values())
        if not grid or not lists or prod(map(len, grid.values())) > MOST:
            raise ContractError(f"{where}: grid must be lists of values by key, {MOST} in all")
        if len(members(name, arm)) < prod(map(len, grid.values())):
            raise ContractError(f"{where}: grid names a setting twice")
        if default is None and "choose" not in arm:
            raise ContractError(f"{where} has a grid and no choose")
    if "choose" in arm and grid is None:
        raise ContractError(f"{where} has a choose and no grid")
    if base is not None:
        if base not in arms:
            raise ContractError(f"{where}: {unknown('arm', str(base), arms)}")
        if {"from", "grid"} & arms[base].keys():
            raise ContractError(f"{where}: from={base} must be an arm without grid and from")


def chosen(claim, results: Results, seeds: Sequence[int]) -> Chosen:
    """Of every arm the runs that are judged."""
    found = Chosen()
    for arm, content in claim.arms.items():
        names, rule = list(members(arm, content)), claim.choice(arm)
        if rule is None:
            picked = dict.fromkeys(seeds, (arm, True))
        elif rule.by == "seed":
            picked = {s: rule.best({m: [results[m][s]] for m in names}) for s in seeds}
        else:
            over = claim.calibrated_on if rule.by == "calibration" else seeds
            best = rule.best({m: [results[m][s] for s in over] for m in names})
            picked = dict.fromkeys(seeds, best)
        found.results[arm] = {s: results[m][s] for s, (m, _) in picked.items()}
        if rule is not None:
            found.member[arm] = {s: m for s, (m, _) in picked.items()}
        missed = [s for s, (_, met) in picked.items() if not met]
        if missed:
            found.unmatched[arm] = missed
    return found


def _mean(name: str, runs: Sequence[dict]) -> float:
    return fmean(measure(name, results) for results in runs)
