"""Claims: a paper's statement as an experiment with its bar, one file in `strategies/claims/`.

A claim names arms (a strategy with settings), runs them on the same seeds, and says by bars what
must come out. A bar is a measure of one arm, or its paired difference (`minus`) or ratio (`over`)
to another arm's, with `at_least`, `at_most` or `within` (an equivalence). `minus` with `times`
takes so much of the other arm off, which says "at most 0.6 of it" of values that may be below 0,
where a ratio means nothing. Lists of arms (`of: [a, b]`, `minus: [c, d]`) are one comparison on
several streams, whose runs are drawn again stream by stream. The primary one decides; it must be a
superiority (a difference above 0, a ratio away from 1), so that it can't hold with its arms
exchanged. The null control is a contrast that must *not* clear its bar.

    paper reported claim tag     whose, with which figures; forgetting, transfer or mechanism
    stream settings              what every arm runs on: `cl run` keys
    seeds calibrated_on          five or more (RL: ten); what settings were chosen on
    statistic                    of the values over seeds: mean (default), or iqm, the interquartile
                                 mean, of ten seeds or more and with bootstrap intervals
    quick                        settings under which `--quick` tries everything out
    arms                         {name: {strategy: ..., key: value, ...}}; `from`, `grid` and
    choose                       `choose` of an arm, and the latter for all arms: cl/grids.py
    primary bars controls null_control   what is judged; controls are reported without a verdict

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cl.errors import BadValue, ContractError, DataError, unknown
from cl.grids import Choice, check_arm, members
from cl.measures import check_measure
from cl.request import Request

TAGS = ("forgetting", "transfer", "mechanism")
KEYS = {
    **dict.fromkeys(("paper", "reported", "claim", "tag", "stream", "seeds", "arms"), True),
    **dict.fromkeys(("primary", "null_control"), True),
    **dict.fromkeys(("settings", "calibrated_on", "quick", "bars", "controls", "notes"), False),
    **dict.fromkeys(("choose", "statistic"), False),
}
BOUNDS = ("at_least", "at_most", "within")
LEAST_SEEDS = {"mean": 5, "iqm": 10}  # by statistic
EVERY = "*"  # in place of an arm: every run of every arm


Arms = str | list[str]  # one, or one for each stream


def listed(arms: Arms | None) -> list[str]:
    """Arms as a list."""
    return list(arms) if isinstance(arms, list) else [arms] if arms else []


def _named(arms: Arms | None) -> str:
    names = listed(arms)
    return f"({', '.join(names)})" if len(names) > 1 else "".join(names)


@dataclass(frozen=True)
class Bar:
    """A measure of the arm `of`, alone, `minus` or `over` another arm's, and its bound.

    why: what it shows. A control has no bound.
    """

    measure: str
    of: Arms
    minus: Arms | None = None
    over: Arms | None = None
    times: float = 1.0
    at_least: float | None = None
    at_most: float | None = None
    within: float | None = None
    why: str = ""

    @property
    def title(self) -> str:
        """What is measured."""
        factor = f"{self.times:g} " if self.times != 1 else ""
        minus, over = _named(self.minus), _named(self.over)
        other = f" − {factor}{minus}" if minus else f" / {over}" if over else ""
        of = "all runs" if self.of == EVERY else _named(self.of)
        return f"{self.measure.replace('_', ' ')}: {of}{other}"

    @property
    def bound(self) -> str:
        """The bar itself."""
        signs = {"at_least": "≥", "at_most": "≤", "within": "within ±"}
        return next(
            (f"{s} {v:g}" for k, s in signs.items() if (v := getattr(self, k)) is not None), ""
        )

    @property
    def arms(self) -> list[str]:
        """Those it speaks of."""
        named = (listed(arms) for arms in (self.of, self.minus, self.over))
        return [arm for arms in named for arm in arms if arm != EVERY]

    @property
    def is_superiority(self) -> bool:
        """Whether it can't hold with its arms exchanged."""
        if self.minus:
            return self.times == 1 and ((self.at_least or 0) > 0 or (self.at_most or 0) < 0)
        if self.over:
            low, high = self.at_least, self.at_most
            return (low is not None and low > 1) or (high is not None and 0 < high < 1)
        return False

    def exchanged(self) -> Bar:
        """With method and baseline swapped."""
        if self.minus:
            return replace(self, of=self.minus, minus=self.of)
        return replace(self, of=self.over, over=self.of) if self.over else self


