"""What several benches need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests_support import ROOT


@pytest.fixture
def importable_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own find the package as this one does, installed or not."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "adadistill").symlink_to(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")]))
