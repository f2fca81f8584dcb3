"""What a person sees: a progress bar while a run goes on, its table when it is done."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cl.folder import label, title

if TYPE_CHECKING:
    from cl.loop import Loop
    from cl.recipe import Recipe

WIDE = 10  # evals that the full accuracy matrix is shown for
NARROW = 9  # characters of an eval's name that fit above its column
WIDTH = 120  # columns where the output is no terminal


def console(file=None) -> Console:
    """The console of the command line; wide enough for tables where there is no terminal."""
    out = Console(file=file, highlight=False, soft_wrap=False)
    return out if out.is_terminal else Console(file=file, width=WIDTH, highlight=False)


class Display:
    """A progress bar on a terminal; one line per experience where the output is no terminal."""

    def __init__(self, title: str, stream_length: int, updates: list[int]):
        self.out = console(sys.stderr)
        self.out.print(title, soft_wrap=True)
        self.updates, self.n = updates, stream_length
        self.before = self.index = 0
        self.next_tick = 0.0
        self.mean_loss: float | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f} updates"),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.out,
            transient=True,
            disable=not self.out.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=max(1, sum(updates)), loss="")

    def begin(self, loop: Loop) -> None:
        """Training begins here, or goes on."""
        self.before = loop.clock.train_iterations
        self.before -= loop.clock.train_exp_iterations if loop.inside else 0
        self.bar.start()

    def tick(self, loop: Loop) -> None:
        """After every update; draws at most ten times a second."""
        now = time.perf_counter()
        if now < self.next_tick:
            return
        self.next_tick = now + 0.1
        done = self.before + loop.clock.train_exp_iterations
        left = loop.exp_updates - loop.clock.train_exp_iterations
        rest = sum(self.updates[loop.experience.index + 1 :])
        loss = "" if self.mean_loss is None else f"loss {self.mean_loss:.3f}"
        title = f"experience {loop.experience.index + 1}/{self.n}"
        self.bar.update(
            self.task, completed=done, total=done + left + rest, description=title, loss=loss
        )

    def loss(self, value: float) -> None:
        """The latest mean loss."""
        self.mean_loss = value

    def experience(self, loop: Loop, results: dict) -> None:
        """An experience has been learned and scored."""
        self.before += loop.clock.train_exp_iterations
        i = loop.experience.index
        if not self.out.is_terminal:
            seen = _number(results["metrics"]["seen_accuracy"][i])
            self.out.print(f"experience {i + 1}/{self.n} {loop.experience.name}: seen {seen}")

    def close(self) -> None:
        """Remove the bar."""
        self.bar.stop()


class Many:
    """Progress of many runs: a bar with the time left, or a line for each without a terminal."""

    def __init__(self, total: int, workers: int):
        self.out = console(sys.stderr)
        self.total, self.workers = total, workers
        self.done, self.failed = 0, 0
        self.seconds: list[float] = []  # of runs that were not there before
        self.bar = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f} runs"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[now]}"),
            console=self.out,
            transient=True,
            disable=not self.out.is_terminal,
        )
        self.task = self.bar.add_task("runs", total=max(1, total), left="", now="")
        self.bar.start()

    def ended(self, name: str, seconds: float, error: str | None = None) -> None:
        """A run has ended, well or not."""
        self.done += 1
        self.failed += error is not None
        self.seconds += [seconds] if seconds else []
        mean = sum(self.seconds) / max(1, len(self.seconds))
        rest = mean * (self.total - self.done) / self.workers
        left = f"{duration(rest)} left" + (f", {self.failed} failed" if self.failed else "")
        self.bar.update(self.task, completed=self.done, total=self.total, left=left)
        took = f"{seconds:.1f} s" if error is None else f"failed, {error}"
        if error is not None or not self.out.is_terminal:
            line = f"[{self.done}/{self.total}] {name}: {took}"
            then = f", {left}" if self.done < self.total and error is None else ""
            self.out.print(line + then, markup=False, soft_wrap=True)

    def running(self, names: list[str]) -> None:
        """What is being run."""
        self.bar.update(self.task, now=f"running {_cut(', '.join(names), 60)}" if names else "")

    def close(self) -> None:
        """Remove the bar."""
        self.bar.stop()


def duration(seconds: float) -> str:
    """`0:35`, `12:05`, `3:12:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def header(recipe: Recipe) -> str:
    """What is run, on what."""
    threads = f"{recipe.threads} thread{'s' * (recipe.threads != 1)}"
    names = label(recipe.stream), label(recipe.strategy)
    parts = (*names, recipe.model, f"seed {recipe.seed}", recipe.device)
    return " · ".join([*parts, threads])


def show_results(results: dict, folder: str, out_folder: str) -> None:
    """The table of a run and where its curves are."""
    out = console()
    m, cost = results["metrics"], results["cost"]
    what = "score" if results["domain"] == "rl" else "accuracy"
    out.print()
    out.print(_table(results, out.width))
    finals = [
        (f"average {what}", _number(m["average_accuracy"])),
        (f"average incremental {what}", _number(m["average_incremental_accuracy"])),
        ("forgetting", _number(m["forgetting"])),
        ("backward transfer", _number(m["backward_transfer"])),
    ]
    if m["prequential_accuracy"] is not None:
        finals += [
            ("prequential accuracy", _number(m["prequential_accuracy"])),
            ("area", _number(m["prequential_area"])),
        ]
    if m["min_acc"] is not None:
        finals += [("min-ACC", _number(m["min_acc"])), ("WC-ACC", _number(m["wc_acc"]))]
    if m["anytime_accuracy"] is not None:
        finals.append((f"anytime {what}", _number(m["anytime_accuracy"])))
    out.print("  ".join(f"{name} [bold]{value}[/]" for name, value in finals))
    if results["domain"] == "rl":
        out.print(_of_policies(m))
    if m.get("held_out"):
        now, before = _number(m["held_out"][-1]), _number(m["held_out_before"])
        out.print(f"held out [bold]{now}[/], before training {before}")
    out.print(_costs(cost))
    e = results.get("expected")
    if e is not None:
        out.print(
            f"published {e['metric'].replace('_', ' ')} {e['value']} ± {e['tolerance']} "
            f"({e['source']}): measured {_number(e['measured'])}, "
            + ("within" if e["within"] else "[bold]outside[/]")
        )
    out.print()
    out.print(f"results  {folder}/results.json", soft_wrap=True)
    out.print(f"curves   tensorboard --logdir {out_folder}", soft_wrap=True)


def _costs(cost: dict) -> str:
    """What it took."""
    more = {"tokens_seen": "tokens", "env_steps": "environment steps"}
    counted = [f"{cost[key]:,} {name}, " for key, name in more.items() if cost.get(key)]
    return (
        f"{cost['train_seconds']:.1f} s training, {cost['eval_seconds']:.1f} s evaluation, "
        f"{cost['updates']:,} updates, {cost['samples_seen']:,} samples seen, {''.join(counted)}"
        f"{bytes_text(cost['stored_bytes'])} stored between experiences"
    )


def _of_policies(m: dict) -> str:
    """Continual World's three numbers."""
    named = {
        "average performance": m["cw_average_performance"],
        "forgetting": m["cw_forgetting"],
        "forward transfer": m["cw_forward_transfer"],
    }
    shown = "  ".join(f"{name} [bold]{_number(value)}[/]" for name, value in named.items())
    return f"Continual World: {shown}"


def _table(results: dict, width: int) -> Table:
    m, evals, n = results["metrics"], results["evals"], len(results["experiences"])
    score = results["score"].replace("_", " ")
    table = Table(
        title=f"{title(results)}: test {score}",
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    table.add_column("after learning", no_wrap=True)
    names = [_short(e["name"]) for e in evals]
    if any(len(name) > NARROW for name in names):
        names = [f"eval {j}" for j in range(len(evals))]
    longest = max(len(_cut(_short(e["name"]))) for e in results["experiences"])
    curves = {"new": "plasticity", "past": "past_accuracy", "seen": "seen_accuracy"}
    curves |= {"stability": "stability"} | ({"held out": "held_out"} if m.get("held_out") else {})
    needed = (
        max(14, longest + 3) + 11 * len(curves) + 1 + sum(max(5, len(name)) + 3 for name in names)
    )
    wide = len(evals) <= WIDE and needed <= width  # else curves only: digits are never cut
    for name in names if wide else []:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for name in curves:
        table.add_column(name, justify="right", style="cyan", no_wrap=True)
    for i in range(len(results["R"])):
        cells = [_number(v, blank="·") for v in results["R"][i]] if wide else []
        cells += [_number(m[name][i]) for name in curves.values()]
        if wide or n <= 30 or i % -(-n // 30) == 0 or i == n - 1:
            name = _short(results["experiences"][i]["name"])
            table.add_row(Text(f"{i} {_cut(name)}"), *cells)
    return table


def _short(name: str) -> str:
    return name.partition("_")[2] or name


def _cut(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _number(value: float | None, blank: str = "–") -> str:
    return blank if value is None else f"{value:.3f}"


def bytes_text(n: float) -> str:
    """A size for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if n < 1024:
            return f"{n:,.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"
