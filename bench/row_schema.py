"""What a row of measurements must hold, as data: one entry for each bench.

A row is one JSON object. What all rows hold stands in `COMMON`: which bench, when, which commit, which versions, which
machine, what the machine itself could do in the same process (`probes`). An entry of `BENCHES` says what tells the
rows of a bench apart (`keys`: recipe, shape, form) and what was measured (`values`, each with its unit and which way is
better). `check_row` holds a row against both, and is what `append_row` asks before it writes.

Rows say in `schema` which rules they were written under; rows without it are the first ones, which had no probes and
named a few things otherwise. `upgraded` gives any row in today's names, so that readers know one form. Nothing here
imports torch: reading rows takes no time.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SCHEMA = 2
"""2, 2026-11-25: `schema`, `device` and `probes` in every row; a spread for every time. Before: none of them."""

MAX_FILE_BYTES = 64 << 20
"""A row is about 1 KB: a larger file is something else, and is not read."""

_LONGEST_TEXT = 2000

Kind = Literal["text", "texts", "integer", "number", "numbers", "flag", "spread", "spreads", "named numbers", "json"]
Better = Literal["higher", "lower"]
Row = dict[str, Any]


class RowError(ValueError):
    """A row, or a file of rows, is not what it must be; names the field, and file and line where there are any."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a row."""

    kind: Kind
    unit: str = ""
    """As people write it: `images/s`, `ms`, `MiB`; `x` for ratios; `%` for shares, which rows hold as fractions. Empty
    for names, counts and scores."""
    better: Better | None = None
    """Which way is better, for values that two sets of rows are compared by."""
    optional: bool = False
    """May be missing or null: not every form, device or run has it."""
    since: int = 1
    """Rows of an earlier schema may lack it."""


@dataclass(frozen=True, slots=True)
class BenchRows:
    """What rows of one bench hold beside `COMMON`."""

    title: str
    keys: Mapping[str, Field]
    """What the values depend on; rows that agree in all of them measure the same thing."""
    values: Mapping[str, Field]
    """What was measured, the most telling first."""
    notes: Mapping[str, Field]
    """What else is worth keeping."""

    def fields(self) -> dict[str, Field]:
        """All of them by name."""
        return {**self.keys, **self.values, **self.notes}


_TEXT, _COUNT, _NUMBER, _FLAG = Field("text"), Field("integer"), Field("number"), Field("flag")
_TEXTS, _JSON = Field("texts"), Field("json")
_RATE = Field("spread", "images/s", "higher")
_MS = Field("spread", "ms", "lower")
_MIB = Field("number", "MiB", "lower", optional=True)
_SHARE = Field("number", "%", optional=True)
_RATIO = Field("number", "x", optional=True)
_GB_PER_S = Field("number", "GB/s", optional=True, since=2)
_SHAPE = {"batch": _COUNT, "classes": _COUNT, "dim": _COUNT}

COMMON: Mapping[str, Field] = {
    "bench": _TEXT,
    "date": _TEXT,
    "schema": Field("integer", since=2),
    "commit": Field("text", optional=True),
    "python": _TEXT,
    "torch": _TEXT,
    "cuda": Field("text", optional=True),
    "driver": Field("text", optional=True),
    "devices": _TEXTS,
    "cpu": Field("text", optional=True),
    "cpu_count": Field("integer", optional=True),
    "threads": _COUNT,
    "device": Field("text", since=2),
    "probes": Field("spreads", since=2),
    "conditions": Field("text", optional=True),
    "note": Field("text", optional=True),
}
"""`device` is where the bench ran (`cpu`, `cuda`, `cuda:0`), `devices` the GPUs of the machine, `conditions` and `note`
what a person had to add by hand."""

