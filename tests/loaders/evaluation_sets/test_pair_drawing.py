"""Lists drawn from a folder hold as many new pairs of each kind, in turn, and are the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from adadistill.loaders.evaluation_sets.pair_drawing import check_verification_bin, draw_pairs, write_pair_list
from adadistill.loaders.evaluation_sets.pair_lists import PairListError, make_verification_bin, read_pair_list
from adadistill.loaders.evaluation_sets.verification_pairs import VerificationSetError
from adadistill.recipes.data import main


def make_folder(root: Path, counts: list[int]) -> Path:
    body = simplejpeg.encode_jpeg(np.zeros((112, 112, 3), np.uint8))
    for identity, count in enumerate(counts):
        for number in range(count):
            path = root / f"person {identity}é" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body[:-2] + bytes([identity, number]) + body[-2:])
    return root


def test_pairs_are_what_they_are_called_new_and_in_turn(tmp_path: Path):
    folder = make_folder(tmp_path / "set", [1, 2, 5, 3])
    pairs = draw_pairs(folder, 7, seed=3)
    assert pairs.same.tolist() == [True, False] * 7
    drawn = list(zip(pairs.paths[0::2], pairs.paths[1::2], strict=True))
    assert len({frozenset(pair) for pair in drawn}) == 14
    assert [one.split("/")[0] == other.split("/")[0] for one, other in drawn] == pairs.same.tolist()
    assert draw_pairs(folder, 7, seed=3).paths == pairs.paths
    assert draw_pairs(folder, 7, seed=4).paths != pairs.paths
    write_pair_list(tmp_path / "pairs.txt", pairs)
    assert read_pair_list(tmp_path / "pairs.txt", folder).paths == pairs.paths
    with pytest.raises(FileExistsError):
        write_pair_list(tmp_path / "pairs.txt", pairs)
    small = make_folder(tmp_path / "small", [2] * 12 + [14])  # small identities that are used up do not stop it
    assert draw_pairs(small, 50, seed=0).same.sum() == 50


@pytest.mark.parametrize(
    ("counts", "count", "message"),
    [([1, 1], 1, "has 0 same pairs"), ([3], 1, "has 0 different"), ([3, 3], 4, "has 6 same pairs"), ([], 1, "has 0")],
)
def test_folders_with_too_few_images_are_refused(tmp_path: Path, counts: list[int], count: int, message: str):
    (tmp_path / "set").mkdir()
    with pytest.raises(PairListError, match=message):
        draw_pairs(make_folder(tmp_path / "set", counts), count, seed=0)


def test_the_verb_draws_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = make_folder(tmp_path / "set", [4, 4, 4])
    command = ["pairs", str(tmp_path / "p.txt"), "--images", str(folder), "--aligned", "--out", str(tmp_path / "a.bin")]
    assert main([*command, "--draw", "9", "--seed", "5", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "18 pairs, 9 of them same" in printed
    assert "checked: read back" in printed
    assert main([*command, "--draw", "9"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main([*command, "--draw", "99", "--overwrite"]) == 1
    assert main([*command, "--draw", "0", "--overwrite"]) == 2


def test_a_set_that_is_not_its_list_s_is_told(tmp_path: Path):
    folder = make_folder(tmp_path / "set", [2, 2])
    (tmp_path / "a.txt").write_text("person 0é/0.jpg\tperson 0é/1.jpg\t1\n")
    (tmp_path / "b.txt").write_text("person 0é/0.jpg\tperson 0é/1.jpg\t0\n")
    make_verification_bin(tmp_path / "a.txt", folder, tmp_path / "a.bin")
    check_verification_bin(tmp_path / "a.bin", tmp_path / "a.txt", folder, aligned=True)
    with pytest.raises(VerificationSetError, match="flags are not those"):
        check_verification_bin(tmp_path / "a.bin", tmp_path / "b.txt", folder, aligned=True)
    path = folder / "person 0é" / "1.jpg"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(VerificationSetError, match=r"image 1 is not the file"):
        check_verification_bin(tmp_path / "a.bin", tmp_path / "a.txt", folder, aligned=True)
