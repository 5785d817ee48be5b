"""`adadistill data check`: every bad record is reported, a good file can be sealed, exit codes say which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from noise_records import jpeg

from adadistill.loaders.records.record_seal import open_seal
from adadistill.loaders.records.recordio import RecordWriter
from adadistill.recipes.data_verbs.check import run


def _write(path: Path, bodies: list[bytes], labels: list[float] | None = None) -> Path:
    with RecordWriter(path) as writer:
        for number, body in enumerate(bodies):
            writer.write(number, body, labels=float(number % 3) if labels is None else labels[number])
    return path


def test_every_bad_record_of_an_unsealed_file_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bodies = [jpeg(seed) for seed in range(40)]
    bodies[3] = bodies[3][:2] + b"\xff\xc0\x00"  # a header that ends
    bodies[11] = bodies[11][:-300]  # only decoding can tell
    bodies[20] = b"GIF89a" + bytes(60)
    bodies[30] = jpeg(30, side=24)
    labels = [float(number % 3) for number in range(40)]
    labels[25] = 0.5
    path = _write(tmp_path / "train.rec", bodies, labels)
    (tmp_path / "property").write_text("3,16,16\n")
    with path.open("r+b") as file:  # and a frame whose length is wrong
        offset = int((tmp_path / "train.idx").read_text().splitlines()[35].split()[1])
        file.seek(offset + 4)
        file.write((1 << 20).to_bytes(4, "little"))
    report = tmp_path / "bad.jsonl"
    assert run([str(path), "--decode", "--image-size", "16", "--report", str(report), "--seal"]) == 1
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert [row["record_id"] for row in rows] == [3, 11, 20, 25, 30, 35]
    assert [row["kind"] for row in rows] == [
        "ImageDecodeError", "ImageDecodeError", "ImageDecodeError", "BadLabelError", "ImageSizeError", "BadLengthError",
    ]  # fmt: skip
    assert "6 bad" in capsys.readouterr().out
    assert open_seal(path) is None


def test_property_identities_and_recipe_must_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = _write(tmp_path / "train.rec", [jpeg(seed) for seed in range(6)])
    (tmp_path / "property").write_text("4,16,16\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: r\ndata: {{records: {path}, image_size: 16, num_classes: 3}}\ncentres: {{kind: trainable}}\n"
        "optim: {lr: 0.1, epochs: 1}\n"
    )
    assert run([str(path), "--recipe", str(recipe)]) == 1
    assert "the number of identities is 3 by data.num_classes, 4 by property" in capsys.readouterr().out


def test_a_changed_file_is_found_by_its_seal_and_can_be_sealed_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bodies = [jpeg(seed) for seed in range(5)]
    path = _write(tmp_path / "train.rec", bodies)
    assert run([str(path), "--seal", "--decode"]) == 0
    assert "sealed: " in capsys.readouterr().out
    assert open_seal(path) is not None
    content = bytearray(path.read_bytes())
    place = path.read_bytes().find(bodies[2]) + 200
    content[place] ^= 0x10
    path.write_bytes(bytes(content))
    assert run([str(path)]) == 1
    assert "record 2" in capsys.readouterr().out
    assert run([str(path), "--seal"]) == 1, "a bad file is not sealed"
    assert run([str(path), "--seal", "--reseal"]) == 0
    assert run([str(path)]) == 0
    assert "checksums compared, 0 bad" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.rec"], 2, "no record file at nowhere.rec"),
        (["{path}", "--workers", "0"], 2, "--workers must be positive"),
        (["{path}", "--reseal"], 2, "give both"),
        (["{path}", "--recipe", "nothing"], 2, "no such file, and no shipped recipe"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, capsys, arguments: list[str], code: int, message: str):
    path = _write(tmp_path / "train.rec", [jpeg(0)])
    assert run([argument.format(path=path) for argument in arguments]) == code
    assert message in capsys.readouterr().err
