"""Fixtures of the whole suite, and the import name `adadistill` on a fresh clone where nothing is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Tests are small and run beside each other (pytest -n): threads inside an operation would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ADADISTILL_TEST_RUN", str(os.getpid()))  # workers of pytest -n inherit that of the first process
sys.path.insert(0, str(Path(__file__).parent))

import tests_support

tests_support.make_importable()

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


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