BENCHES: Mapping[str, BenchRows] = {
    "step": BenchRows(
        "Training step: loader alone, model on a replayed batch, both together",
        keys={
            "arch": _TEXT, "width": _NUMBER, "image_size": _COUNT, "batch_size": _COUNT, "identities": _COUNT,
            "precision": _TEXT, "mode": _TEXT, "way": _TEXT, "source": Field("text", since=2),
            "augment": Field("text", since=2), "workers": Field("integer", optional=True),
            "optimiser": Field("text", optional=True), "micro_batch_size": Field("integer", optional=True),
        },
        values={
            "images_per_s": _RATE, "step_ms": Field("number", "ms"), "input_stall": _SHARE,
            "bottleneck": Field("text", optional=True), "peak_mib": _MIB,
            "share_of_gemm_rate": _SHARE, "gflop_per_image": Field("number", "GFLOP", since=2, optional=True),
        },
        notes={
            "rounds": Field("integer", since=2), "steps": Field("integer", since=2),
            "predicted_step_ms": Field("numbers", optional=True),
            "records": Field("integer", optional=True), "mean_record_bytes": Field("integer", optional=True),
        },
    ),
    "loader": BenchRows(
        "Loading, stage by stage",
        keys={
            "pipeline": _TEXT, "stage": _TEXT, "augment": _TEXT, "batch_size": _COUNT, "workers": _COUNT,
            "mean_record_bytes": Field("integer", since=2, optional=True),
        },
        values={
            "images_per_s": _RATE, "cpu_s_per_10k": Field("spread", "CPU s", "lower", since=2, optional=True),
            "gpu_busy": _SHARE,
        },
        notes={"records": Field("integer", since=2, optional=True), "batches": _COUNT, "repeats": _COUNT},
    ),
    "decode_fit": BenchRows(
        "JPEG decoding against bytes, one thread",
        keys={"pipeline": _TEXT, "image_size": _COUNT},
        values={
            "us_base": Field("number", "us"), "us_per_kb": Field("number", "us per KB"),
        },
        notes={"kb": Field("numbers", "KB"), "us": Field("numbers", "us")},
    ),
    "teacher": BenchRows(
        "Teacher network alone",
        keys={
            "arch": _TEXT, "width": _NUMBER, "image_size": _COUNT, "batch_size": _COUNT, "form": _TEXT,
            "tf32_conv": _FLAG, "tf32_matmul": _FLAG,
        },
        values={
            "images_per_s": _RATE, "against_float32": _RATIO, "tflop_per_s": Field("number", "TFLOP/s"),
            "share_of_gemm_rate": _SHARE, "cosine": Field("named numbers"), "first_call_s": Field("number", "s"),
            "extra_mib": _MIB,
        },
        notes={"gflop_per_image": Field("number", "GFLOP"), "rounds": _COUNT, "calls": _COUNT},
    ),
    "ijb": BenchRows(
        "IJB 1:1 scores from embeddings, all pooling modes",
        keys={
            "form": _TEXT, "share": _NUMBER, "images": _COUNT, "templates": _COUNT, "pairs": _COUNT,
            "embedding_dim": _COUNT, "modes": _COUNT,
        },
        values={
            "seconds": Field("number", "s", "lower"), "cpu_seconds": Field("number", "CPU s", "lower"),
            "against_loop": _RATIO, "against_loop_wall": _RATIO, "extra_mib": _MIB, "embeddings_mib": _MIB,
        },
        notes={},
    ),
    "teacher_cache": BenchRows(
        "Stored teacher embeddings against the teacher",
        keys={
            "source": _TEXT, "batch_size": _COUNT, "records": _COUNT, "embedding_dim": _COUNT, "image_size": _COUNT,
            "teacher_width": _NUMBER, "page_cache": _TEXT,
        },
        values={
            "per_s": Field("spread", "1/s", "higher"), "cpu_us_each": Field("spread", "CPU us", "lower"),
            "against_teacher": _RATIO, "cpu_against_teacher": _RATIO, "share_of_copy_rate": _SHARE,
        },
        notes={"rounds": _COUNT},
    ),
    "margin_softmax": BenchRows(
        "Margin softmax, loss and embedding gradient",
        keys={"form": _TEXT, **_SHAPE},
        values={
            "ms": Field("spread", "ms", "lower", optional=True), "gflops": Field("number", "GFLOP/s", optional=True),
            "share_of_gemm_rate": _SHARE, "extra_mib": _MIB, "out_of_memory": _FLAG,
            "loss_off": Field("number", optional=True),
        },
        notes={},
    ),
    "centre_update": BenchRows(
        "Centre update",
        keys={"form": _TEXT, **_SHAPE},
        values={"ms": _MS, "gb_per_s": _GB_PER_S, "share_of_copy_rate": _SHARE},
        notes={},
    ),
    "centre_drift": BenchRows(
        "Half-precision centres beside float32",
        keys={"half": _TEXT, "classes": _COUNT, "dim": _COUNT, "updates_each": _NUMBER},
        values={"one_minus_cosine": Field("named numbers")},
        notes={},
    ),
    "head_prologue": BenchRows(
        "Head prologue: norms, margins, target of one batch, forward and backward",
        keys={"form": _TEXT, **_SHAPE},
        values={
            "ms": _MS, "gb_per_s": Field("number", "GB/s"), "launches": _COUNT, "off": _NUMBER,
            "share_of_copy_rate": _SHARE,
        },
        notes={},
    ),
    "planar_augment": BenchRows(
        "Stored planes to network input",
        keys={
            "form": _TEXT, "layout": _TEXT, "augment": _TEXT, "batch": _COUNT, "image_size": _COUNT, "dtype": _TEXT,
        },
        values={
            "ms": _MS, "images_per_s": Field("number", "images/s"), "gb_per_s": Field("number", "GB/s"),
            "share_of_copy_rate": _SHARE,
        },
        notes={},
    ),
    "prelu": BenchRows(
        "PReLU, forward and backward",
        keys={"form": _TEXT, "batch": _COUNT, "channels": _COUNT, "side": _COUNT},
        values={"ms": _MS, "gb_per_s": Field("number", "GB/s"), "share_of_copy_rate": _SHARE},
        notes={},
    ),
    "beside_origin": BenchRows(
        "Training step beside the origin's, from one start",
        keys={
            "variant": _TEXT, "arch": _TEXT, "width": _NUMBER, "image_size": _COUNT, "batch_size": _COUNT,
            "identities": _COUNT, "precision": _TEXT,
        },
        values={
            "images_per_s": _RATE, "times_the_origin": Field("spread", "x"),
            "times_the_origin_keeping_memory": Field("spread", "x"),
            "first_loss_difference": _NUMBER, "float64_loss_difference": _NUMBER,
        },
        notes={"float64_steps": _COUNT},
    ),
    "ablation": BenchRows(
        "Ablation: accuracy of one variant with one seed",
        keys={
            "recipe": _TEXT, "variant": _TEXT, "seed": _COUNT, "set": Field("text", optional=True),
            "recipe_hash": _TEXT,
        },
        values={
            name: Field("number", optional=True)
            for name in ("accuracy", "accuracy_std", "tar_10fold", "tar_strict", "auc", "eer", "xnorm")
        },
        notes={
            "baseline": _TEXT, "state": _TEXT, "failed": Field("text", optional=True),
            "far_target": Field("number", optional=True), "pairs": Field("integer", optional=True),
            "world_size": Field("integer", optional=True),
        },
    ),
    "scaling": BenchRows(
        "Training on one process and on several",
        keys={
            "kind": _TEXT, "ranks": _COUNT, "arch": _TEXT, "width": _NUMBER, "image_size": _COUNT,
            "embedding_dim": _COUNT, "global_batch_size": _COUNT, "identities": _COUNT, "precision": _TEXT,
            "threads_per_rank": _COUNT,
        },
        values={
            "images_per_s": _RATE, "against_first": _RATIO,
            "bytes_per_rank_and_step": _NUMBER, "wire_bytes_per_rank_and_step": _NUMBER, "loss_off": _NUMBER,
        },
        notes={"bytes_by_part": Field("named numbers"), "bytes_by_formula": Field("named numbers"), "steps": _COUNT},
    ),
    "real_faces": BenchRows(
        "Training on a small set of real faces",
        keys={
            "kind": _TEXT, "seed": _COUNT, "epochs": _COUNT, "overrides": _TEXTS, "decoder": _TEXT,
            "set": Field("text", optional=True),
        },
        values={
            "accuracy": _SHARE, "accuracy_std_over_folds": _SHARE, "auc": Field("number", optional=True),
            "images_per_s": Field("number", "images/s", "higher", optional=True),
        },
        notes={"recipe_hash": _TEXT, "metrics": _JSON},
    ),
    "reliability": BenchRows(
        "What holds under damage: kills, full disks, flipped bits, mutated files",
        keys={"family": _TEXT, "group": _TEXT, "damage": _TEXT, "promise": _TEXT, "small": _FLAG},
        values={"held": _COUNT, "trials": _COUNT, "outcomes": Field("named numbers"), "peak_mib": _MIB},
        notes={"seed": _COUNT, "failures": _TEXTS},
    ),
    "demo": BenchRows(
        "`make demo`: synthetic faces from data to report",
        keys={"seeds": _COUNT},
        values={
            "scores": _JSON, "gain_by_seed": Field("numbers"), "standard_errors_above_untrained": _NUMBER,
            "seconds": Field("number", "s"),
        },
        notes={},
    ),
}  # fmt: skip
"""By the name that rows carry in `bench`. A bench may write rows of several."""


