"""Fixtures of the whole suite, its quick tier, and the import name `adadistill` on a fresh clone.

`make quick` (pytest --quick) leaves out the files that start processes, train networks, or read golden cases and real
faces. They are known by what they import, so that nobody keeps a list; single tests of other files that take a second
are marked slow. In a whole run heavy files come first: no long one is left for one worker at the end.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Tests are small and run beside each other (pytest -n): threads inside an operation would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # workers would each compile everything: once, outside the tree
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(Path(__file__).parents[1] / ".pytest_cache" / "compiled")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
os.environ.setdefault("ADADISTILL_TEST_RUN", str(os.getpid()))  # workers of pytest -n inherit that of the first process
sys.path.insert(0, str(Path(__file__).parent))

import tests_support

tests_support.make_importable()

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


HEAVY = re.compile(
    r"\b(subprocess|forked_python|interpreted|rank_processes|multiprocessing|run_training|small_run|hopper_code"
    r"|golden_\w+|data_dir|tiny_training|hypothesis|onnxruntime|benches|build_backbone|shipped_recipes|importable_processes)\b"
)


@functools.cache
def _is_heavy(path: Path) -> bool:
    return HEAVY.search(path.read_text(encoding="utf-8")) is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="no processes, no training, no golden cases, no real faces")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    chosen = config.getoption("--quick") and collection_path.match("test_*.py")
    return True if chosen and _is_heavy(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    items.sort(key=lambda item: not _is_heavy(item.path))
    if config.getoption("--quick"):
        items[:] = [item for item in items if item.get_closest_marker("slow") is None]


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of golden cases; skips with a reason where there is none."""
    return _folder_or_skip(tests_support.GOLDEN, "ADADISTILL_GOLDEN", "golden cases")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real faces, records and teachers; skips with a reason where there is none."""
    return _folder_or_skip(tests_support.DATA, "ADADISTILL_DATA", "real data")


def _folder_or_skip(folder: Path, variable: str, what: str) -> Path:
    if not folder.is_dir():
        pytest.skip(f"no {what} at {folder}; set {variable} to their folder")
    return folder
