"""The README's table of claims, and the ledger it comes from.

    cl reproduce fetril     # leaves runs/reproduce/fetril/verdict.json
    python benchmarks/claims.py [--runs runs] [--write] [--reason TEXT]

`benchmarks/ledger.yaml` holds one line for every version of a claim (its experiment and bars, by
the hash of its file) that has been run in full: a changed bar is a new line with its reason, and
the old one stays. The table shows the last line of each claim; the status column of the README's
methods follows it.
"""

from __future__ import annotations

import argparse
import json
import re
from datetime import date
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
README, LEDGER = ROOT / "README.md", ROOT / "benchmarks" / "ledger.yaml"
HEAD = (
    "| claim | paper reports | primary bar | measured (95 % CI) | other bars | seeds | verdict |\n"
    "|---|---|---|---|---|---|---|"
)


def entry(found: dict, reason: str | None) -> dict:
    """A verdict as a line of the ledger."""

    def shown(bar: dict) -> dict:
        low, high = bar["interval"]
        text = f"{bar['mean']:.3f} [{low:.3f}, {high:.3f}]"
        return {"bar": f"{bar['title']} {bar['bound']}", "measured": text, "is": bar["verdict"]}

    line = {
        "claim": found["claim"],
        "digest": found["digest"],
        "date": date.today().isoformat(),
        "reported": found["reported"],
        "verdict": found["verdict"],
        "why": found["reason"],
        "primary": shown(found["primary"]),
        "bars": [shown(bar) for bar in found["bars"]],
        "controls": [shown(bar) for bar in found["controls"]],
        "null_control": shown(found["null"]),
        "seeds": found["seeds"],
        "versions": found["versions"],
        "machine": f"{found['device']}, {found['cpu']}",
    }
    return line | ({"changed_because": reason} if reason else {})


def taken_in(ledger: list[dict], found: dict, reason: str | None) -> list[dict]:
    """The ledger with a verdict: in place of its own version's line, else as a new one."""
    name = found["claim"]
    if found["changed"]:
        raise SystemExit(f"{name} was run with {found['changed']}: that is another experiment")
    known = [line for line in ledger if line["claim"] == name]
    same = [k for k, line in enumerate(ledger) if line["digest"] == found["digest"]]
    if same:
        kept = ledger[same[0]].get("changed_because")
        return [*ledger[: same[0]], entry(found, kept), *ledger[same[0] + 1 :]]
    if known and not reason:
        raise SystemExit(f"{name} has changed since {known[-1]['date']}: give --reason TEXT")
    return [*ledger, entry(found, reason if known else None)]


def table(ledger: list[dict]) -> str:
    """The last line of every claim, as Markdown."""
    last = {line["claim"]: line for line in ledger}
    rows = [HEAD]
    for name, line in sorted(last.items()):
        counts = [bar["is"] for bar in line["bars"]]
        kinds = [k for k in ("reproduced", "differs", "inconclusive") if k in counts]
        others = ", ".join(f"{counts.count(k)} {k}" for k in kinds) or "–"
        cells = [f"`{name}`", line["reported"], line["primary"]["bar"], line["primary"]["measured"]]
        verdict = line["verdict"] + (f" ({line['why']})" if line["why"] else "")
        rows.append("| " + " | ".join([*cells, others, str(len(line["seeds"])), verdict]) + " |")
    return "\n".join(rows)


def written(readme: str, ledger: list[dict]) -> str:
    """The README with table and statuses."""
    block = f"<!-- claims -->\n{table(ledger)}\n<!-- /claims -->"
    readme = re.sub(r"<!-- claims -->.*?<!-- /claims -->", lambda _: block, readme, flags=re.S)
    for line in ledger:
        row = rf"(\| `{line['claim']}` \|[^\n]*\| )[^|\n]*( \|\n)"
        methods = readme.index("## Methods")
        head, tail = readme[:methods], readme[methods:]
        readme = head + re.sub(row, lambda m, v=line["verdict"]: m[1] + v + m[2], tail)
    return readme


def main() -> None:
    """Take verdicts into the ledger, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", default=ROOT / "runs", type=Path)
    parser.add_argument("--reason", help="why a claim was changed since its last line")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    ledger = yaml.safe_load(LEDGER.read_text(encoding="utf-8")) if LEDGER.is_file() else []
    for path in sorted(arguments.runs.glob("reproduce/*/verdict.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["verdict"] != "not attempted":
            ledger = taken_in(ledger, found, arguments.reason)
    print(table(ledger))
    if arguments.write:
        text = yaml.safe_dump(ledger, sort_keys=False, allow_unicode=True, width=96)
        LEDGER.write_text(f"# written by benchmarks/claims.py\n{text}", encoding="utf-8")
        README.write_text(written(README.read_text(encoding="utf-8"), ledger), encoding="utf-8")


if __name__ == "__main__":
    main()
