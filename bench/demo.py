"""The demo as a row: scores and seconds of a finished `make demo`, read from its report.

adadistill demo --out runs/demo && python -m adadistill.bench demo runs/demo --rows demo.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.bench.bench_parser import bench_parser
from adadistill.bench.rows import append_row


def main(argv: Sequence[str] | None = None) -> int:
    """Read, print and append the row."""
    parser = bench_parser("demo", __doc__, takes_device=False)
    parser.add_argument("folder", type=Path, help="folder of a finished demo")
    arguments = parser.parse_args(argv)
    path = arguments.folder / "report" / "demo.json"
    if not path.is_file():
        parser.error(f"{path} is not there: {arguments.folder} is no folder of a finished demo")
    summary = json.loads(path.read_text(encoding="utf-8"))
    seeds = len(summary["gain_by_seed"])
    append_row(arguments.rows, bench="demo", device="cpu", seeds=seeds, **summary)
    for role, score in summary["scores"].items():
        print(f"demo  {role:<12} accuracy {sum(score['accuracies']) / len(score['accuracies']):.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
