"""HTML and Markdown say the same of one document, and a stranger's text is nothing but text in both."""

from __future__ import annotations

import html.parser
import re
import sys

import pytest

from adadistill.core.report.charts import NO_DRAWINGS, Axis, line_chart
from adadistill.core.report.document import (
    Bullets,
    Document,
    Figure,
    Figures,
    Heading,
    Number,
    Paragraph,
    Picture,
    Pictures,
    Table,
)
from adadistill.core.report.html_page import html_page
from adadistill.core.report.markdown_page import markdown_page
from adadistill.core.report.text import markdown_text, one_line

HOSTILE = '"><script>alert(1)</script>|`$\\frac{$&quot;[x](javascript:alert(1))\n# h\x1b[31m <b>'


class Tags(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def document(name: str) -> Document:
    """Every kind of block, the name in each of its texts."""
    table = Table(caption=name, heads=[name, name], rows=[[name, Number(0.25, "25.00")], [name, None]], strong={0})
    drawn = line_chart({name: [(0.0, 0.0), (1.0, 1.0)]}, x=Axis(label=name), y=Axis(label=name))
    blocks = [
        Heading(2, name), Heading(3, name), Paragraph(name), Bullets([name, name]), table,
        Figures([Figure(svg=drawn, caption=name, table=table), Figure(svg=drawn, caption=name)]),
        Pictures([Picture(jpeg=b"\xff\xd8", caption=name)]),
    ]  # fmt: skip
    return Document(title=name, blocks=blocks)


def test_a_strangers_text_is_text_and_nothing_else():
    hostile, tame = Tags(html_page(document(HOSTILE))), Tags(html_page(document("tame")))
    assert hostile.tags == tame.tags
    assert hostile.attributes == tame.attributes
    assert hostile.text.count('"><script>alert(1)</script>') >= 10
    text, plain = markdown_page(document(HOSTILE)), markdown_page(document("tame"))
    unescaped = re.sub(r"\\.", "", text)
    assert [line.count("|") for line in unescaped.splitlines()] == [line.count("|") for line in plain.splitlines()]
    assert not re.search(r"<|`|\]\(|^# h", unescaped, re.MULTILINE)
    assert "\x1b" not in html_page(document(HOSTILE)) + text


def test_text_is_one_short_line_and_names_keep_their_underscores():
    assert markdown_text("a\n| b_c _d_") == "a \\| b_c \\_d\\_"
    assert len(one_line("x" * 10_000)) == 600


def test_both_forms_hold_the_numbers_and_markdown_leaves_drawings_and_images_out():
    page, text = html_page(document("name")), markdown_page(document("name"))
    assert page.count('<data value="0.25">25.00</data>') == 2
    assert text.count("| **name** | 25.00 |\n| name | - |") == 2
    assert page.count('role="img" aria-label="name"') == 2
    assert "data:image/jpeg;base64,/9g=" in page
    assert "1 images are in the HTML report alone." in text
    assert "svg" not in text


def test_without_matplotlib_the_tables_are_open_and_the_page_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    assert NO_DRAWINGS not in Tags(html_page(document("x"))).text
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = html_page(document("x"))
    assert "adadistill[report]" in NO_DRAWINGS
    assert NO_DRAWINGS in Tags(page).text
    assert "<svg" not in page
    assert page.count("<details open>") == 1
