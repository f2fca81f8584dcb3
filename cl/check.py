"""`cl check`: a plug-in against the contract, in the small.

Yields (passed, what was checked, detail). The same checks run in our own test-suite over every
registered name.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import cl
from cl.config import REQUIRED
from cl.env_stream import EnvStream
from cl.errors import BadValue, ClError, MissingPackage
from cl.folder import comparable
from cl.models import acts, build, rebuild
from cl.models.anatomy import anatomy
from cl.models.policy import Actions, PolicyModel
from cl.parts import build_strategy, check_contract
from cl.registry import ROOMS, Entry, entries, find, located
from cl.runner import resume
from cl.state import check_state
from cl.strategy import CLAIMS, HOOKS, Strategy
from cl.stream import Stream
from cl.text import TextStream

Finding = tuple[bool, str, str]
STREAM = "split_digits"
SMALL = {"stream.n_experiences": 2, "train.updates": 2, "train.batch_size": 16}
TEXT = "skills"  # for what needs a language model
SMALL_TEXT = {
    "stream": {
        "n_train": 24,
        "n_test": 6,
        "n_val": 3,
        "tasks": ["above", "letter"],
        "skills": ["copy"],
    },
    "train.updates": 2,
    "train.batch_size": 16,
}
ACTS = "cartpole_actions"  # for what needs environments
SMALL_ACTS = {
    "stream": {"steps": 256, "n_test": 2, "n_val": 0},
    "objective": {"n_envs": 4, "n_steps": 32, "passes": 1},
    "train.batch_size": 64,
}


def check(name: str) -> Iterator[Finding]:
    """Every check that fits what `name` is. Raises ClError if it can't even be found."""
    for entry in _located(name):
        yield from _lint(entry)
        tried = {"strategies": _strategy, "streams": _stream, "models": _model, "probes": _probe}
        kind = tried.get(entry.kind)
        if kind is None:
            continue
        required = [n for n, p in entry.params().items() if p.default is REQUIRED]
        if required:
            yield (
                True,
                "not run",
                f"{', '.join(required)} must be given, so it can't be tried alone",
            )
            continue
        try:
            yield from kind(entry)
        except MissingPackage as error:
            yield True, "not run", str(error)
        except ClError as error:
            yield False, "runs", str(error)


def _located(name: str) -> list[Entry]:
    if ":" in name or name.endswith(".py"):
        return located(name)
    known = {n: e for kind in ROOMS for n, e in entries(kind).items()}
    return [known[name]] if name in known else [find("strategies", name)]


def _lint(entry: Entry) -> Iterator[Finding]:
    yield bool(entry.summary), "documentation", entry.summary or "no docstring"
    undocumented = [n for n, p in entry.params().items() if not p.doc]
    yield (
        not undocumented,
        "every parameter is described",
        f"missing in the docstring's Parameters: {', '.join(undocumented)}" if undocumented else "",
    )
    untyped = [n for n, p in entry.params().items() if isinstance(p.annotation, str)]
    yield (
        not untyped,
        "every annotation can be parsed from text",
        ", ".join(f"{n}: {entry.params()[n].annotation}" for n in untyped),
    )


def _strategy(entry: Entry) -> Iterator[Finding]:
    strategy = build_strategy(entry, {})
    check_contract(strategy)
    kind = type(strategy)
    hooks = [h for h in HOOKS if getattr(kind, h) is not getattr(Strategy, h)]
    claims = [c for c in CLAIMS if hasattr(kind, c)]
    yield True, "hooks", ", ".join(hooks) or "none"
    yield True, "claims", ", ".join(claims) or "none"
    check_state([strategy])
    yield True, "state can be checkpointed", ", ".join(vars(strategy)) or "none"
    stream, settings = _fitting(strategy)
    with tempfile.TemporaryDirectory() as out:
        settings["out"] = out
        if "pretraining" in kind.needs:
            settings["model.from"] = cl.run(stream, "naive", **settings).dir
        first = cl.run(stream, entry.name, **settings)
        yield True, "two experiences, two updates each", f"R = {first.results['R']}"
        kept, inside = Path(out) / "kept", Path(out) / "inside"
        shutil.copytree(first.dir, kept)
        # the second experience's first update is the third one, of a strategy that makes so many
        again = cl.run(stream, entry.name, **settings, **{"checkpoint.every": 3})
        yield _same("same seed, same results", first, again)
        shutil.copytree(again.dir, inside)
        watched = {**settings, "eval.every": 1, "probes": ["weight_norm"]}
        yield _same_weights(
            "measuring changes nothing", first, cl.run(stream, entry.name, **watched)
        )
        yield _resumed("resumed equals uninterrupted", first, kept)
        yield _resumed("resumed inside an experience equals uninterrupted", first, inside)
        alone = {**settings, "eval.batch_size": 1}
        yield _batching(first, cl.run(stream, entry.name, **alone))


