"""A report as Markdown. Figures become the tables of what they show; embedded images are left out."""

from __future__ import annotations

from adadistill.core.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Figures,
    Heading,
    Number,
    Paragraph,
    Table,
)
from adadistill.core.report.text import markdown_text


def markdown_page(document: Document) -> str:
    """The whole document, every text escaped."""
    parts = [f"# {markdown_text(document.title)}"]
    for block in document.blocks:
        parts += _block(block)
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """One table without its caption; numbers stand to the right."""
    lines = [
        f"| {' | '.join(map(markdown_text, table.heads))} |",
        f"|{'|'.join(' ---: ' if right else ' --- ' for right in table.numeric)}|",
    ]
    for index, row in enumerate(table.rows):
        cells = [_cell(cell) for cell in row]
        if index in table.strong:
            cells[0] = f"**{cells[0]}**"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def replace_marked(text: str, begin: str, end: str, body: str) -> str:
    """A Markdown file with what stands between two marker lines written anew.

    Args:
        body: what goes between them, without empty lines around.

    Raises:
        ValueError: the file has not exactly one of each marker, in this order.
    """
    first, last = text.find(begin), text.find(end)
    if text.count(begin) != 1 or text.count(end) != 1 or last < first:
        raise ValueError(f"the figures go between two lines, each once and in this order:\n{begin}\n{end}")
    return f"{text[: first + len(begin)]}\n\n{body}\n{text[last:]}"


def _block(block: Block) -> list[str]:
    if isinstance(block, Heading):
        return [f"{'#' * block.level} {markdown_text(block.text)}"]
    if isinstance(block, Paragraph):
        return [markdown_text(block.text)]
    if isinstance(block, Bullets):
        return ["\n".join(f"- {markdown_text(item)}" for item in block.items)]
    if isinstance(block, Table):
        return [markdown_text(block.caption), markdown_table(block)]
    if isinstance(block, Figures):
        return [part for figure in block.items if figure.table is not None for part in _block(figure.table)]
    return [f"{len(block.items)} images are in the HTML report alone."]


def _cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    return markdown_text(cell.text if isinstance(cell, Number) else cell)
