"""`adadistill data convert` between records and folders: a stop is made good, exit codes tell who is at fault."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from noise_records import contents, jpeg, write_insightface

from adadistill.recipes.data import main


def test_a_stop_is_asked_for_politely_and_the_same_command_goes_on(tmp_path: Path, capsys, monkeypatch):
    from adadistill.recipes.data_verbs import convert as data_convert

    source = write_insightface(tmp_path / "a", (3, 3, 3))

    class Asked:
        requested, exit_code = True, 143

        def __enter__(self) -> Asked:
            return self

        def __exit__(self, *_: object) -> None: ...

    for here, there in ((source, tmp_path / "b"), (tmp_path / "b", tmp_path / "c")):
        with monkeypatch.context() as patched:
            patched.setattr(data_convert, "listen_for_stop", Asked)
            assert main(["convert", str(here), "--out", str(there)]) == 143
        assert "the same command goes on" in capsys.readouterr().err
        assert main(["convert", str(here), "--out", str(there)]) == 0
    assert contents(tmp_path / "c") == contents(tmp_path / "a")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{rec}", "--out", "{a}"], 1, "none of them is written over"),
        (["{rec}", "--out", "{new}", "--limit", "3"], 2, "unpacked whole"),
        (["{rec}", "--out", "{new}", "--overwrite"], 2, "never over other files"),
        (["{rec}", "--out", "{new}", "--ignore-manifest"], 2, "--ignore-manifest is for a folder"),
        (["{rec}", "{rec}", "--from", "records", "--out", "{new}"], 2, "at a time"),
        (["{none}.rec", "--out", "{new}"], 2, "no such file or folder"),
        (["{b}", "--out", "{a}"], 2, "exists already"),
        (["{b}", "--out", "{b}/x"], 2, "only read"),
        (["{b}", "--out", "{new}", "--image-size", "0"], 2, "must be positive"),
        (["{b}", "--out", "{new}", "--image-size", "32"], 2, "has a list of its records"),
        (["{b}", "--out", "{new}", "--ignore-manifest", "--image-size", "112"], 1, "112 a side were asked for"),
        (["{b}", "--out", "{new}", "--list", "{none}.lst"], 2, "no list at"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys, arguments: list[str], code: int, message: str):
    rec = write_insightface(tmp_path / "a", (3, 3, 3))
    assert main(["convert", str(rec), "--out", str(tmp_path / "b")]) == 0
    before = contents(tmp_path)
    places = {name: tmp_path / name for name in ("a", "b", "new", "none")}
    assert main(["convert", *(one.format(rec=rec, **places) for one in arguments)]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert {name: body for name, body in contents(tmp_path).items() if not name.startswith("new")} == before


def test_a_folder_with_a_limit_takes_the_first_images(tmp_path: Path):
    for number in range(6):
        path = tmp_path / "set" / str(number // 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    assert main(["convert", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--limit", "3"]) == 0
    assert (tmp_path / "out" / "property").read_text() == "2,16,16\n"
    assert (tmp_path / "out" / "labels.json").read_text() == '["0", "1"]\n'


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "images"), [("recordio/faces8/train.rec", 8)])
def test_real_records_are_inspected_checked_and_converted_to_a_folder_and_back(
    tmp_path: Path, data_dir: Path, capsys, name: str, images: int
):
    source = data_dir / name
    wanted = {side: sha256(source.with_name(side)) for side in ("train.rec", "train.idx", "property")}
    assert main(["inspect", str(source)]) == 0
    assert main(["check", str(source), "--decode"]) == 0
    assert f"{images} images, " in capsys.readouterr().out
    assert main(["convert", str(source), "--out", str(tmp_path / "images")]) == 0
    assert f"{images} images" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "images")]) == 0
    assert main(["convert", str(tmp_path / "images"), "--out", str(tmp_path / "again")]) == 0
    assert {side: sha256(source.with_name(side)) for side in wanted} == wanted
    # More than is promised: their ids are their keys.
    made = {side: sha256(tmp_path / "again" / side) for side in wanted if wanted[side] is not None}
    assert made == {side: digest for side, digest in wanted.items() if digest is not None}


def sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
