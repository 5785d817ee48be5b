"""A report as one HTML file that needs nothing beside it: no script, no style sheet, no font, no network.

A content security policy forbids all of that too, so that even text which slipped through unescaped could load and
run nothing.
"""

from __future__ import annotations

import base64

from adadistill.core.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Figure,
    Figures,
    Heading,
    Number,
    Paragraph,
    Pictures,
    Table,
)
from adadistill.core.report.line_chart import COLOURS, DARK_COLOURS, key_mark
from adadistill.core.report.text import html_text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_SERIES = "".join(f"--series-{i}: {colour}; " for i, colour in enumerate(COLOURS))
_DARK_SERIES = "".join(f"--series-{i}: {colour}; " for i, colour in enumerate(DARK_COLOURS))
_STYLE = f"""
:root {{ color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --strong: #eef4fb; {_SERIES}}}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #14181d; --text: #e3e7ec; --soft: #9aa5b1; --line: #39424d;
  --strong: #1c2733; {_DARK_SERIES}}} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 72rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; }}
h2 {{ font-size: 1.3rem; margin: 2.4rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--line); }}
h3 {{ font-size: 1.08rem; margin: 1.8rem 0 0.4rem; }}
p, ul {{ max-width: 46rem; }}
ul {{ padding-left: 1.2rem; }}
nav ul {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; }}
a {{ color: inherit; }}
div.wide {{ overflow-x: auto; margin: 0.8rem 0; }}
table {{ border-collapse: collapse; font-size: 0.88rem; overflow-wrap: normal; }}
caption {{ text-align: left; color: var(--soft); padding-bottom: 0.35rem; }}
caption span {{ display: inline-block; position: sticky; left: 0; max-width: min(46rem, calc(100vw - 3rem)); }}
th, td {{ padding: 0.28rem 0.7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }}
thead th {{ vertical-align: bottom; }}
tbody th {{ font-weight: 500; min-width: 7.5rem; position: sticky; left: 0; background: var(--page); }}
td.number, th.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
td:not(.number) {{ min-width: 6.5rem; }}
td.long {{ min-width: 17rem; max-width: 34rem; }}
code {{ font-size: 0.84em; overflow-wrap: anywhere; }}
td code {{ display: inline-block; min-width: 17rem; max-width: 26rem; }}
tr.strong > * {{ background: var(--strong); font-weight: 650; }}
div.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.2rem; }}
figure {{ margin: 0; max-width: 36rem; min-width: 0; }}
figcaption {{ font-size: 0.88rem; color: var(--soft); }}
figure svg {{ display: block; width: 100%; height: auto; color: var(--text); }}
ul.key {{ list-style: none; padding: 0; margin: 0.2rem 0 0; display: flex; flex-wrap: wrap; gap: 0.1rem 1rem;
  font-size: 0.84rem; }}
ul.key svg {{ display: inline-block; width: 2rem; height: 0.7rem; vertical-align: middle; margin-right: 0.35rem; }}
summary {{ font-size: 0.84rem; color: var(--soft); cursor: pointer; }}
div.pictures {{ display: flex; flex-wrap: wrap; gap: 0.8rem; }}
div.pictures img {{ display: block; image-rendering: auto; }}
div.pictures figcaption {{ max-width: 8.5rem; }}
@media (max-width: 600px) {{ td code {{ min-width: 10rem; }} td.long {{ min-width: 13rem; }} }}
@media print {{
  body {{ font-size: 10pt; max-width: none; padding: 0; }}
  nav {{ display: none; }}
  div.wide {{ overflow: visible; }}
  tbody th {{ position: static; min-width: 0; }}
  td code, td.long, td:not(.number) {{ min-width: 0; }}
  table {{ font-size: 7.5pt; }}
  figure, tr {{ break-inside: avoid; }}
  h2, h3, caption {{ break-after: avoid; }}
}}
"""
_LONG_CELL = 60


def html_page(document: Document) -> str:
    """The whole document, every text escaped."""
    headings = [block for block in document.blocks if isinstance(block, Heading) and block.level == 2]
    links = "".join(f'<li><a href="#s{i}">{html_text(one.text)}</a></li>' for i, one in enumerate(headings))
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{html_text(document.title)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{html_text(document.title)}</h1>",
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>',
        "<main>",
    ]
    section = 0
    for block in document.blocks:
        if isinstance(block, Heading):
            mark = f' id="s{section}"' if block.level == 2 else ""
            section += block.level == 2
            parts.append(f"<h{block.level}{mark}>{html_text(block.text)}</h{block.level}>")
        else:
            parts.append(_block(block))
    parts += ["</main>", "</body>", "</html>"]
    return "\n".join(parts) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"<p>{html_text(block.text)}</p>"
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{html_text(item)}</li>' for item in block.items)}</ul>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figures):
        return f'<div class="figures">{"".join(map(_figure, block.items))}</div>'
    assert isinstance(block, Pictures), "headings are written where sections are counted"
    return f'<div class="pictures">{"".join(_picture(one.jpeg, one.caption) for one in block.items)}</div>'


def _table(table: Table) -> str:
    numeric = [
        any(isinstance(row[column], Number) for row in table.rows if column < len(row))
        for column in range(len(table.heads))
    ]
    heads = "".join(
        f'<th scope="col"{_class(right)}>{html_text(head)}</th>'
        for head, right in zip(table.heads, numeric, strict=True)
    )
    lines = []
    for index, (first, *others) in enumerate(table.rows):
        cells = f'<th scope="row">{_cell(first)}</th>'
        for cell, right in zip(others, numeric[1:], strict=True):
            long = isinstance(cell, str) and len(cell) > _LONG_CELL and " " in cell
            cells += f"<td{_class(right, long)}>{_cell(cell)}</td>"
        strong = ' class="strong"' if index in table.strong else ""
        lines.append(f"<tr{strong}>{cells}</tr>")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{html_text(table.caption)}">'
        f"<table><caption><span>{html_text(table.caption)}</span></caption>"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _figure(figure: Figure) -> str:
    key = "".join(f"<li>{key_mark(i)}{html_text(label)}</li>" for i, label in enumerate(figure.key))
    return (
        f"<figure>{figure.svg}<figcaption>{html_text(figure.caption)}</figcaption>"
        f'<ul class="key">{key}</ul>'
        f"<details><summary>Numbers of this figure</summary>{_table(figure.table)}</details></figure>"
    )


def _picture(jpeg: bytes, caption: str) -> str:
    body = base64.b64encode(jpeg).decode("ascii")
    text = html_text(caption)
    return f'<figure><img alt="{text}" src="data:image/jpeg;base64,{body}"><figcaption>{text}</figcaption></figure>'


def _class(right: bool, long: bool = False) -> str:
    return ' class="number"' if right else ' class="long"' if long else ""


def _cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, Number):
        return f'<data value="{cell.value!r}">{html_text(cell.text)}</data>'
    return f"<code>{html_text(cell)}</code>" if len(cell) > 20 and " " not in cell else html_text(cell)
