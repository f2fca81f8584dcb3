"""Scenario operators: from one stream to another, whatever its data.

Each takes a stream and returns a new one over the same rows; they compose, and `apply` puts the
ones that are asked for in order. Labels stay positions in the order of arrival, so an operator
that moves a class's first appearance also renames it.

    imbalance   long-tailed training data (Liu et al. 2022, arXiv:2210.00266)
    shift       domain-incremental: all classes each time, under another transformation
    blurry      i-Blurry: some classes appear everywhere (Koh et al. 2022, arXiv:2110.10031)
    cycles      recurring: the experiences return, with the same data or new parts of it
    task_labels task-incremental: the label is given, answers are among the task's classes
    task_free   the sequence cut into equal pieces, whatever the boundaries
    first       the beginning of the stream alone
    online      one pass, every batch answered before it is learned
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from cl.data import Table
from cl.errors import BadValue, DataError
from cl.seeding import generator
from cl.settings import Scenario
from cl.stream import Eval, Experience, Stream


def apply(stream: Stream, keys: Scenario, seed: int) -> Stream:
    """The stream with the operators that `keys` asks for. Raises BadValue on a contradiction."""
    _check(stream, keys)
    if keys.imbalance > 1:
        stream = imbalance(stream, keys.imbalance, keys.imbalance_order, seed)
    if keys.shift is not None:
        from cl.shifts import shift

        stream = shift(stream, keys.shift, keys.domains, keys.shift_max, seed)
    if keys.blurry:
        stream = blurry(stream, keys.blurry, keys.blurry_level, seed)
    if keys.cycles > 1:
        stream = cycles(stream, keys.cycles, keys.cycle_data, seed)
    if keys.task_labels:
        stream = task_labels(stream)
    if keys.task_free is not None:
        stream = task_free(stream, keys.task_free, keys.smooth, seed)
    if keys.first is not None:
        stream = first(stream, keys.first)
    return online(stream) if keys.online else stream


NEEDED = {
    "imbalance_order": "imbalance",
    "domains": "shift",
    "shift_max": "shift",
    "blurry_level": "blurry",
    "cycle_data": "cycles",
    "smooth": "task_free",
}


def _check(stream: Stream, keys: Scenario) -> None:
    plain = Scenario()
    classless = [e.name for e in stream.experiences if not e.classes]
    for field in fields(Scenario) if classless else ():
        fine = field.name in ("cycles", "cycle_data", "first")
        fine = fine or (field.name == "task_labels" and stream.domain == "rl")
        if not fine and getattr(keys, field.name) != getattr(plain, field.name):
            raise BadValue(
                f"stream.{field.name} acts on classes, {stream.name} has none; "
                "of the scenario operators it takes cycles, cycle_data and first"
            )
    for key, switch in NEEDED.items():
        idle = getattr(keys, switch) == getattr(plain, switch)
        if idle and getattr(keys, key) != getattr(plain, key):
            raise BadValue(f"stream.{key} has no meaning without stream.{switch}")
    if keys.task_labels and (keys.task_free is not None or keys.blurry):
        other = "task_free" if keys.task_free is not None else "blurry"
        raise BadValue(f"stream.task_labels and stream.{other} contradict each other")
    if keys.blurry and (keys.shift is not None or keys.cycles > 1):
        other = "shift" if keys.shift is not None else "cycles"
        raise BadValue(f"stream.blurry needs each class at home in one experience, not {other}")
    homes = [c for e in stream.experiences for c in e.classes]
    if keys.shift is not None and len(set(homes)) < len(homes):
        raise BadValue(f"stream.shift: classes of {stream.name} come in several experiences")
    if keys.shift is not None and any(ev.kind != "stream" for ev in stream.evals):
        raise BadValue(f"stream.shift: {stream.name} has evals that no experience teaches")
    if keys.blurry and len(set(homes)) < len(homes):
        raise BadValue(f"stream.blurry: classes of {stream.name} come in several experiences")


def imbalance(stream: Stream, ratio: float, order: str, seed: int) -> Stream:
    """Training rows thinned to a long tail: of class rank r of C, n ratio^(-r / (C - 1)) stay.

    ratio: of the largest class to the smallest; order: `ordered`, the first class to arrive is
    the largest, or `shuffled` by seed. At least one row of each class stays.
    """
    n = stream.n_classes
    rank = torch.arange(n)
    if order == "shuffled":
        rank = torch.randperm(n, generator=generator(seed, "imbalance.order"))
    share = float(ratio) ** (-rank.double() / max(1, n - 1))

    def thin(e: Experience) -> Experience:
        y, kept = e.train.column("y").cpu(), []
        for c in e.classes:
            rows = (y == c).nonzero()[:, 0]
            keep = max(1, round(len(rows) * share[c].item()))
            rng = generator(seed, f"imbalance/{e.index}/{stream.class_names[c]}")
            kept.append(rows[torch.randperm(len(rows), generator=rng)[:keep]])
        chosen = torch.cat(kept).sort().values.to(e.train.device)
        return replace(e, train=e.train.select(chosen))

    return replace(stream, experiences=[thin(e) for e in stream.experiences])


def blurry(stream: Stream, share: float, level: float, seed: int) -> Stream:
    """i-Blurry: of `share` of the classes, `level` of the training rows go to other experiences.

    The rows that leave home are dealt evenly over all others. An eval counts as learned at the
    home of its classes. share and level are N_blurry = 1 - N/100 and M/100 of the paper.
    """
    n, n_experiences = stream.n_classes, len(stream)
    if n_experiences < 2:
        raise BadValue("stream.blurry needs 2 or more experiences")
    rng = generator(seed, "blurry")
    chosen = set(torch.randperm(n, generator=rng)[: round(share * n)].tolist())
    if not chosen:
        raise BadValue(f"stream.blurry={share:g} of {n} classes is less than one class")
    parts: list[list[Table]] = [[] for _ in stream.experiences]
    for home, e in enumerate(stream.experiences):
        others = [i for i in range(n_experiences) if i != home]
        y = e.train.column("y").cpu()
        for c in e.classes:
            rows = (y == c).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=rng)]
            leave = min(round(level * len(rows)), len(rows) - 1) if c in chosen else 0
            parts[home].append(e.train.select(rows[leave:].sort().values))
            for k, i in enumerate(others):
                away = rows[:leave][k :: len(others)]
                if len(away):
                    parts[i].append(e.train.select(away))
    experiences = [
        replace(e, train=Table.concat(parts[i])) for i, e in enumerate(stream.experiences)
    ]
    return by_arrival(replace(stream, experiences=experiences))


def cycles(stream: Stream, n: int, data: str, seed: int) -> Stream:
    """The experiences n times over, each visit with all its training rows or a part of its own.

    data: `same` rows at every visit, or disjoint `parts` of every class. Raises DataError where a
    class has fewer rows than visits.
    """
    experiences = []
    for visit in range(n):
        for e in stream.experiences:
            train = e.train if data == "same" else _part(stream, e, visit, n, seed)
            name = f"{len(experiences):02d}_{e.name.partition('_')[2]}"
            experiences.append(replace(e, index=len(experiences), name=name, train=train))
    size = len(stream)
    evals = [
        replace(ev, learned_at=tuple(v * size + i for v in range(n) for i in ev.learned_at))
        for ev in stream.evals
    ]
    return replace(stream, experiences=experiences, evals=evals)


def _part(stream: Stream, e: Experience, visit: int, n: int, seed: int) -> Table:
    y, kept = e.train.column("y").cpu(), []
    groups = {stream.class_names[c]: (y == c).nonzero()[:, 0] for c in e.classes}
    for name, rows in (groups or {e.name: torch.arange(len(y))}).items():
        if len(rows) < n:
            raise DataError(
                f"stream.cycles={n} with cycle_data=parts: {'class' if groups else 'task'} "
                f"{name!r} has {len(rows)} training rows; use cycle_data=same"
            )
        rng = generator(seed, f"cycles/{e.index}/{name}")
        kept.append(rows[torch.randperm(len(rows), generator=rng)][visit::n])
    return e.train.select(torch.cat(kept).sort().values)


def task_labels(stream: Stream) -> Stream:
    """Task-incremental: every eval is a task whose label is given in training and at inference.

    Classes that several tasks share are set apart (a head per task): class c of task t becomes a
    class of its own. Raises BadValue where an experience belongs to no task or to several.
    """
    if stream.domain == "rl":
        return stream.labelled()
    tasks = [_task_of(stream, e) for e in stream.experiences]
    label = {j: k for k, j in enumerate(dict.fromkeys(tasks))}  # in order of arrival
    rename, names = _apart(stream, list(label))
    pools = _Labels()
    for j, ev in enumerate(stream.evals):
        if j not in label:
            raise BadValue(f"stream.task_labels: eval {ev.name} is learned in no experience")
        pools.write(ev.test, rename[j], label[j])
        pools.write(ev.val, rename[j], label[j])
    for e, j in zip(stream.experiences, tasks, strict=True):
        pools.write(e.train, rename[j], label[j])
        pools.write(e.val, rename[j], label[j])

    def told(item: Experience | Eval, j: int) -> dict:
        classes = tuple(rename[j][c] for c in item.classes)
        name, table = ("train", item.train) if isinstance(item, Experience) else ("test", item.test)
        views = {name: pools.view(table), "val": pools.view(item.val)}
        return {"classes": classes, "task_label": label[j], **views}

    experiences = [replace(e, **told(e, j)) for e, j in zip(stream.experiences, tasks, strict=True)]
    evals = [
        replace(ev, chance=stream.chance(ev.test, ev.classes), **told(ev, j))
        for j, ev in enumerate(stream.evals)
    ]
    return replace(
        stream,
        experiences=experiences,
        evals=evals,
        class_names=names,
        accepts=_accepts(stream, rename, len(names)),
        gives=stream.gives | {"task_id_train", "task_id_test"},
        jointly_solvable=True,
    )


def _apart(stream: Stream, order: list[int]) -> tuple[dict[int, dict[int, int]], list[str]]:
    """({task: {old class: new class}}, names of the classes); as they are if none is shared."""
    classes = [c for j in order for c in stream.evals[j].classes]
    if len(set(classes)) == len(classes):
        return {j: {c: c for c in stream.evals[j].classes} for j in order}, stream.class_names
    names, rename = [], {}
    for k, j in enumerate(order):
        own = stream.evals[j].classes
        rename[j] = {c: len(names) + i for i, c in enumerate(own)}
        names += [f"{k}:{stream.class_names[c]}" for c in own]
    return rename, names


def _accepts(stream: Stream, rename: dict[int, dict[int, int]], n: int) -> Tensor | None:
    """What the n new classes are right answers to: what the old ones were."""
    was = {new: old for own in rename.values() for old, new in own.items()}
    columns = [was.get(c, c) for c in range(n)]
    return None if stream.accepts is None else stream.accepts[:, columns]


def _task_of(stream: Stream, e: Experience) -> int:
    owners = [j for j, ev in enumerate(stream.evals) if e.index in ev.learned_at]
    if len(owners) != 1:
        raise BadValue(
            f"stream.task_labels: experience {e.name} teaches {len(owners)} evals, not one"
        )
    return owners[0]


class _Labels:
    """New columns "y" and "task_label" for the pools that a stream's tables are views of."""

    def __init__(self):
        self.pools: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}  # by id of the old labels

    def write(self, table: Table | None, rename: dict[int, int], label: int) -> None:
        """Give the rows of a view new classes and a task label."""
        if table is None:
            return
        old, rows = table.columns["y"], table.positions()
        if id(old) not in self.pools:
            self.pools[id(old)] = old, {"y": old.clone(), "task_label": torch.full_like(old, -1)}
        columns = self.pools[id(old)][1]
        held = columns["task_label"][rows]
        if bool(((held != -1) & (held != label)).any()):
            raise BadValue("stream.task_labels: two tasks share data rows, so no label fits both")
        rank = torch.arange(1 + max(int(old.max()), *rename))
        rank[list(rename)] = torch.tensor(list(rename.values()))
        columns["y"][rows] = rank.to(old.device)[old[rows]]
        columns["task_label"][rows] = label

    def view(self, table: Table | None) -> Table | None:
        """The same rows with their new columns."""
        if table is None:
            return None
        return Table(table.columns | self.pools[id(table.columns["y"])][1], table.index)


