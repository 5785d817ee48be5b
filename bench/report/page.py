"""Tables and charts as one HTML file that needs nothing beside it: no script, no style sheet, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence

from adadistill.bench.report.charts import bar_chart
from adadistill.bench.report.tables import Machine, Table
from adadistill.bench.report.targets import Standing
from html import escape

from adadistill.core.report.text import one_line

_LONGEST = 400

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #8884; } h3 { margin: 2rem 0 0.3rem; }
p.caption { margin: 0 0 0.6rem; font-size: 0.87rem; opacity: 0.75; overflow-wrap: anywhere; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87rem; }
th, td { padding: 0.25rem 0.7rem; text-align: left; border-bottom: 1px solid #8883; white-space: nowrap; }
td.free { white-space: normal; min-width: 11rem; }
th.figure, td.figure { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; min-width: 34rem; max-width: 52rem; height: auto; margin: 0.6rem 0; }
svg { background: #fff; }
.open { opacity: 0.6; }
nav a { margin-right: 1rem; }
"""


def html_page(listed: Sequence[Machine], standings: Sequence[Standing]) -> str:
    """The whole page. Every text of a row is escaped."""
    links = "".join(f'<a href="#machine-{number}">{_text(machine.name)}</a>' for number, machine in enumerate(listed))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>adadistill: measured</title><style>{_STYLE}</style></head><body>",
        "<h1>adadistill: measured</h1>",
        "<p>Medians, with p20 - p80 in brackets. A star marks a commit with uncommitted changes. Bars show medians, "
        "lines p20 to p80.</p>",
        f'<nav>{links}<a href="#targets">targets</a></nav>',
    ]
    for number, machine in enumerate(listed):
        parts.append(f'<h2 id="machine-{number}">{_text(machine.name)}</h2>')
        parts += [_section(table) for table in machine.tables]
    parts += ['<h2 id="targets">Targets</h2>', _targets(standings), "</body></html>"]
    return "\n".join(parts) + "\n"


def _section(table: Table) -> str:
    heads = "".join(_cell("th", text, right) for text, right in zip(table.heads, table.numeric, strict=True))
    lines = "".join(
        "<tr>" + "".join(_cell("td", text, right) for text, right in zip(line, table.numeric, strict=True)) + "</tr>\n"
        for line in table.lines
    )
    chart = f'<div class="wide">{bar_chart(table.bars, table.bars_of)}</div>' if len(table.bars) > 1 else ""
    return (
        f'<h3>{_text(table.title)}</h3><p class="caption">{_text(table.caption, longest=4 * _LONGEST)}</p>{chart}'
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{lines}</tbody></table></div>'
    )


def _targets(standings: Sequence[Standing]) -> str:
    lines = []
    for one in standings:
        cells = "".join(
            f'<td class="free">{_text(text)}</td>' for text in (one.what, one.reach, one.measured, one.where)
        )
        lines.append(f'<tr class="open">{cells}</tr>' if one.measured == "not measured" else f"<tr>{cells}</tr>")
    heads = "".join(f"<th>{text}</th>" for text in ("What", "To reach", "Measured", "On"))
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(tag: str, text: str, right: bool) -> str:
    return f'<{tag} class="figure">{_text(text)}</{tag}>' if right else f"<{tag}>{_text(text)}</{tag}>"


def _text(text: str, *, longest: int = _LONGEST) -> str:
    return escape(one_line(text, longest=longest))
