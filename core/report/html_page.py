"""A report as one HTML file that needs nothing beside it: no script, no style sheet, no font, no network.

The template escapes whatever it is given. A content security policy forbids scripts and everything from outside too,
so that even text which slipped through unescaped could load and run nothing.
"""

from __future__ import annotations

import base64
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from adadistill.core.report.charts import BLACK, COLORS, DARK_COLORS, NO_DRAWINGS
from adadistill.core.report.document import Block, Document, Number
from adadistill.core.report.text import one_line

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_LEFT_OUT_OF_SVG = re.compile(
    r'<metadata>.*?</metadata>|<style type="text/css">.*?</style>| xmlns(?::\w+)?="[^"]*"| id="[\w.]+_\d+"', re.DOTALL
)


def html_page(document: Document) -> str:
    """The whole document, every text escaped."""
    return _template().render(document=document, colors=COLORS, dark_colors=DARK_COLORS, no_drawings=NO_DRAWINGS)


@cache
def _template() -> Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: one_line(value) if type(value) is str else value,  # which is then escaped
    )
    environment.tests |= {kind.__name__.lower(): _is_a(kind) for kind in (*get_args(Block), Number)}
    environment.filters |= {"inlined": _inlined, "base64": lambda body: _markup(base64.b64encode(body).decode("ascii"))}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _is_a(kind: type) -> object:
    return lambda value: isinstance(value, kind)


def _markup(text: str) -> str:
    """Text that the template leaves as it is: our own, without anything of a stranger that is not escaped."""
    from markupsafe import Markup

    return Markup(text)


def _inlined(svg: str, label: str) -> str:
    """A drawing of `charts.py` as an element of the page: of the page's width, in the colors of the page."""
    opening, rest = _LEFT_OUT_OF_SVG.sub("", svg[svg.index("<svg") :]).split(">", 1)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", opening)
    for index, color in enumerate(COLORS):
        rest = rest.replace(f": {color}", f": var(--series-{index})")
    rest = rest.replace(f": {BLACK}", ": currentColor")
    return _markup(f'{opening} role="img" aria-label="{escape(one_line(label))}" fill="currentColor">{rest}')
