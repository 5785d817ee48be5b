"""`adadistill data pairs` makes a set that is scored like any other; its exit code tells bad data from bad usage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from torch import nn

from adadistill.core.distributed import Ranks
from adadistill.core.scoring.benchmark import ScoringTerms
from adadistill.core.scoring.embedding import Forward
from adadistill.core.scoring.verification import open_verification
from adadistill.recipes.data import main


def write_images(folder: Path, pairs: int) -> list[str]:
    """A folder of aligned images and the lines of a list of them, alternately same and different."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    lines = []
    for pair in range(pairs):
        shades = draw.integers(30, 220, (2, 1, 1, 3))
        shades[1] = shades[0] if pair % 2 == 0 else shades[1]
        for side, shade in zip("ab", shades, strict=True):
            pixels = np.clip(shade + draw.normal(scale=6, size=(112, 112, 3)), 0, 255).astype(np.uint8)
            (folder / f"{pair}{side}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))
        lines.append(f"{pair}a.jpg {pair}b.jpg {int(pair % 2 == 0)}")
    return lines


def colour_network() -> nn.Module:
    """(B, 3, H, W) -> mean colour, which tells the pairs of `write_images` apart."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_the_made_set_is_scored(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("\n".join(write_images(tmp_path / "faces", 40)))

    command = ["pairs", str(tmp_path / "list.txt"), "--images", str(tmp_path / "faces"), "--aligned"]
    assert main([*command, "--out", str(tmp_path / "mine.bin")]) == 0

    printed = capsys.readouterr().out
    assert "40 pairs, 20 of them same, of 80 images (copied byte for byte)" in printed
    assert "note" not in printed
    one = open_verification(tmp_path / "mine.bin", ScoringTerms(image_size=112, ranks=Ranks()))
    assert one.score(colour_network(), Forward())["verification.mine.Accuracy-Flip"].value > 0.8

    lines = (tmp_path / "list.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join(sorted(lines, key=lambda line: line[-1])))
    assert main([*command, "--out", str(tmp_path / "sorted.bin")]) == 0
    assert "note: 5 of 10 folds hold no same pairs" in capsys.readouterr().out


def test_exit_codes_tell_bad_data_from_a_wrong_command(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("\n".join([*write_images(tmp_path / "faces", 2), "0a.jpg none.jpg 1"]))
    command = ["pairs", str(tmp_path / "list.txt"), "--images", str(tmp_path / "faces"), "--aligned", "--out"]
    assert main([*command, str(tmp_path / "mine.bin")]) == 1
    assert "none.jpg: is missing" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "mine.txt")]) == 2
    assert main(["pairs", str(tmp_path / "nowhere"), *command[2:], str(tmp_path / "mine.bin")]) == 2
    for wrong in ([], ["--aligned", "--landmarks", "x"]):  # one of the two says how the images are
        with pytest.raises(SystemExit) as caught:
            main(["pairs", "list.txt", "--images", "faces", "--out", "mine.bin", *wrong])
        assert caught.value.code == 2
    assert not (tmp_path / "mine.bin").exists()
