"""Entry point: evaluations and a training run as one page.

    adadistill report runs/casia                     runs/casia/report/report.html and report.md
    adadistill report results --out casia.html       of a folder that adadistill evaluate wrote to
    adadistill report results --show-images data/lfw.bin

The HTML file needs nothing beside it; the Markdown says the same without the drawings, which need the extra `report`.
Faces are shown, small, only where --show-images names the set that they are in; the page then holds pictures of people.
Exit: 0, or 2 when there is nothing to report or a file is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write


@entry_point("adadistill report")
def main(arguments: Sequence[str]) -> int:
    """Run `adadistill report`; exit codes as the module says."""
    parser = argparse.ArgumentParser(
        prog="adadistill report", description="Evaluations and a training run as one HTML page, and as Markdown."
    )
    parser.add_argument("folder", type=Path, help="run folder, or a folder that adadistill evaluate wrote to")
    parser.add_argument("--out", type=Path, metavar="FILE", help="HTML file (default: report.html with the results)")
    parser.add_argument(
        "--show-images", type=Path, nargs="+", default=[], metavar="SET", help="embed the worst pairs of these sets"
    )
    options = parser.parse_args(arguments)
    page, text = write_report(options.folder, out=options.out, shown_sets=options.show_images)
    print(f"written to {page} and {text.name}")
    return 0


def write_report(folder: Path, *, out: Path | None = None, shown_sets: Sequence[Path] = ()) -> tuple[Path, Path]:
    """Write the HTML page and, beside it, the same as Markdown; their paths.

    Args:
        folder: a run folder, or one of evaluations.
        out: of the page; default `report.html` where the evaluations lie.
        shown_sets: verification sets whose worst pairs are embedded as small images.

    Raises:
        ValueError, OSError: there is nothing to report, or a file cannot be used.
    """
    from adadistill.core.report.charts import NO_DRAWINGS
    from adadistill.core.report.html_page import html_page
    from adadistill.core.report.markdown_page import markdown_page
    from adadistill.loaders.atomic_file import write_whole
    from adadistill.recipes.scoring.report import gather, report_document

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out}: the page is HTML; give it a name that ends in .html")
    if out is not None:
        will_write(out, makes_parents=True)
    material = gather(folder, shown_sets)
    page = out or material.results / "report.html"
    will_write(page, makes_parents=True, remedy="say with --out where it goes")
    document = report_document(material)
    text = page.with_suffix(".md")
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, html_page(document))
    write_whole(text, markdown_page(document))
    if document.misses_drawings:
        print(NO_DRAWINGS)
    return page, text


def print_report(folder: Path) -> None:
    """Write the report of a folder of evaluations and say where it is."""
    page, text = write_report(folder)
    print(f"report: {page} and {text.name}")


if __name__ == "__main__":
    sys.exit(main())
