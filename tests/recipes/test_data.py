"""`adadistill data`: verbs, their names of before, and mistakes, each told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from noise_records import write_plain

from adadistill.loaders.records.image_records import ImageRecords
from adadistill.recipes.cli import main as cli
from adadistill.recipes.data import main


def test_a_verb_that_is_gone_says_what_to_do_instead(capsys):
    assert main(["shuffle", "a.rec", "b.rec"]) == 2
    assert "shuffle is gone: training draws a true permutation" in capsys.readouterr().err


def test_the_place_may_be_named_as_it_was_before_there_was_an_out_option(tmp_path: Path, capsys):
    source = str(write_plain(tmp_path / "a" / "train.rec", [0, 0, 1]))
    for words in (
        ["split", source, str(tmp_path / "s0"), "--names", "all", "--fractions", "1"],
        ["split", "--relabel", source, "--identities", str(tmp_path / "s1"), "--fractions", "0.5", "0.5"],
        ["merge", str(tmp_path / "m0"), source, "--drop-duplicates", source],
        ["merge", source, source, "--out", str(tmp_path / "m1")],
    ):
        assert main(words) == 0
    assert (tmp_path / "s0" / "all" / "train.rec").is_file()
    assert len(ImageRecords(tmp_path / "m0" / "train.rec")) == 3
    assert len(ImageRecords(tmp_path / "m1" / "train.rec")) == 6
    for words in (["split", source], ["split", source, "x", "--out", "y"], ["merge", source]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split", "none.rec", "--out", "b"], "no record file at none.rec"),
        (["merge", "{source}", "--out", "{holes.parent}"], "exists already"),
        (["split", "{source}", "--out", "{folder}", "--fractions", "0.9", "0.2"], "sum to at most 1"),
        (["split", "{source}", "--out", "{folder}", "--fractions", "0.5"], "each part needs a name"),
        (["merge", "{folder}", "{source}", "{holes}", "--same-identities"], "identity 3 has no image"),
        (["stats", "{source}", "--sample", "0"], "--sample must be positive"),
        (["convert", "{property}", "--out", "{folder}"], "neither .tar shards"),
        (["convert", "none.tar", "--out", "{folder}"], "no such file or folder"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys, arguments: list[str], message: str):
    source = write_plain(tmp_path / "train.rec", [0, 1, 2])
    (tmp_path / "property").write_text("3,16,16\n")
    holes = write_plain(tmp_path / "holes" / "train.rec", [4])
    places = {"source": source, "folder": tmp_path / "out", "holes": holes, "property": tmp_path / "property"}
    assert main([argument.format(**places) for argument in arguments]) in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_the_verb_is_one_of_the_command_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_plain(tmp_path / "train.rec", [0, 1])
    assert cli(["data", "check", str(source)]) == 0
    assert "0 bad" in capsys.readouterr().out
    assert (
        cli(["data", "pack", str(source), "--out", str(tmp_path / "packed"), "--image-size", "16", "--layout", "rgb"])
        == 0
    )
    assert (tmp_path / "packed" / "header.json").is_file()
