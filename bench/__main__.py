"""`python -m adadistill.bench NAME ...`: the bench of that name (loader, step, teacher, kernels.bench_prelu, ...)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> int:
    """Run a bench; returns its exit code."""
    folder = Path(__file__).parent
    others = ("__init__", "__main__", "rows")
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem not in others)
    names += sorted(f"kernels.{path.stem}" for path in (folder / "kernels").glob("bench_*.py"))
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in names:
        print(f"usage: python -m adadistill.bench NAME ...; benches: {', '.join(names)}", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    return int(importlib.import_module(f"adadistill.bench.{name}").main(sys.argv[2:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
