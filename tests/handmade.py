"""Run folders written by hand: two experiences, numbers that are known before anything runs."""

import json
from pathlib import Path

UNDEFINED = {"metrics.min_acc": "eval.every is not set", "metrics.stability[0]": "nothing is past"}


def results_of(first, kept, new, *, strategy="plain", seed=0, **over):
    """results.json of R = [[first, -], [kept, new]], its metrics worked out here."""
    metrics = {
        "average_accuracy": (kept + new) / 2,
        "average_incremental_accuracy": (first + (kept + new) / 2) / 2,
        "plasticity": [first, new],
        "stability": [None, kept / first],
        "seen_accuracy": [first, (kept + new) / 2],
        "past_accuracy": [None, kept],
        "forgetting": first - kept,
        "backward_transfer": kept - first,
        "min_acc": None,
        "eval_every": None,
    }
    cost = {"train_seconds": 2.0, "updates": 40, "samples_seen": 80, "stored_bytes": 2048}
    return {
        "schema": 1,
        "status": "finished",
        "stream": "made",
        "stream_hash": f"hash{seed}",
        "strategy": strategy,
        "needs": [],
        "domain": "vision",
        "seed": seed,
        "score": "accuracy",
        "experiences": [
            {"name": f"0{i}_{n}", "n_train": 9, "n_val": 1} for i, n in enumerate("ab")
        ],
        "evals": [
            {"name": f"0{j}_{n}", "kind": "stream", "learned_at": [j], "n": 10, "chance": 0.1}
            for j, n in enumerate("ab")
        ],
        "b": [None, None],
        "R": [[first, None], [kept, new]],
        "V": [[first, None], [kept, new]],
        "R_within": None,
        "raw": None,
        "metrics": metrics,
        "undefined": dict(UNDEFINED),
        "cost": cost,
        "selection": None,
        "probes": {},
        "versions": {"cl": "0.1.0", "torch": "2.4", "numpy": "2.0"},
        "device": "cpu",
        "threads": 1,
        **over,
    }


def written(folder, results, recipe=None, curves=None):
    """A run folder with these files; recipe: {key: value}, curves: lines."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    if recipe is not None:
        whole = {"stream": results["stream"], "strategy": results["strategy"]}
        whole |= {"seed": results["seed"], **recipe}
        (folder / "recipe.yaml").write_text(
            "".join(f"{key}: {json.dumps(value)}\n" for key, value in whole.items())
        )
    if curves is not None:
        (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curves))
    return folder


def run(root, strategy, seed, scores, recipe=None, curves=None, arm=None, **over):
    """`<root>/made/<arm>/seed<k>` of scores (first, kept, new)."""
    folder = Path(root) / "made" / (arm or strategy) / f"seed{seed}"
    made = results_of(*scores, strategy=strategy, seed=seed, **over)
    return written(folder, made, recipe, curves)


def line(kind, experience, updates, test, val):
    """A line of curves.jsonl."""
    return {
        "kind": kind,
        "experience": experience,
        "updates": updates,
        "samples": updates,
        "tokens": 0,
        "env_steps": 0,
        "test": test,
        "val": val,
        "within": test,
        "counts": {},
        "undefined": {},
    }