def _fitting(strategy: Strategy) -> tuple[str, dict]:
    """A stream that a strategy is for, and settings that make it short."""
    domains = type(strategy).domains or ("vision",)
    stream, small = STREAM, dict(SMALL)
    if "vision" not in domains:
        stream, small = (TEXT, dict(SMALL_TEXT)) if "llm" in domains else (ACTS, dict(SMALL_ACTS))
    if "task_id_test" in strategy.needs:
        small["stream.task_labels"] = True
    return stream, small


def _probe(entry: Entry) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as out:
        settings = {**SMALL, "train.epochs": 2, "train.updates": 12, "out": out}
        probed = cl.run(STREAM, "naive", **settings, probes=[entry.name])
        kept, inside = Path(out) / "kept", Path(out) / "inside"
        shutil.copytree(probed.dir, kept)
        rows = probed.results["probes"][entry.name]
        broken = [k for row in rows for k, v in row.items() if not isinstance(v, float | int)]
        yield bool(rows[-1]) and not broken, "returns numbers by name", ", ".join(rows[-1])
        yield _same_weights(
            "measuring changes nothing", probed, cl.run(STREAM, "naive", **settings)
        )
        settings |= {"probes": [entry.name], "checkpoint.every": 5}
        shutil.copytree(cl.run(STREAM, "naive", **settings).dir, inside)
        yield _resumed("resumed equals uninterrupted", probed, kept)
        yield _resumed("resumed inside an experience equals uninterrupted", probed, inside)


def _resumed(what: str, first, kept: Path) -> Finding:
    """Go back to the last checkpoint but one, and go on."""
    newest = sorted((kept / "checkpoint").iterdir())[-1]
    shutil.rmtree(newest)
    results = kept / "results.json"
    results.write_text(results.read_text().replace('"finished"', '"running"'))
    return _same(what, first, resume(kept))


def _batching(first, again) -> Finding:
    """Answers must not depend on which test rows come together (design section 9).

    `again` was scored row by row. One differing row per eval is a near tie, more is not.
    """
    evals, gaps = first.results["evals"], []
    for name in ("R", "R_within"):
        for left, right in zip(first.results[name], again.results[name], strict=True):
            pairs = zip(left, right, evals, strict=True)
            gaps += [abs(a - b) * e["n"] for a, b, e in pairs if a is not None]
    most = max(gaps, default=0.0)
    return most < 1.5, "predictions do not depend on batching", f"{most:.0f} rows differ at most"


def _same(what: str, a, b) -> Finding:
    left, right = comparable(a.results), comparable(b.results)
    differing = [key for key in left if left[key] != right[key]]
    if differing:
        return False, what, f"{', '.join(differing)} differ"
    return _same_weights(what, a, b)


def _same_weights(what: str, a, b) -> Finding:
    left, right = a.model.state_dict(), b.model.state_dict()
    moved = [name for name in left if not torch.equal(left[name], right[name])]
    return not moved, what, f"weights differ: {', '.join(moved)}" if moved else ""


def _stream(entry: Entry) -> Iterator[Finding]:
    make, seeded = entry.load(), "seed" in entry.params()
    settings = {n: p.default for n, p in entry.params().items()}
    stream, again = make(**settings), make(**settings)
    yield isinstance(stream, Stream), "returns a Stream", type(stream).__name__
    yield stream.content_hash() == again.content_hash(), "same arguments, same content", ""
    if seeded:
        other = make(**{**settings, "seed": 1})
        yield other.content_hash() != stream.content_hash(), "another seed, another content", ""
    yield from _separate(stream)
    if isinstance(stream, TextStream):
        yield from _text(stream)
        return
    if isinstance(stream, EnvStream):
        yield from _tasks(stream)
        return
    for e in stream.evals:
        labels = set(e.test.column("y").tolist())
        if labels != set(e.classes):
            yield False, f"eval {e.name} tests its classes", f"{sorted(labels)} {e.classes}"
    x = stream.experiences[0].train.rows(torch.arange(2))["x"]
    x = x if stream.transform is None else stream.transform(x)
    yield (
        x.dtype == torch.float32 and x.shape[1:] == stream.input_shape,
        "inputs have the promised shape",
        f"{list(x.shape[1:])}",
    )


def _text(stream: TextStream) -> Iterator[Finding]:
    """Gold responses have the form of an answer and are right, odd ones can be scored too."""
    gold = {k: item.responses[0] for k, item in enumerate(stream.items) if item.responses}
    rewards = stream.rewards(list(gold), list(gold.values()))
    wrong = [stream.items[k].prompt for k, r in zip(gold, rewards, strict=True) if r != 1]
    wrong += [stream.items[k].prompt for k in gold if not stream.is_well_formed(k, gold[k])]
    yield not wrong, "verifiers take every gold response", "; ".join(map(repr, wrong[:3]))
    first = {item.task: k for k, item in reversed(list(enumerate(stream.items)))}
    for odd in ("", " ", "\n\t", "0" * 5000, "\u0663", "\ud800", "#### "):
        rewards = stream.rewards(list(first.values()), [odd] * len(first))
        failed = [task for task, r in zip(first, rewards, strict=True) if r is None]
        if failed:
            yield False, "verifiers take any text", f"{', '.join(failed)}: {odd[:20]!r}"


