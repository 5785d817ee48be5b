"""Rows are held against the schema: what is missing, unknown, of another kind or hostile is named, with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_rows import SPREAD, prelu_row

from adadistill.bench import row_schema, rows
from adadistill.bench.row_schema import BENCHES, COMMON, SCHEMA, RowError, read_rows

PRELU = {"form": "ours", "batch": 2, "channels": 64, "side": 56, "ms": SPREAD, "gb_per_s": 1.5}


def test_every_committed_row_fits():
    files = sorted(rows.RESULTS.glob("*.jsonl"))
    assert files
    for path in files:
        assert read_rows(path), f"{path} is empty"


def test_every_field_has_a_known_kind_and_is_declared_once():
    for bench, entry in BENCHES.items():
        names = [*COMMON, *entry.keys, *entry.values, *entry.notes]
        assert len(names) == len(set(names)), bench
        for fields in (COMMON, entry.keys, entry.values, entry.notes):
            assert {kind.removesuffix("?") for kind in fields.values()} <= set(row_schema._KINDS), bench


@pytest.mark.parametrize(
    ("name", "text", "better"),
    [
        ("images_per_s", "images/s", "higher"), ("gb_per_s", "GB/s", None), ("step_ms", "ms", "lower"),
        ("cpu_us_each", "CPU us", "lower"), ("extra_mib", "MiB", "lower"), ("share_of_gemm_rate", "%", None),
        ("against_loop_wall", "x", None), ("accuracy", "%", None), ("forms", "", None), ("batch", "", None),
    ],
)  # fmt: skip
def test_a_value_s_name_says_its_unit_and_which_way_is_better(name: str, text: str, better: str | None):
    assert (row_schema.unit_of(name).text, row_schema.unit_of(name).better) == (text, better)


def test_a_row_is_written_with_where_it_came_from_and_read_again(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    written = rows.append_row(path, bench="prelu", device=torch.device("cpu"), **PRELU)
    assert read_rows(path) == [written]
    assert written["schema"] == SCHEMA
    assert {"date", "commit", "torch", "threads", "cpu"} <= written.keys()
    assert set(written["probes"]) >= {"gemm_float32_tflop_per_s", "copy_gb_per_s"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gb_per_s": None}, "`gb_per_s` is missing"),
        ({"batch": 2.5}, "`batch` must be an integer that a double holds, got 2.5"),
        ({"batch": True}, "`batch` must be an integer that a double holds, got True"),
        ({"form": 3}, "`form` must be text of at most 2000 characters, got 3"),
        ({"gb_per_s": float("nan")}, "`gb_per_s` must be a finite number, got nan"),
        ({"ms": {**SPREAD, "p20": 2.5}}, "`ms` must be {median, p20, p80}"),
        ({"ms": {**SPREAD, "p80": float("inf")}}, "`ms` must be {median, p20, p80}"),
        ({"ms": 2.0}, "`ms` must be {median, p20, p80}"),
        ({"chanels": 3}, "unknown field `chanels`; did you mean `channels`?"),
    ],
)
def test_an_invalid_row_names_its_field_and_is_not_written(tmp_path: Path, change: dict[str, Any], said: str):
    with pytest.raises(RowError) as caught:
        rows.append_row(tmp_path / "r.jsonl", bench="prelu", device="cpu", **{**PRELU, **change})
    assert said in str(caught.value)
    assert str(caught.value).startswith("a row of prelu: ")
    assert not (tmp_path / "r.jsonl").exists()


def test_a_bench_without_an_entry_is_told_to_add_one():
    with pytest.raises(RowError, match=r"`bench` wind has no entry in bench/row_schema.py; add one"):
        rows.append_row(None, bench="wind", device="cpu")
    with pytest.raises(RowError, match=r"did you mean `loader`"):
        rows.append_row(None, bench="loadre", device="cpu")


def test_rows_of_the_first_schema_are_read_in_todays_names_and_need_no_probes(tmp_path: Path):
    old = {name: value for name, value in prelu_row().items() if name not in ("schema", "probes", "device")}
    softmax = {**old, "bench": "margin_softmax", "classes": 5, "dim": 8, "median_ms": 2.0, "p20_ms": 1.0, "p80_ms": 3.0,
               "gflops": 1.0, "share_of_gemm_rate": 0.5, "extra_mib": None, "out_of_memory": False}  # fmt: skip
    for name in ("ms", "channels", "side", "gb_per_s", "share_of_copy_rate"):
        del softmax[name]
    step = {**{name: old[name] for name in ("date", "python", "torch", "devices", "threads")},
            "bench": "step_replayed_batch", "arch": "a", "width": 1.0, "image_size": 112, "batch_size": 2,
            "identities": 3, "precision": "float32", "mode": "eager", "images_per_s": SPREAD, "step_ms": 1.0,
            "peak_mib": None}  # fmt: skip
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (softmax, step, old)) + "\n")
    first, second, third = read_rows(path)
    assert first["ms"] == SPREAD
    assert "median_ms" not in first
    assert (second["bench"], second["way"], second["source"]) == ("step", "replayed", "none")
    assert third["device"] == "cpu"
    path.write_text(json.dumps({**old, "schema": 2}))
    with pytest.raises(RowError, match=r"line 1: `device` is missing; `probes` is missing"):
        read_rows(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "a row is a JSON object"),
        ("{", "not a JSON object"),
        ('{"bench": NaN}', "NaN is no number in JSON"),
        ("[" * 100_000, "line 1"),
        ('{"bench": ' + "9" * 5000 + "}", "line 1"),
        ('{"bench": "<script>"}', "has no entry"),
        (json.dumps(prelu_row(schema=99)), "newer rows need a newer adadistill"),
        (json.dumps(prelu_row(schema=True)), "`schema` must be 1 to 2"),
        (json.dumps(prelu_row(batch=1 << 80)), "`batch` must be an integer that a double holds"),
        (json.dumps(prelu_row()).replace("1.5", "1e999"), "`gb_per_s` must be a finite number"),
        (json.dumps(prelu_row(form="x" * 3000)), "`form` must be text of at most 2000 characters"),
    ],
)
def test_a_hostile_line_is_named_with_its_place_and_in_short(tmp_path: Path, text: str, said: str):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(RowError) as caught:
        read_rows(path)
    assert said in str(caught.value)
    assert f"{path}, line 1" in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


def test_a_file_that_is_no_text_or_far_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RowError, match="no text in UTF-8"):
        read_rows(path)
    monkeypatch.setattr(row_schema, "MAX_FILE_BYTES", 2)
    with pytest.raises(RowError, match=r"has 3 bytes; a file of rows has at most 2"):
        read_rows(path)
