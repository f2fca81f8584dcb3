"""One HTML page: tables that sort at a click, pictures inline, nothing from elsewhere.

It follows the reader's light or dark scheme: text and background of the pictures take the page's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from cl.comparison.labels import INK, PAPER
from cl.comparison.tables import NONE, Cells, is_text

STYLE = """
:root{color-scheme:light dark;--ink:#1a1b1c;--paper:#fdfefd;--faint:#5d6166;--line:#d5d8db;
--head:#eff1f3}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ea;--paper:#17191b;--faint:#a3a9af;
--line:#3a3f44;--head:#22262a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem 1rem 3rem;max-width:76rem;background:var(--paper);
color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.25rem;margin:2.4rem 0 .4rem;
border-top:1px solid var(--line);padding-top:1.2rem}h3{font-size:1rem;margin:1.6rem 0 .3rem}
p,li{max-width:62rem}.small,figcaption{color:var(--faint);font-size:.86rem}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:separate;border-spacing:0;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{background:var(--head);vertical-align:bottom;white-space:normal;min-width:4.5rem}
th button{all:unset;cursor:pointer;font-weight:600}th button:focus-visible{outline:2px solid}
th[aria-sort=ascending] button::after{content:" ▲"}
th[aria-sort=descending] button::after{content:" ▼"}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
th:first-child{background:var(--head)}.text{text-align:left}
tr.base td:first-child{font-weight:600}
figure{margin:1.4rem 0}figure svg{display:block;width:100%;height:auto;min-width:38rem}
ul{padding-left:1.2rem;margin:.3rem 0}nav a{margin-right:1rem}a{color:inherit}
"""
SCRIPT = """
const units={KiB:1024,MiB:1048576,GiB:1073741824};
const value=t=>{const m=/^<?(-?[\\d.,]+)(?: (\\w+))?/.exec(t);
return m?parseFloat(m[1].replace(/,/g,''))*(units[m[2]]||1):null};
document.querySelectorAll('th button').forEach(b=>b.addEventListener('click',()=>{
const th=b.parentNode,k=th.cellIndex,body=th.closest('table').tBodies[0];
const up=th.getAttribute('aria-sort')==='descending';
th.parentNode.querySelectorAll('th').forEach(x=>x.removeAttribute('aria-sort'));
th.setAttribute('aria-sort',up?'ascending':'descending');
[...body.rows].sort((p,q)=>{const s=p.cells[k].textContent,t=q.cells[k].textContent;
const a=value(s),b=value(t);
if(a===null&&b===null)return(up?1:-1)*s.localeCompare(t);
if(a===null)return 1;if(b===null)return -1;return(up?1:-1)*(a-b)})
.forEach(r=>body.appendChild(r))}));
"""


@dataclass(frozen=True)
class Drawn:
    """A picture as SVG, whose ids no other picture has."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Part:
    """A section as it stands on the page; lines stand under its first table."""

    title: str
    scores: Cells
    baseline: str
    footnotes: list[str]
    methods: list[str]
    legend: list[str]
    tables: list[Cells]
    pictures: list[Drawn]


def page(title: str, lead: Sequence[str], notes: Sequence[str], parts: Sequence[Part]) -> str:
    """The whole document."""
    body = [f"<h1>{escape(title)}</h1>"]
    body += [f'<p class="small">{escape(line)}</p>' for line in lead]
    if len(parts) > 1:
        links = (f'<a href="#s{k}">{escape(part.title)}</a>' for k, part in enumerate(parts))
        body.append(f"<nav>{''.join(links)}</nav>")
    if notes:
        body.append(f"<h3>To be known first</h3>{_list(notes)}")
    for k, part in enumerate(parts):
        body += _section(k, part)
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    icon = '<link rel="icon" href="data:,">'  # or the browser asks for one
    head = f"{meta}{icon}<title>{escape(title)}</title><style>{STYLE}</style>"
    end = f"<script>{SCRIPT}</script>"
    lines = "\n".join([f'<html lang="en"><head>{head}</head><body>', *body])
    return f"<!doctype html>\n{lines}\n{end}</body></html>\n"


def _section(k: int, part: Part) -> list[str]:
    lines = [f'<h2 id="s{k}">{escape(part.title)}</h2>']
    lines.append(_table(part.scores, part.baseline, titled=False))
    if part.footnotes:
        lines.append(f'<div class="small">{NONE} undefined{_list(part.footnotes)}</div>')
    lines += [f'<p class="small">{escape(line)}</p>' for line in part.methods]
    summary = "<summary>What the columns mean</summary>"
    lines.append(f'<details class="small">{summary}{_list(part.legend)}</details>')
    lines += [_table(cells, part.baseline) for cells in part.tables]
    for picture in part.pictures:
        lines.append(
            f'<figure><h3>{escape(picture.title)}</h3><div class="wide">{inline(picture)}</div>'
            f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        )
    return lines


def inline(picture: Drawn) -> str:
    """A picture in the page's colours."""
    text = picture.svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    label = escape(f"{picture.title}. {picture.caption}", quote=True)
    size = re.search(r'<svg[^>]*?viewBox="0 0 ([\d.]+)', text)
    width = f"max-width:{float(size[1]) * 96 / 72:.0f}px" if size else ""
    start = re.sub(r' (?:width|height)="[^"]*"', "", text[: text.index(">") + 1])
    start = start.replace("<svg", f'<svg role="img" aria-label="{label}" style="{width}"', 1)
    return start + text[text.index(">") + 1 :]


def _table(cells: Cells, baseline: str, titled: bool = True) -> str:
    kinds = [' class="text"' if is_text(cells, k) else "" for k in range(len(cells.head))]
    heads = "".join(
        f"<th{kind}><button>{escape(word)}</button></th>"
        for word, kind in zip(cells.head, kinds, strict=True)
    )
    rows = []
    for row in cells.rows:
        base = ' class="base"' if row[0] == baseline else ""
        words = (f"<td{k}>{escape(word)}</td>" for word, k in zip(row, kinds, strict=True))
        rows.append(f"<tr{base}>{''.join(words)}</tr>")
    title = f"<h3>{escape(cells.title)}</h3>" if titled else ""
    lines = "\n".join(rows)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"
    return f'{title}<div class="wide">{table}</div>'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
