from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from adadistill.loaders.atomic_file import atomic_file, write_whole


@pytest.mark.parametrize("durable", [True, False])
def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "kept.json"
    path.write_text("old")
    path.chmod(0o640)

    with atomic_file(path, durable=durable) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"

    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["kept.json"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text("old")

    with pytest.raises(RuntimeError, match="half way"), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError("half way")

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.json"]


def test_a_pipe_is_written_to_in_place(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    write_whole(pipe, "three")

    assert os.read(reader, 16) == b"three"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_an_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        write_whole(tmp_path / "missing" / "file", "text")
