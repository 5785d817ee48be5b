from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_cache import contents
from small_stores import CacheFace, Face, PackedFace, build


@pytest.fixture(params=[CacheFace(), PackedFace()], ids=["cache", "packed"], scope="session")
def face(request: pytest.FixtureRequest) -> Face:
    """The teacher cache, then the packed images."""
    return request.param


@pytest.fixture(scope="session")
def built(face: Face, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nothing disturbed, not to be changed."""
    return build(face, tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="session")
def finished(built: Path) -> dict[str, bytes]:
    """The files of a store that nothing disturbed."""
    return contents(built)


@pytest.fixture(autouse=True)
def no_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written, only a power cut does, and for those the order of the calls is tested."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda handle: None)
