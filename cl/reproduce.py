"""`cl reproduce`: run a claim's arms over its seeds, judge, keep the numbers.

`<out>/reproduce/<claim>/` holds `verdict.json` and `runs/<arm>-<hash>/`, ordinary run folders.
The hash is over the arm's settings and the sources that its numbers come from, so that a finished
run is taken as it is, one that was stopped goes on, and what has changed is run again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cl.claims import Claim
from cl.errors import RunError, UsageError
from cl.fleet import Workers
from cl.folder import read_results, write
from cl.grids import Choice, Results
from cl.identity import identity, sources_of
from cl.machine import describe_cpu, versions
from cl.request import Request
from cl.sources import source_hash
from cl.sweeps import Done, Planned, Watch, carry_out
from cl.verdict import Judged, Judgement, judge

Progress = Callable[[int, int, str, int, float], None]


def reproduce(
    claim: Claim,
    *,
    out: Path = Path("runs"),
    workers: int | None = None,
    quick: bool = False,
    seeds: list[int] | None = None,
    over: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Judgement, Path]:
    """Run what is not finished, `workers` (none: a core each) at a time, judge and write down.

    over: settings put over those of every arm; progress(done, of, arm, seed, seconds) is called
    after every run. Returns the judgement and the file that holds it. Raises ClError.
    """
    over = dict(over or {})
    if quick:
        over = {**claim.quick, **over}
    seeds = seeds or (claim.seeds[:2] if quick else claim.seeds)
    home = Path(out) / "reproduce" / (claim.name + ("-quick" if quick else ""))
    started = time.perf_counter()
    results = _Runs(claim, over, home, workers, progress).all(seeds)
    judgement = judge(claim, results, quick=quick, seeds=seeds)
    document = _document(claim, judgement, seeds, over)
    document["seconds"] = round(time.perf_counter() - started, 1)
    home.mkdir(parents=True, exist_ok=True)
    path = home / "verdict.json"
    write(path, json.dumps(document, indent=1) + "\n")
    return judgement, path


class _Runs:
    """Runs of a claim: first what others start from, then everything, then what was chosen."""

    def __init__(self, claim: Claim, over: dict, home: Path, workers: int | None, progress):
        self.claim, self.over, self.home = claim, over, home
        self.workers, self.progress = workers, progress
        self.results: Results = {name: {} for name in claim.members}
        self.folders: dict[tuple[str, int], Path] = {}
        self.planned = 0

    def all(self, seeds: list[int]) -> Results:
        """{member: {seed: results}}, seeds in the order given, those of calibration before."""
        claim = self.claim
        rules = {arm: claim.choice(arm) for arm in claim.arms}
        tried = [arm for arm, rule in rules.items() if rule and rule.by == "calibration"]
        bases = {arm["from"] for arm in claim.arms.values() if "from" in arm}
        every = [*claim.calibrated_on, *seeds] if tried else list(seeds)
        first = [(arm, seed) for seed in every for arm in claim.arms if arm in bases]
        rest = [(n, s) for s in seeds for n, (arm, _) in claim.members.items() if arm not in tried]
        on = claim.calibrated_on if tried else []
        rest += [(n, s) for s in on for n, (arm, _) in claim.members.items() if arm in tried]
        rest = [task for task in rest if task[0] not in bases]
        self.planned = len(first) + len(rest) + len(tried) * len(seeds)
        self.run(first)
        self.run(rest)
        best = {arm: self._best(arm, rules[arm]) for arm in tried}
        self.run([(name, seed) for seed in seeds for name in best.values()])
        order = {seed: k for k, seed in enumerate(every)}
        return {
            name: dict(sorted(found.items(), key=lambda item: order[item[0]]))
            for name, found in self.results.items()
        }

    def _best(self, arm: str, rule: Choice) -> str:
        """The member that calibration seeds choose."""
        names = [n for n, (own, _) in self.claim.members.items() if own == arm]
        return rule.best({n: list(self.results[n].values()) for n in names})[0]

    def run(self, tasks: list[tuple[str, int]]) -> None:
        """Run what is not finished. Raises ClError if one fails, when all others have ended."""
        planned = [self._planned(name, seed) for name, seed in tasks]
        watch = _Told(self)
        for done in carry_out(planned, Workers(self.workers), watch, home=self.home, check=False):
            watch.ended(done)  # those that had finished before
        for error in watch.errors:
            raise error

    def _planned(self, name: str, seed: int) -> Planned:
        """One run, its arm's folder as `out`."""
        stream, strategy, keys = self.claim.keys(name, seed, self.over)
        arm = self.claim.members[name][0]
        base = self.claim.arms[arm].get("from")
        keys["out"] = str(self._folder(name, seed).absolute())
        if base is not None:
            keys["model.from"] = str(self.folders[base, seed])
        request = Request.of(stream, strategy, keys)
        return Planned(request, name, (identity(request), sources_of(request)))

    def _folder(self, name: str, seed: int) -> Path:
        """`<arm>-<hash>`; what a run starts from belongs to its hash."""
        stream, strategy, keys = self.claim.keys(name, seed, self.over)
        arm = self.claim.members[name][0]
        base = self.claim.arms[arm].get("from")
        same = {k: v for k, v in keys.items() if k != "seed"}
        same |= {"from": self._folder(base, seed).name} if base is not None else {}
        text = json.dumps([stream, strategy, same, source_hash(stream, strategy)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self.home / "runs" / f"{arm}-{digest}"


class _Told(Watch):
    """Keeps the results of runs that have ended."""

    def __init__(self, runs: _Runs):
        self.runs, self.errors = runs, []

    def ended(self, done: Done) -> None:
        runs, name, seed = self.runs, done.planned.arm, done.planned.request.top["seed"]
        if done.folder is None:
            kind = UsageError if done.outcome.exit_code == 2 else RunError
            self.errors.append(kind(f"{done.planned.name}: {done.outcome.error}"))
        elif (name, seed) not in runs.folders:
            runs.results[name][seed] = read_results(done.folder)
            runs.folders[name, seed] = done.folder
            if runs.progress is not None:
                n = sum(map(len, runs.results.values()))
                runs.progress(n, runs.planned, name, seed, done.outcome.seconds)


def _document(claim: Claim, judgement: Judgement, seeds: list[int], over: dict) -> dict:
    """`verdict.json`."""
    picked = judgement.chosen
    results = picked.results
    first = next(iter(results[claim.primary.arms[0]].values()))
    return {
        "claim": claim.name,
        "digest": claim.digest,
        "paper": claim.paper,
        "reported": claim.reported,
        "tag": claim.tag,
        "statistic": claim.statistic,
        "seeds": seeds,
        "changed": over,
        "verdict": judgement.verdict,
        "reason": judgement.reason or None,
        "primary": _bar(judgement.primary),
        "bars": [_bar(judged) for judged in judgement.bars],
        "controls": [_bar(judged) for judged in judgement.controls],
        "null": _bar(judgement.null),
        "arms": {
            arm: {
                "needs": results[arm][seeds[0]]["needs"],
                claim.primary.measure: asdict(judgement.arms[arm])
                if arm in judgement.arms
                else None,
                "chosen": picked.member.get(arm),
                "unmatched": picked.unmatched.get(arm),
                "train_seconds": [r["cost"]["train_seconds"] for r in results[arm].values()],
                "stored_bytes": results[arm][seeds[0]]["cost"]["stored_bytes"],
            }
            for arm in claim.arms
        },
        "versions": versions(),
        "device": first["device"],
        "cpu": describe_cpu(),
    }


def _bar(judged: Judged) -> dict:
    return {
        "title": judged.bar.title,
        "bound": judged.bar.bound,
        "why": judged.bar.why,
        "values": judged.rows or judged.values,
        "mean": judged.estimate.mean,
        "interval": [_finite(judged.estimate.low), _finite(judged.estimate.high)],
        "verdict": judged.verdict,
    }


def _finite(x: float) -> float | None:
    """An interval without a bound is null in JSON."""
    return x if abs(x) < 1e300 else None
