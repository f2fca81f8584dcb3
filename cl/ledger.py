"""What `cl reproduce` shows: progress, bars with measured values, the verdict."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

from joblib import cpu_count
from rich.markup import escape
from rich.table import Table

from cl.claims import Claim
from cl.config import Range, parse
from cl.display import Many, console
from cl.errors import BadValue, ClError
from cl.reproduce import reproduce
from cl.verdict import Judged, Judgement

NULL = {  # what the verdict on its bar says of a null control
    "reproduced": "effect shows",
    "differs": "no effect, as it must be",
    "inconclusive": "undecided: wide interval",
}
OWN = {
    "workers": Annotated[int, Range(min=1)] | None,
    "seeds": list[Annotated[int, Range(min=0)]] | None,
}


def settle(known: list[Claim], keys: dict[str, str], *, quick: bool, every: bool) -> int:
    """Run and show claims in turn; with `every` one that can't be run is not attempted.

    Returns the exit code: 1 if one could not be run. Raises ClError for a single one.
    """
    keys = dict(keys)
    out = Path(keys.pop("out", "runs"))
    workers, seeds = (parse(k, keys.pop(k, None), annotation) for k, annotation in OWN.items())
    code = 0
    for claim in known:
        try:
            _check_seeds(claim, seeds, quick)
            claim.check(keys)
            show = Shown(claim, workers)
            with closing(show):
                judgement, path = reproduce(
                    claim,
                    out=out,
                    workers=workers,
                    quick=quick,
                    seeds=seeds,
                    over=keys,
                    progress=show.progress,
                )
        except ClError as error:
            if not every:
                raise
            why = escape(f"{claim.name}: {error}")
            console().print(f"{why}\nverdict: not attempted\n", soft_wrap=True)
            code = 1
            continue
        show.judgement(judgement, path, keys)
    return code


class Shown:
    """One claim on the terminal."""

    def __init__(self, claim: Claim, workers: int | None = None):
        self.claim, self.out = claim, console()
        self.workers, self.many = workers or cpu_count(), None
        self.out.print(f"[bold]{claim.name}[/]  {escape(claim.summary)}", soft_wrap=True)
        self.out.print(f"paper     {escape(claim.paper)}", soft_wrap=True)
        self.out.print(f"claim     {escape(claim.claim)}", soft_wrap=True)
        self.out.print(f"reported  {escape(claim.reported)}", soft_wrap=True)
        arms = ", ".join(claim.arms)
        self.out.print(f"arms      {arms} on {claim.stream}, {len(claim.seeds)} seeds each\n")

    def progress(self, done: int, of: int, arm: str, seed: int, seconds: float) -> None:
        """A run has ended."""
        self.many = self.many or Many(of, self.workers)
        self.many.ended(f"{arm} seed {seed}", seconds)

    def close(self) -> None:
        """No more runs."""
        if self.many is not None:
            self.many.close()

    def judgement(self, judged: Judgement, path: Path, over: dict[str, str]) -> None:
        """Bars, arms, verdict. over: settings that are not the claim's own."""
        table = Table(title_justify="left", header_style="bold")
        table.add_column("what")
        table.add_column("measured (95 % CI)", justify="right", no_wrap=True)
        table.add_column("bar", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        _row(table, "primary", judged.primary)
        for bar in judged.bars:
            _row(table, "", bar)
        for bar in judged.controls:
            _row(table, "control", bar)
        null = judged.null
        _row(table, "null control", null, NULL[null.verdict])
        self.out.print(table)
        measure = self.claim.primary.measure.replace("_", " ")
        kind = "interquartile mean of " if self.claim.statistic == "iqm" else ""
        self.out.print(f"{kind}{measure} of each arm:")
        for arm, estimate in judged.arms.items():
            members = dict.fromkeys(judged.chosen.member.get(arm, {}).values())
            settings = " ".join(m.removeprefix(arm) for m in members)
            missed = ", unmatched" if arm in judged.chosen.unmatched else ""
            self.out.print(f"  {arm:24} {estimate}  {settings}{missed}".rstrip(), markup=False)
        self.out.print(f"\nall numbers  {path}", soft_wrap=True)
        if over:
            given = " ".join(f"{key}={value}" for key, value in over.items())
            self.out.print(escape(f"not the claim as written: {given}"), soft_wrap=True)
        if judged.reason:
            self.out.print(escape(judged.reason), soft_wrap=True)
        self.out.print(f"verdict: [bold]{judged.verdict}[/]\n")


def _row(table: Table, kind: str, judged: Judged, said: str | None = None) -> None:
    what = f"[bold]{kind}[/]: {escape(judged.bar.title)}" if kind else escape(judged.bar.title)
    why = f"\n[dim]{escape(judged.bar.why)}[/]" if judged.bar.why else ""
    bound = ("not " if said else "") + judged.bar.bound
    verdict = said or ("" if judged.verdict == "reported" else judged.verdict)
    table.add_row(what + why, escape(str(judged.estimate)), bound, verdict)


def _check_seeds(claim: Claim, seeds: list[int] | None, quick: bool) -> None:
    """Raises BadValue for seeds that can't be reported."""
    if seeds is None:
        return
    if not seeds or len(set(seeds)) < len(seeds):
        raise BadValue(f"seeds={','.join(map(str, seeds))} must name different seeds")
    used = sorted(set(seeds) & set(claim.calibrated_on))
    if used and not quick:
        raise BadValue(f"seed {used[0]} is one that settings of {claim.name} were chosen on")