def _tasks(stream: EnvStream) -> Iterator[Finding]:
    """Tasks have the promised size, begin alike each time, and are what their expert acts in."""
    for task in stream.tasks:
        env = task.build(2)
        first, again = (env.reset(np.random.default_rng(0)) for _ in range(2))
        fits = first.shape == (2, *stream.input_shape) and first.dtype == np.float32
        yield fits, f"{task.name} has the promised shape", f"{first.dtype} {list(first.shape)}"
        same = np.array_equal(first, again)
        yield same, f"{task.name} begins alike from the same random numbers", ""
        if task.expert is not None:
            act = task.expert(env)
            env.checked(act(env.step(env.sample(np.random.default_rng(1))).observations))
            yield True, f"{task.name} takes its expert's actions", ""
        env.close()


def _separate(stream: Stream) -> Iterator[Finding]:
    """No row is in two of training, validation and test data."""
    rows = {"train": [], "val": [], "test": []}
    for e in stream.experiences:
        rows["train"].append(e.train)
        rows["val"] += [e.val] if e.val is not None else []
    rows["test"] = [e.test for e in stream.evals]
    sets = {k: {(id(t.columns["x"]), i) for t in ts for i in _indices(t)} for k, ts in rows.items()}
    shared = (sets["train"] & sets["test"]) | (sets["train"] & sets["val"])
    shared |= sets["val"] & sets["test"]
    yield not shared, "training, validation and test rows are separate", f"{len(shared)} shared"


def _indices(table) -> list[int]:
    return range(len(table)) if table.index is None else table.index.tolist()


def _model(entry: Entry) -> Iterator[Finding]:
    settings = {
        n: list(p.default) if isinstance(p.default, tuple) else p.default
        for n, p in entry.params().items()
    }
    actions = Actions(2) if acts(entry.load()) else None
    try:
        model = build(entry.name, (3, 32, 32), settings, actions=actions)
    except BadValue:  # it does not take images
        model = build(entry.name, (), settings)
    if hasattr(model, "tokenizer"):
        yield from _language_model(model)
    elif isinstance(model, PolicyModel):
        yield from _policy(model)
    else:
        yield from _classifier(model)
    names = [part.name for part in anatomy(model)]
    yield names == [n for n, _ in model.named_parameters()], "anatomy is a total partition", ""


def _language_model(model) -> Iterator[Finding]:
    ids = torch.tensor([model.tokenizer.prompt_ids("ab"), model.tokenizer.prompt_ids("ba")])
    output = model(ids, torch.ones_like(ids))
    fits = output.shape[:2] == ids.shape and output.shape[2] >= model.tokenizer.vocab_size
    yield fits, "maps ids [B, L] to [B, L, vocabulary]", f"{list(output.shape)}"
    later = ids.clone()
    later[:, -1] = ids[:, 0]
    same = torch.allclose(model(later, torch.ones_like(ids))[:, :-1], output[:, :-1], atol=1e-5)
    yield same, "later tokens do not change earlier answers", ""
    output.square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    yield not still, "gradients reach every parameter", ", ".join(still)


def _policy(model: PolicyModel) -> Iterator[Finding]:
    x = torch.rand(4, 3, 32, 32)
    scores, *others = model.outputs(x)
    fits = scores.shape == (4, model.actions.n)
    yield fits, "maps observations to scores [B, actions]", f"{list(scores.shape)}"
    yield torch.equal(model(x), scores), "scores are what the model returns", ""
    sum(each.square().sum() for each in (scores, *others)).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    yield not still, "gradients reach every parameter", ", ".join(still)
    again = rebuild(model.architecture)
    again.load_state_dict(model.state_dict())
    yield torch.equal(again(x), scores), "can be built again from its architecture", ""


def _classifier(model) -> Iterator[Finding]:
    model.head.grow(3, torch.Generator().manual_seed(0))
    old = model.head.weight.detach().clone()
    model.head.grow(5, torch.Generator().manual_seed(1))
    yield torch.equal(model.head.weight[:3], old), "growing keeps old columns", ""
    output = model(torch.rand(4, 3, 32, 32))
    yield (
        tuple(output.shape) == (4, 5),
        "maps [B, C, H, W] to [B, classes]",
        f"{list(output.shape)}",
    )
    output.square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    yield not still, "gradients reach every parameter", ", ".join(still)
