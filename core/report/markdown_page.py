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
from adadistill.core.report.text import markdown_text, one_line


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
        cells = [markdown_text(_shown(cell)) for cell in row]
        if index in table.strong:
            cells[0] = f"**{cells[0]}**"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def terminal_table(table: Table) -> str:
    """One table without its caption, in columns of spaces."""
    rows = [list(table.heads), *([one_line(_shown(cell)) for cell in row] for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


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


def _shown(cell: Cell) -> str:
    return "-" if cell is None else cell.text if isinstance(cell, Number) else cell