def task_free(stream: Stream, n_pieces: int, smooth: float, seed: int) -> Stream:
    """The training rows as one sequence, cut into equal pieces that tell nothing of the tasks.

    Rows of an experience come in random order; with `smooth` s > 0 a row at place t of T draws
    its place from U(t - w, t + w), w = s/2 of the mean experience's length, so that neighbours
    mix linearly over each boundary. An eval counts as learned in every piece that holds rows of
    its classes, from the first piece on by which all of them have come.
    """
    rng = generator(seed, "task_free")
    order, start = [], 0
    for e in stream.experiences:
        order.append(start + torch.randperm(len(e.train), generator=rng))
        start += len(e.train)
    if n_pieces > start:
        raise BadValue(f"stream.task_free={n_pieces}: the sequence has {start} rows only")
    sequence = Table.concat([e.train for e in stream.experiences]).select(
        torch.cat(order).to(stream.experiences[0].train.device)
    )
    if smooth:
        width = smooth * start / len(stream)
        drawn = torch.rand(start, generator=rng, dtype=torch.float64)
        places = torch.arange(start) + width * (drawn - 0.5)
        sequence = sequence.select(places.argsort().to(sequence.device))
    evals_of: list[list[int]] = [[] for _ in stream.evals]
    seen: set[int] = set()
    experiences = []
    for k, rows in enumerate(torch.arange(start).tensor_split(n_pieces)):
        train = sequence.select(rows.to(sequence.device))
        classes = tuple(train.column("y").unique().tolist())
        seen |= set(classes)
        for j, ev in enumerate(stream.evals):
            if set(ev.classes) <= seen and set(ev.classes) & set(classes):
                evals_of[j].append(k)
        experiences.append(Experience(k, f"{k:02d}_piece", classes, train))
    evals = [
        replace(ev, learned_at=tuple(at)) for ev, at in zip(stream.evals, evals_of, strict=True)
    ]
    return by_arrival(replace(stream, experiences=experiences, evals=evals, gives=frozenset()))