def check_row(row: Mapping[str, Any], *, where: str = "row") -> None:
    """Hold a row in today's names against the schema.

    Args:
        where: how the error names the row.

    Raises:
        RowError: fields are missing, unknown, of another kind, or not finite; all of them are named.
    """
    problems = row_problems(row)
    if problems:
        raise RowError(f"{where}: " + "; ".join(problems))


def row_problems(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row in today's names, for people to read; empty if nothing is."""
    bench = row.get("bench")
    if not isinstance(bench, str):
        return [f"`bench` must be the name of a bench, got {_shown(bench)}"]
    if bench not in BENCHES:
        near = _nearest(bench, BENCHES)
        return [f"`bench` {_shown(bench)} has no entry in bench/row_schema.py{near or '; add one'}"]
    version = row.get("schema", 1)
    if type(version) is not int or not 1 <= version <= SCHEMA:
        return [f"`schema` must be 1 to {SCHEMA}, got {_shown(version)}; newer rows need a newer adadistill"]
    known = {**COMMON, **BENCHES[bench].fields()}
    problems = [f"unknown field `{_shown(name)}`{_nearest(name, known)}" for name in row if name not in known]
    for name, field in known.items():
        value = row.get(name)
        if value is None:
            if not field.optional and version >= field.since:
                problems.append(f"`{name}` is missing")
        elif wrong := _wrong(value, field.kind):
            problems.append(f"`{name}` must be {wrong}, got {_shown(value)}")
    return problems


def upgraded(row: Mapping[str, Any]) -> Row:
    """The row with the names of today's schema; a row that has them already is copied."""
    found = dict(row)
    if "schema" in found:
        return found
    if found.get("bench") == "step_replayed_batch":
        found |= {"bench": "step", "way": "replayed", "source": "none", "augment": "none"}
    if found.get("bench") == "loader" and found.get("stage") == "decode fit":
        found["bench"] = "decode_fit"
        del found["stage"]
    if found.get("bench") == "loader":
        found.setdefault("augment", "none")
    if found.get("bench") == "margin_softmax" and "median_ms" in found:
        found["ms"] = {name: found.pop(f"{name}_ms", None) for name in ("median", "p20", "p80")}
    found.setdefault("device", "cuda" if found.get("devices") else "cpu")
    return found


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a JSONL file, in today's names.

    Raises:
        RowError: the file is not UTF-8 or too large, or a line is no row; names file and line.
        OSError: it cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise RowError(
            f"{path} has {size:,} bytes; a file of rows has at most {MAX_FILE_BYTES:,}. Is it the one you mean?"
        )
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise RowError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}): no file of rows") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            row = upgraded(parse_row(line, where=where))
            check_row(row, where=where)
            rows.append(row)
    return rows


