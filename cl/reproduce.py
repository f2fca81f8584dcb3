"""`cl reproduce`: run a claim's arms over its seeds, judge, keep the numbers.

`<out>/reproduce/<claim>/` holds `verdict.json` and `runs/<arm>-<hash>/`, ordinary run folders.
The hash is over the arm's settings and the sources that its numbers come from, so that a finished
run is taken as it is, one that was stopped goes on, and what has changed is run again.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib

from cl import folder
from cl.claims import Claim
from cl.grids import Choice, Results
from cl.machine import describe_cpu, versions
from cl.runner import load, resume, run
from cl.sources import source_hash
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
    folder.write(path, json.dumps(document, indent=1) + "\n")
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
        """Run what is not finished."""
        if not tasks:
            return
        jobs = [self._job(name, seed) for name, seed in tasks]
        seeds = list(dict.fromkeys(seed for _, seed in tasks))
        random.Random(0).shuffle(jobs)  # or the noise of the machine would follow the arms
        jobs.sort(key=lambda job: seeds.index(job[1]))
        for name, seed, found, place, seconds in _done(jobs, self.workers):
            self.results[name][seed] = found
            self.folders[name, seed] = place
            if self.progress is not None:
                done = sum(map(len, self.results.values()))
                self.progress(done, self.planned, name, seed, seconds)

    def _job(self, name: str, seed: int) -> tuple:
        """(member, seed, stream, strategy, keys) of one run, its folder of its own as `out`."""
        stream, strategy, keys = self.claim.keys(name, seed, self.over)
        arm = self.claim.members[name][0]
        base = self.claim.arms[arm].get("from")
        keys["out"] = str(self._folder(name, seed))
        if base is not None:
            keys["model.from"] = str(self.folders[base, seed])
        return name, seed, stream, strategy, keys

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


def _done(jobs: list[tuple], workers: int | None) -> Iterator[tuple[str, int, dict, Path, float]]:
    """Every run's results as it ends."""
    n = min(len(jobs), workers or joblib.cpu_count())
    parallel = joblib.Parallel(n, return_as="generator_unordered")
    with warnings.catch_warnings():
        # joblib replaces a worker whose memory has grown; nothing is lost by that
        warnings.filterwarnings("ignore", "A worker stopped", UserWarning)
        yield from parallel(joblib.delayed(_one)(*job) for job in jobs)


def _one(name: str, seed: int, stream: str, strategy: str, keys: dict) -> tuple:
    """One run: taken as it is, gone on with, or begun."""
    started = time.perf_counter()
    folders = [path.parent for path in Path(keys["out"]).glob(f"[!.]*/*/seed{seed}/recipe.yaml")]
    found = resume(folders[0]) if folders else run(stream, strategy, **keys)
    return name, seed, load(found.dir).results, found.dir, time.perf_counter() - started


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
