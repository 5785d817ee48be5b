"""Where tests find golden cases and real data, and how the checkout becomes importable without an installation."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(os.environ.get("ADADISTILL_GOLDEN", ROOT.parent / "shared" / "golden"))
DATA = Path(os.environ.get("ADADISTILL_DATA", ROOT.parent / "shared" / "data"))


def golden_files(pattern: str) -> list[Path]:
    """Golden cases whose file name matches, sorted; empty where the folder is absent. For parametrising tests."""
    return sorted(GOLDEN.glob(pattern))


def make_importable() -> None:
    """Point `adadistill` at the checkout, unless it is installed already."""
    if importlib.util.find_spec("adadistill") is None:
        package = types.ModuleType("adadistill")
        package.__path__ = [str(ROOT)]
        sys.modules["adadistill"] = package
