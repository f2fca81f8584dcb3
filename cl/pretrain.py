"""`cl pretrain NAME`: make a shipped model's weights again.

`tiny` is trained on the corpus of the stream `skills`: base skills, and a weak sprinkling of the
stream's tasks in many styles, so that every task is sometimes answered right and never well.
Beside the weights lies `NAME.json`: settings, loss curve, how often the finished model is right.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from safetensors.torch import save_file
from torch import Tensor

from cl import folder
from cl.config import Range, params_of_schema, parse_all
from cl.display import console
from cl.errors import UsageError, unknown
from cl.machine import versions
from cl.models import build
from cl.objectives._tokens import token_cross_entropy
from cl.objectives.token_cross_entropy import NOTHING, encoded
from cl.registry import find
from cl.sampling import sample
from cl.seeding import generator, seed_globals
from cl.text import TextStream

CORPUS = {"tiny": "skills"}  # the stream whose file has `corpus(seed, n)`
WINDOW = 20  # updates whose rows are sorted by length
SHOWN = 100  # updates between two points of the loss curve
TRIES = 8


@dataclass(frozen=True)
class Pretraining:
    """Settings.

    Parameters
        updates     optimizer steps [updates]
        batch_size  items per update [rows]
        lr          largest learning rate; linear warm-up over a twentieth, then cosine to 0 [1]
        threads     CPU threads [threads]
        seed        of weights and corpus
    """

    updates: Annotated[int, Range(min=1)] = 2400
    batch_size: Annotated[int, Range(min=1)] = 64
    lr: Annotated[float, Range(above=0)] = 2e-3
    threads: Annotated[int, Range(min=1)] = 2
    seed: Annotated[int, Range(min=0)] = 0


def pretrain(
    name: str, settings: Pretraining, target: Path, progress: Callable[[int, float], None]
) -> dict:
    """Train, write `target` (.safetensors, 16 bits) and its log beside it; returns the log.

    progress(updates, loss) is called every SHOWN updates. Raises UnknownName.
    """
    if name not in CORPUS:
        raise unknown("model that can be pretrained", name, CORPUS)
    torch.set_num_threads(settings.threads)
    seed_globals(settings.seed)
    started = time.perf_counter()
    entry = find("streams", CORPUS[name])
    model = build(name, (), {"pretrained": False})
    corpus = entry.load().__globals__["corpus"]
    items = corpus(settings.seed, settings.updates * settings.batch_size)
    x, y = encoded(items, model.tokenizer, "response")
    curve = _train(model, x, y, settings, progress)
    weights = {k: v.detach().half().contiguous() for k, v in model.lm.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, target)
    model.lm.load_state_dict({k: v.float() for k, v in weights.items()})
    log = {
        "model": name,
        "command": f"cl pretrain {name}",
        "settings": asdict(settings),
        "corpus": {"stream": CORPUS[name], "items": len(items), "tokens": int((x >= 0).sum())},
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": curve,
        "right": scores(model, entry.load()(seed=settings.seed)),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
    }
    folder.write(target.with_suffix(".json"), json.dumps(log, indent=1) + "\n")
    return log


def from_arguments(names: list[str], keys: dict[str, str]) -> None:
    """The command: check, train, show. Raises UsageError, UnknownName, BadValue."""
    if len(names) != 1:
        raise UsageError(f"cl pretrain takes the NAME of one model: {', '.join(CORPUS)}")
    if names[0] not in CORPUS:
        raise unknown("model that can be pretrained", names[0], CORPUS)
    keys = dict(keys)
    shipped = Path(__file__).parent / "models" / "weights" / f"{names[0]}.safetensors"
    target = Path(keys.pop("out", shipped))
    given = parse_all("", keys, params_of_schema(Pretraining), "cl pretrain")
    settings = replace(Pretraining(), **given)
    show = console()

    def progress(updates: int, loss: float) -> None:
        show.print(f"{updates}/{settings.updates} updates: loss {loss:.3f}")

    log = pretrain(names[0], settings, target, progress)
    for name, right in log["right"].items():
        show.print(f"{name:20} " + "  ".join(f"{k} {v:.3f}" for k, v in right.items()))
    show.print(f"{log['seconds']:.0f} s; weights {target}, log {target.with_suffix('.json')}")


def _train(model, x, y, settings: Pretraining, progress) -> list[list[float]]:
    """AdamW over the corpus once, in order; [[updates, mean loss]]."""
    optimizer = torch.optim.AdamW(model.parameters(), settings.lr, (0.9, 0.95), weight_decay=0.1)
    curve, total = [], 0.0
    model.train()
    for update, rows in enumerate(_alike(x, settings)):
        used = (x[rows] != NOTHING).any(0).nonzero()[:, 0]
        columns = slice(int(used[0]), int(used[-1]) + 1)
        ids, labels = x[rows][:, columns], y[rows][:, columns]
        optimizer.param_groups[0]["lr"] = rate(update, settings)
        logits = model(ids.clamp(min=0), ids != NOTHING)
        loss = token_cross_entropy(logits[:, :-1], labels[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (update + 1) % SHOWN == 0:
            curve.append([update + 1, round(total / SHOWN, 4)])
            progress(*curve[-1])
            total = 0.0
    return curve


def _alike(x: Tensor, settings: Pretraining) -> Iterator[Tensor]:
    """Rows of each update: of WINDOW updates' rows those of one length together, less padding."""
    rng = generator(settings.seed, "pretrain.order")
    size, n = settings.batch_size, WINDOW * settings.batch_size
    for start in range(0, len(x), n):
        length = (x[start : start + n] != NOTHING).sum(1)
        batches = (start + length.argsort(stable=True)).split(size)
        for k in torch.randperm(len(batches), generator=rng).tolist():
            yield batches[k]


def rate(update: int, settings: Pretraining) -> float:
    """Learning rate: linear warm-up over a twentieth of the updates, then a cosine to 0."""
    warm = max(1, settings.updates // 20)
    if update < warm:
        return settings.lr * (update + 1) / warm
    done = (update - warm) / max(1, settings.updates - warm)
    return settings.lr * (1 + math.cos(math.pi * done)) / 2


def scores(model, stream: TextStream) -> dict[str, dict[str, float]]:
    """Per eval: share right greedily, of TRIES samples, and of prompts with one right of them."""
    found = {}
    model.eval()
    for e in stream.evals:
        items = e.test.column("x").tolist()
        prompts = [model.tokenizer.prompt_ids(stream.items[k].prompt) for k in items]
        limits = [stream.max_new_tokens[stream.items[k].task] for k in items]
        rng = generator(0, f"pretrain.{e.name}")
        settings = {"max_new_tokens": limits, "rng": rng}
        greedy = sample(model, prompts, greedy=True, **settings)
        tried = sample(model, prompts, n=TRIES, **settings)
        one = _rewards(model, stream, items, greedy)
        many = _rewards(model, stream, [k for k in items for _ in range(TRIES)], tried)
        any_right = [max(many[k : k + TRIES]) for k in range(0, len(many), TRIES)]
        values = {"greedy": one, "pass@1": many, f"pass@{TRIES}": any_right}
        found[e.name] = {k: round(sum(v) / len(v), 4) for k, v in values.items()}
    return found


def _rewards(model, stream: TextStream, items: list[int], rollout) -> list[float]:
    texts = [model.tokenizer.decode(ids) for ids in rollout.completions()]
    return [float(r == 1) for r in stream.rewards(items, texts)]