def parse_row(line: str, *, where: str) -> Row:
    """The JSON object of one line.

    Raises:
        RowError: it is none, or holds NaN or Infinity, which JSON does not know.
    """
    try:
        row = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where}: not a JSON object ({_shown(str(error))})") from error
    if not isinstance(row, dict):
        raise RowError(f"{where}: a row is a JSON object, this is {_shown(row)}")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _wrong(value: object, kind: Kind) -> str:
    """What the value should have been, or an empty text if it is that."""
    if kind == "text":
        return "" if _is_text(value) else f"text of at most {_LONGEST_TEXT} characters"
    if kind == "texts":
        return "" if isinstance(value, list) and all(map(_is_text, value)) else "a list of texts"
    if kind == "integer":
        return "" if type(value) is int and _is_finite(value) else "an integer that a double holds"
    if kind == "number":
        return "" if _is_finite(value) else "a finite number"
    if kind == "numbers":
        return "" if isinstance(value, list) and all(map(_is_finite, value)) else "a list of finite numbers"
    if kind == "flag":
        return "" if isinstance(value, bool) else "true or false"
    if kind == "spread":
        return "" if _is_spread(value) else "{median, p20, p80}, finite and p20 <= median <= p80"
    if kind == "spreads":
        good = isinstance(value, dict) and all(map(_is_spread, value.values()))
        return "" if good else "{name: {median, p20, p80}}, finite and p20 <= median <= p80"
    if kind == "named numbers":
        good = isinstance(value, dict) and all(map(_is_finite, value.values()))
        return "" if good else "{name: finite number}"
    return "" if _all_finite(value) else "JSON with finite numbers"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_finite(value: object) -> bool:
    if type(value) is int:
        return abs(value) <= 1 << 53  # beyond, it would be another number, or none, in what reads it
    return type(value) is float and math.isfinite(value)


def _is_spread(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"median", "p20", "p80"}
        and all(map(_is_finite, value.values()))
        and value["p20"] <= value["median"] <= value["p80"]
    )


def _all_finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_all_finite, value.values()))
    if isinstance(value, list):
        return all(map(_all_finite, value))
    return value is None or isinstance(value, str | bool) or _is_finite(value)


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _shown(value: object) -> str:
    """Short and on one line, whatever a stranger's file holds."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= 80 else text[:77] + "..."
