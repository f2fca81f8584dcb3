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
from cl.machine import describe_cpu, versions
from cl.runner import load, resume, run
from cl.sources import source_hash
from cl.verdict import Judged, Judgement, Results, judge

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
    tasks = [(arm, seed) for seed in seeds for arm in claim.arms]
    jobs = [_job(claim, arm, seed, over, home) for arm, seed in tasks]
    random.Random(0).shuffle(jobs)  # or the noise of the machine would follow the arms
    jobs.sort(key=lambda job: seeds.index(job[1]))
    started = time.perf_counter()
    results: Results = {arm: {} for arm in claim.arms}
    for k, (arm, seed, found, seconds) in enumerate(_done(jobs, workers), 1):
        results[arm][seed] = found
        if progress is not None:
            progress(k, len(jobs), arm, seed, seconds)
    results = {arm: {seed: found[seed] for seed in seeds} for arm, found in results.items()}
    judgement = judge(claim, results, quick=quick)
    document = _document(claim, judgement, seeds, over, results)
    document["seconds"] = round(time.perf_counter() - started, 1)
    home.mkdir(parents=True, exist_ok=True)
    path = home / "verdict.json"
    folder.write(path, json.dumps(document, indent=1) + "\n")
    return judgement, path


def _job(claim: Claim, arm: str, seed: int, over: dict, home: Path) -> tuple:
    """(arm, seed, stream, strategy, keys) of one run, with a folder of its own as `out`."""
    stream, strategy, keys = claim.keys(arm, seed, over)
    same = {k: v for k, v in keys.items() if k != "seed"}
    text = json.dumps([stream, strategy, same, source_hash(stream, strategy)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    keys["out"] = str(home / "runs" / f"{arm}-{digest}")
    return arm, seed, stream, strategy, keys


def _done(jobs: list[tuple], workers: int | None) -> Iterator[tuple[str, int, dict, float]]:
    """Every run's results as it ends."""
    n = min(len(jobs), workers or joblib.cpu_count())
    parallel = joblib.Parallel(n, return_as="generator_unordered")
    with warnings.catch_warnings():
        # joblib replaces a worker whose memory has grown; nothing is lost by that
        warnings.filterwarnings("ignore", "A worker stopped", UserWarning)
        yield from parallel(joblib.delayed(_one)(*job) for job in jobs)


def _one(arm: str, seed: int, stream: str, strategy: str, keys: dict) -> tuple:
    """One run: taken as it is, gone on with, or begun."""
    started = time.perf_counter()
    folders = [path.parent for path in Path(keys["out"]).glob(f"[!.]*/*/seed{seed}/recipe.yaml")]
    found = resume(folders[0]) if folders else run(stream, strategy, **keys)
    return arm, seed, load(found.dir).results, time.perf_counter() - started


def _document(
    claim: Claim, judgement: Judgement, seeds: list[int], over: dict, results: Results
) -> dict:
    """`verdict.json`."""
    first = next(iter(results[claim.primary.of].values()))
    return {
        "claim": claim.name,
        "digest": claim.digest,
        "paper": claim.paper,
        "reported": claim.reported,
        "tag": claim.tag,
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
                claim.primary.measure: asdict(e),
                "train_seconds": [r["cost"]["train_seconds"] for r in results[arm].values()],
                "stored_bytes": results[arm][seeds[0]]["cost"]["stored_bytes"],
            }
            for arm, e in judgement.arms.items()
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
        "values": judged.values,
        "mean": judged.estimate.mean,
        "interval": [_finite(judged.estimate.low), _finite(judged.estimate.high)],
        "verdict": judged.verdict,
    }


def _finite(x: float) -> float | None:
    """An interval without a bound is null in JSON."""
    return x if abs(x) < 1e300 else None