def first(stream: Stream, n: int) -> Stream:
    """The first n experiences, the evals that they teach, and those that none teaches."""
    if n > len(stream):
        raise BadValue(f"stream.first={n}: {stream.name} has {len(stream)} experiences")
    evals = [
        replace(ev, learned_at=tuple(i for i in ev.learned_at if i < n))
        for ev in stream.evals
        if not ev.learned_at or min(ev.learned_at) < n
    ]
    return replace(stream, experiences=stream.experiences[:n], evals=evals)


def online(stream: Stream) -> Stream:
    """One pass, every arriving batch scored before it is learned (prequential accuracy)."""
    return replace(stream, online=True, defaults=stream.defaults | {"train.epochs": 1})


def by_arrival(stream: Stream) -> Stream:
    """Classes renamed to the order in which training rows of them first come; evals follow.

    The classes that an experience lists are those it has training rows of.
    """
    present = [e.train.column("y").unique().tolist() for e in stream.experiences]
    arrived = list(dict.fromkeys(c for classes in present for c in classes))
    arrived += [c for c in range(stream.n_classes) if c not in arrived]
    rank = torch.empty(stream.n_classes, dtype=torch.int64)
    rank[torch.tensor(arrived)] = torch.arange(len(arrived))
    labels: dict[int, tuple[Tensor, Tensor]] = {}

    def moved(table: Table | None) -> Table | None:
        if table is None:
            return None
        old = table.columns["y"]
        if id(old) not in labels:
            labels[id(old)] = old, rank.to(old.device)[old]
        return Table(table.columns | {"y": labels[id(old)][1]}, table.index)

    def names(classes) -> tuple[int, ...]:
        return tuple(sorted(rank[list(classes)].tolist()))

    experiences = [
        replace(e, classes=names(own), train=moved(e.train), val=moved(e.val))
        for e, own in zip(stream.experiences, present, strict=True)
    ]
    seen = torch.tensor([0] + [max(e.classes) + 1 for e in experiences]).cummax(0).values[1:]
    evals = []
    for ev in stream.evals:
        classes = names(ev.classes)
        known = arrived[: int(seen[min(ev.learned_at)])] if ev.learned_at else []
        chance = stream.chance(ev.test, known) if known else ev.chance
        evals.append(
            replace(ev, classes=classes, test=moved(ev.test), val=moved(ev.val), chance=chance)
        )
    return replace(
        stream,
        experiences=experiences,
        evals=evals,
        class_names=[stream.class_names[c] for c in arrived],
        accepts=None if stream.accepts is None else stream.accepts[:, arrived],
    )
