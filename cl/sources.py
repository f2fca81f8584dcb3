"""The code that a run's numbers come from, as a hash: another hash, another run.

What only shows or compares numbers does not count.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from cl.registry import find

ROOT = Path(__file__).parent
SHOWS = {
    *("board.py", "check.py", "claims.py", "cli.py", "display.py", "document.py", "measures.py"),
    *("grids.py", "ledger.py", "reproduce.py", "sources.py", "statistics.py", "verdict.py"),
    *("commands.py", "fleet.py", "identity.py", "sweeps.py", "tuning.py"),
    *("comparison", "schema.py"),
}


def source_hash(stream: str | None, strategy: str, others: tuple[Path, ...] = ()) -> str:
    """Eight characters over the sources of cl, of the stream and of the strategies `a+b`.

    stream: None for a Python object, whose sources are the caller's; others: of further plug-ins.
    """
    files = {find("strategies", s).path for s in strategy.split("+")}
    files |= {path for path in others if ROOT not in path.parents}
    if stream is not None:
        path = find("streams", stream).path
        files |= {path, *path.parent.glob("_*.py")}
    own = hashlib.sha256(b"".join(sorted(path.read_bytes() for path in files))).hexdigest()
    return hashlib.sha256((_of_cl() + own).encode()).hexdigest()[:8]


@cache
def _of_cl() -> str:
    paths = sorted(p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] not in SHOWS)
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