@dataclass(frozen=True)
class Claim:
    """One file of `strategies/claims/`."""

    name: str
    summary: str
    path: Path
    paper: str
    reported: str
    claim: str
    tag: str
    stream: str
    settings: dict[str, Any]
    seeds: list[int]
    calibrated_on: list[int]
    quick: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    primary: Bar
    bars: list[Bar]
    controls: list[Bar]
    null_control: Bar
    notes: str = ""
    choose: dict[str, Any] | None = None
    statistic: str = "mean"

    @property
    def digest(self) -> str:
        """Eight characters that change with the experiment or a bar, not with the words."""
        bars = self.primary, *self.bars, *self.controls, self.null_control
        judged = [{**vars(bar), "why": ""} for bar in bars]
        for bar in judged:
            if bar["times"] == 1:
                del bar["times"]
        what = [self.stream, self.settings, self.arms, self.seeds, self.calibrated_on, judged]
        what += [self.choose] if self.choose else []
        what += [self.statistic] if self.statistic != "mean" else []
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]

    @cached_property
    def members(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """{name: (its arm, settings)} of everything that is run: an arm, or each of its grid."""
        return {
            name: (arm, settings)
            for arm, content in self.arms.items()
            for name, settings in members(arm, content).items()
        }

    def choice(self, arm: str) -> Choice | None:
        """How one of an arm's grid is chosen; None if it has no grid."""
        content = self.arms[arm]
        if not content.get("grid"):
            return None
        return Choice.of(content.get("choose", self.choose), f"claim {self.name}")

    def keys(self, name: str, seed: int, over: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
        """Stream, strategy and settings of one run of a member; `over` are the caller's."""
        keys = {**self.settings, **self.members[name][1], **over, "seed": seed}
        stream = keys.pop("stream", self.stream)
        path = keys.get("stream.path")
        if path is not None:
            keys["stream.path"] = str(located(path))
        return stream, keys.pop("strategy"), keys

    def check(self, over: dict[str, Any]) -> None:
        """Whether its runs can begin. Raises UnknownName, BadValue, DataError."""
        _check_grids(self, over)
        for name in self.members:
            _request(self, name, over)
            self.keys(name, self.seeds[0], over)

    def exchanged(self) -> Claim:
        """The claim with method and baseline swapped in every bar."""
        return replace(
            self,
            primary=self.primary.exchanged(),
            bars=[bar.exchanged() for bar in self.bars],
            null_control=self.null_control.exchanged(),
        )


def claims() -> dict[str, Path]:
    """{name: file} of the packaged claims."""
    spec = importlib.util.find_spec("strategies")
    folders = spec.submodule_search_locations if spec else []
    found = [path for folder in folders for path in Path(folder).glob("claims/*.yaml")]
    return {path.stem: path for path in sorted(found)}


def summary(path: Path) -> str:
    """A claim's first line."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def load(name: str) -> Claim:
    """A packaged claim, or one in a file of the user's own. Raises UnknownName, ContractError."""
    known = claims()
    path = Path(name) if name.endswith((".yaml", ".yml")) else known.get(name)
    if path is None:
        raise unknown("claim", name, known, " (see `cl reproduce --list`)")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"claim {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ContractError(
            f"claim {path} can't be read: {' '.join(str(error).split())}"
        ) from error
    return _claim(path, content)


def located(path: str) -> Path:
    """A data file: as given, else in the folder CL_DATA, else in `shared/data` beside the project.

    Raises DataError if it lies nowhere.
    """
    given = Path(path).expanduser()
    places = [given]
    if not given.is_absolute():
        own = Path(__file__).parents[2] / "shared" / "data"
        places.append(Path(os.environ.get("CL_DATA", own)) / given)
    for place in places:
        if place.exists():
            return place.resolve()
    raise DataError(
        f"no data {path}: looked for {' and '.join(map(str, places))}; set CL_DATA to the folder "
        "that holds it, or give stream.path=..."
    )


def _claim(path: Path, content: Any) -> Claim:
    where = f"claim {path.stem}"
    if not isinstance(content, dict):
        raise ContractError(f"{where} must hold `key: value` lines")
    for key in content:
        if key not in KEYS:
            raise ContractError(f"{where}: {unknown('key', str(key), KEYS)}")
    missing = [key for key, required in KEYS.items() if required and key not in content]
    if missing:
        raise ContractError(f"{where} lacks {', '.join(missing)}")
    plain = {k: content[k] for k in ("paper", "reported", "claim", "tag", "stream")}
    claim = Claim(
        name=path.stem,
        summary=summary(path),
        path=path,
        **{k: " ".join(str(v).split()) for k, v in plain.items()},
        settings=content.get("settings") or {},
        seeds=content["seeds"],
        calibrated_on=content.get("calibrated_on") or [],
        quick=content.get("quick") or {},
        arms=content["arms"],
        primary=_bar(where, content["primary"]),
        bars=[_bar(where, bar) for bar in content.get("bars") or []],
        controls=[_bar(where, bar, bounded=False) for bar in content.get("controls") or []],
        null_control=_bar(where, content["null_control"]),
        notes=" ".join(str(content.get("notes") or "").split()),
        choose=content.get("choose"),
        statistic=content.get("statistic", "mean"),
    )
    _check(where, claim)
    return claim


def _bar(where: str, content: Any, bounded: bool = True) -> Bar:
    known = Bar.__dataclass_fields__
    if not isinstance(content, dict) or not {"measure", "of"} <= content.keys():
        raise ContractError(f"{where}: a bar needs measure and of, got {content!r}")
    for key in content:
        if key not in known:
            raise ContractError(f"{where}: {unknown('key of a bar', key, known)}")
    bar = Bar(**content)
    bounds = [getattr(bar, name) for name in BOUNDS if getattr(bar, name) is not None]
    if len(bounds) != bounded or not all(isinstance(b, int | float) for b in bounds):
        wanted = f"one number as {', '.join(BOUNDS)}" if bounded else "no bound (it is a control)"
        raise ContractError(f"{where}: {bar.title} needs {wanted}")
    if not all(map(math.isfinite, bounds)) or (bar.within is not None and bar.within <= 0):
        raise ContractError(f"{where}: {bar.title} has no usable bound: {bar.bound}")
    if bar.times != 1 and (not bar.minus or not 0 < bar.times < math.inf):
        raise ContractError(f"{where}: {bar.title}: times is above 0 and goes with minus")
    counts = {len(listed(arms)) for arms in (bar.of, bar.minus, bar.over) if arms}
    if len(counts) != 1 or 0 in counts:
        raise ContractError(f"{where}: {bar.title} compares lists of arms that differ in length")
    if bar.minus and bar.over:
        raise ContractError(f"{where}: {bar.title} has minus and over; one of them")
    check_measure(bar.measure, where)
    if bar.measure.startswith("r2:") != (bar.of == EVERY) or (bar.of == EVERY and len(bar.arms)):
        raise ContractError(f'{where}: r2:Y~X is a measure of "{EVERY}", and it has no other')
    return bar


def _check(where: str, claim: Claim) -> None:
    """What makes a claim fit to be judged. Raises ContractError, UnknownName, BadValue."""
    if claim.tag not in TAGS:
        raise ContractError(f"{where}: {unknown('tag', claim.tag, TAGS)}")
    seeds, statistic = claim.seeds, claim.statistic
    if statistic not in LEAST_SEEDS:
        raise ContractError(f"{where}: {unknown('statistic', str(statistic), LEAST_SEEDS)}")
    least = LEAST_SEEDS[statistic]
    if not isinstance(seeds, list) or len(set(seeds)) != len(seeds) or len(seeds) < least:
        of = "" if statistic == "mean" else f" (statistic: {statistic})"
        raise ContractError(f"{where}: seeds must be {least} or more{of}, all different: {seeds}")
    shared = set(seeds) & set(claim.calibrated_on)
    if shared:
        raise ContractError(f"{where}: settings were chosen on reported seeds {sorted(shared)}")
    if not claim.primary.is_superiority:
        raise ContractError(
            f"{where}: the primary bar ({claim.primary.title} {claim.primary.bound}) must be a "
            "difference above 0 or a ratio away from 1, which its arms exchanged can't meet"
        )
    for bar in (claim.primary, *claim.bars, *claim.controls, claim.null_control):
        for arm in bar.arms:
            if arm not in claim.arms:
                raise ContractError(f"{where}: {unknown('arm', arm, claim.arms)}")
    default = Choice.of(claim.choose, where) if claim.choose is not None else None
    for name, arm in claim.arms.items():
        if not isinstance(arm, dict) or "strategy" not in arm:
            raise ContractError(f"{where}: arm {name} names no strategy")
        check_arm(name, claim.arms, default, where)
        rule = claim.choice(name)
        if rule is not None and rule.by == "calibration" and not claim.calibrated_on:
            raise ContractError(f"{where}: arm {name} is chosen by calibration, on no seeds")
    for name in claim.members:
        _request(claim, name, {})
    _check_grids(claim, claim.quick)
    _request(claim, next(iter(claim.members)), claim.quick)


def _check_grids(claim: Claim, over: dict[str, Any]) -> None:
    """What a grid varies can't be set for all arms: its members would be one and the same run."""
    for name, arm in claim.arms.items():
        fixed = sorted(over.keys() & (arm.get("grid") or {}).keys())
        if fixed:
            raise BadValue(
                f"{fixed[0]} can't be set: arm {name} of {claim.name} is run under several of them"
            )


def _request(claim: Claim, name: str, over: dict[str, Any]) -> None:
    """Check one member's names, keys and values; the data need not be there."""
    keys = {**claim.settings, **claim.members[name][1], **over}
    Request.of(keys.pop("stream", claim.stream), keys.pop("strategy"), keys)
