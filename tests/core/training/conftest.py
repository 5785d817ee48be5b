"""Tiny records that the runs of this folder read and none changes, and a run on them that many tests only look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import write_tiny_records


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    return folder
