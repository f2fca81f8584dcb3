"""What benchmarks share: where their tables go."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def put(name: str, text: str) -> None:
    """Replace what stands between README's markers of that name. Raises SystemExit."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    readme = README.read_text(encoding="utf-8")
    head, found, rest = readme.partition(start)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{README}: no place for this table, {start} ... {end}")
    README.write_text(f"{head}{start}\n{text}\n{end}{tail}", encoding="utf-8")
