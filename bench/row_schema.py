"""What a row of measurements must hold, as data: one entry for each bench.

A row is one JSON object. What all rows hold stands in `COMMON`: which bench, when, which commit, which versions, which
machine, what the machine itself could do in the same process (`probes`). An entry of `BENCHES` says what tells the
rows of a bench apart (`keys`: recipe, shape, form) and what was measured (`values`). Units stand in the names, as
`unit_of` reads them. Nothing here imports torch: reading rows takes no time.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adadistill.core.report.text import short_number

SCHEMA = 2
"""2, 2026-11-25: `schema`, `device` and `probes` in every row; a spread for every time. Rows without it are the first
ones, which lack some fields and named a few things otherwise."""

MAX_FILE_BYTES = 64 << 20
"""A row is about 1 KB: a larger file is something else, and is not read."""

_LONGEST_TEXT = 2000

Row = dict[str, Any]
Fields = Mapping[str, str]
"""Name of a field -> its kind, one of `_KINDS`; a `?` after the kind says that it may be missing or null."""


class RowError(ValueError):
    """A row, or a file of rows, is not what it must be; names the field, and file and line where there are any."""


@dataclass(frozen=True, slots=True)
class BenchRows:
    """What rows of one bench hold beside `COMMON`."""

    title: str
    keys: Fields
    """What the values depend on; rows that agree in all of them measure the same thing."""
    values: Fields
    """What was measured, the most telling first."""
    notes: Fields
    """What else is worth keeping."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What a figure counts, as people write it; `x` for ratios, `%` for shares, which rows hold as fractions."""

    text: str = ""
    better: Literal["higher", "lower"] | None = None
    """Which way is better, for values that two sets of rows are compared by."""


_UNITS = {
    "images_per_s": Unit("images/s", "higher"), "tflop_per_s": Unit("TFLOP/s"), "gb_per_s": Unit("GB/s"),
    "per_s": Unit("1/s", "higher"), "gflops": Unit("GFLOP/s"), "gflop_per_image": Unit("GFLOP"),
    "ms": Unit("ms", "lower"), "cpu_seconds": Unit("CPU s", "lower"), "seconds": Unit("s", "lower"),
    "first_call_s": Unit("s", "lower"), "cpu_s_per_10k": Unit("CPU s", "lower"),
    "cpu_us_each": Unit("CPU us", "lower"), "us_base": Unit("us"), "us_per_kb": Unit("us per KB"),
    "mib": Unit("MiB", "lower"), "input_stall": Unit("%"), "gpu_busy": Unit("%"), "accuracy": Unit("%"),
    "accuracy_std_over_folds": Unit("%"),
}  # fmt: skip
"""By the last words of a field's name; the first that fits counts."""


def unit_of(name: str) -> Unit:
    """The unit that a field's name ends in; without text for names, counts and scores."""
    if name.startswith("share_of_"):
        return Unit("%")
    if name.startswith(("against_", "cpu_against_", "times_the_origin")):
        return Unit("x")
    return next((unit for words, unit in _UNITS.items() if f"_{name}".endswith(f"_{words}")), Unit())


def field_text(name: str, value: object) -> str:
    """A field's value as people read it; its unit stands in its name, except for `%` and `x`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict) and "median" in value:
        middle, low, high = (field_text(name, float(value[one])) for one in ("median", "p20", "p80"))
        return middle if low == middle == high else f"{middle} ({low} - {high})"
    if isinstance(value, dict):
        return ", ".join(
            f"{one} {short_number(number)}" for one, number in value.items() if isinstance(number, int | float)
        )
    if isinstance(value, list):
        return ", ".join(short_number(one) if isinstance(one, int | float) else str(one) for one in value) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    unit = unit_of(name).text
    return f"{value:.1%}" if unit == "%" else short_number(value) + ("x" if unit == "x" else "")


def _fields(text: str) -> Fields:
    return dict(field.split(": ") for field in text.split(", ")) if text else {}


def _rows(title: str, *, keys: str, values: str, notes: str = "") -> BenchRows:
    return BenchRows(title, _fields(keys), _fields(values), _fields(notes))


COMMON: Fields = _fields(
    "bench: text, date: text, schema: integer, commit: text?, python: text, torch: text, cuda: text?, driver: text?, "
    "devices: texts, cpu: text?, cpu_count: integer?, threads: integer, device: text, probes: spreads, "
    "conditions: text?, note: text?"
)
"""`device` is where the bench ran (`cpu`, `cuda`, `cuda:0`), `devices` the GPUs of the machine, `conditions` and `note`
what a person had to add by hand."""

BENCHES: Mapping[str, BenchRows] = {
    "step": _rows(
        "Training step: loader alone, model on a replayed batch, both together",
        keys="arch: text, width: number, image_size: integer, batch_size: integer, identities: integer, "
        "precision: text, mode: text, way: text, source: text, augment: text, workers: integer?, "
        "optimiser: text?, micro_batch_size: integer?",
        values="images_per_s: spread, step_ms: number, input_stall: number?, bottleneck: text?, peak_mib: number?, "
        "share_of_gemm_rate: number?, gflop_per_image: number?",
        notes="rounds: integer, steps: integer, predicted_step_ms: numbers?, records: integer?, "
        "mean_record_bytes: integer?",
    ),
    "loader": _rows(
        "Loading, stage by stage",
        keys="pipeline: text, stage: text, augment: text, batch_size: integer, workers: integer, "
        "mean_record_bytes: integer?",
        values="images_per_s: spread, cpu_s_per_10k: spread?, gpu_busy: number?",
        notes="records: integer?, batches: integer, repeats: integer",
    ),
    "decode_fit": _rows(
        "JPEG decoding against bytes, one thread",
        keys="pipeline: text, image_size: integer",
        values="us_base: number, us_per_kb: number",
        notes="kb: numbers, us: numbers",
    ),
    "teacher": _rows(
        "Teacher network alone",
        keys="arch: text, width: number, image_size: integer, batch_size: integer, form: text, tf32_conv: flag, "
        "tf32_matmul: flag",
        values="images_per_s: spread, against_float32: number?, tflop_per_s: number, share_of_gemm_rate: number?, "
        "cosine: named numbers, first_call_s: number, extra_mib: number?",
        notes="gflop_per_image: number, rounds: integer, calls: integer",
    ),
    "ijb": _rows(
        "IJB 1:1 scores from embeddings, all pooling modes",
        keys="form: text, share: number, images: integer, templates: integer, pairs: integer, "
        "embedding_dim: integer, modes: integer",
        values="seconds: number, cpu_seconds: number, against_loop: number?, against_loop_wall: number?, "
        "extra_mib: number?, embeddings_mib: number?",
    ),
    "teacher_cache": _rows(
        "Stored teacher embeddings against the teacher",
        keys="source: text, batch_size: integer, records: integer, embedding_dim: integer, image_size: integer, "
        "teacher_width: number, page_cache: text",
        values="per_s: spread, cpu_us_each: spread, against_teacher: number?, cpu_against_teacher: number?, "
        "share_of_copy_rate: number?",
        notes="rounds: integer",
    ),
    "margin_softmax": _rows(
        "Margin softmax, loss and embedding gradient",
        keys="form: text, batch: integer, classes: integer, dim: integer",
        values="ms: spread?, gflops: number?, share_of_gemm_rate: number?, extra_mib: number?, out_of_memory: flag, "
        "loss_off: number?",
    ),
    "centre_update": _rows(
        "Centre update",
        keys="form: text, batch: integer, classes: integer, dim: integer",
        values="ms: spread, gb_per_s: number?, share_of_copy_rate: number?",
    ),
    "centre_drift": _rows(
        "Half-precision centres beside float32",
        keys="half: text, classes: integer, dim: integer, updates_each: number",
        values="one_minus_cosine: named numbers",
    ),
    "head_prologue": _rows(
        "Head prologue: norms, margins, target of one batch, forward and backward",
        keys="form: text, batch: integer, classes: integer, dim: integer",
        values="ms: spread, gb_per_s: number, launches: integer, off: number, share_of_copy_rate: number?",
    ),
    "planar_augment": _rows(
        "Stored planes to network input",
        keys="form: text, layout: text, augment: text, batch: integer, image_size: integer, dtype: text",
        values="ms: spread, images_per_s: number, gb_per_s: number, share_of_copy_rate: number?",
    ),
    "prelu": _rows(
        "PReLU, forward and backward",
        keys="form: text, batch: integer, channels: integer, side: integer",
        values="ms: spread, gb_per_s: number, share_of_copy_rate: number?",
    ),
    "beside_origin": _rows(
        "Training step beside the origin's, from one start",
        keys="variant: text, arch: text, width: number, image_size: integer, batch_size: integer, "
        "identities: integer, precision: text",
        values="images_per_s: spread, times_the_origin: spread, times_the_origin_keeping_memory: spread, "
        "first_loss_difference: number, float64_loss_difference: number",
        notes="float64_steps: integer",
    ),
    "ablation": _rows(
        "Ablation: accuracy of one variant with one seed",
        keys="recipe: text, variant: text, seed: integer, set: text?, recipe_hash: text",
        values="accuracy: number?, accuracy_std: number?, tar_10fold: number?, tar_strict: number?, auc: number?, "
        "eer: number?, xnorm: number?",
        notes="baseline: text, state: text, failed: text?, far_target: number?, pairs: integer?, world_size: integer?, "
        "training_code: text?, made_of: json",
    ),
    "scaling": _rows(
        "Training on one process and on several",
        keys="kind: text, ranks: integer, arch: text, width: number, image_size: integer, embedding_dim: integer, "
        "global_batch_size: integer, identities: integer, precision: text, threads_per_rank: integer",
        values="images_per_s: spread, against_first: number?, bytes_per_rank_and_step: number, "
        "wire_bytes_per_rank_and_step: number, loss_off: number",
        notes="bytes_by_part: named numbers, bytes_by_formula: named numbers, steps: integer",
    ),
    "real_faces": _rows(
        "Training on a small set of real faces",
        keys="kind: text, seed: integer, epochs: integer, overrides: texts, decoder: text, set: text?",
        values="accuracy: number?, accuracy_std_over_folds: number?, auc: number?, images_per_s: number?",
        notes="recipe_hash: text, metrics: json",
    ),
    "reliability": _rows(
        "What holds under damage: kills, full disks, flipped bits, mutated files",
        keys="family: text, group: text, damage: text, promise: text, small: flag",
        values="held: integer, trials: integer, outcomes: named numbers, peak_mib: number?",
        notes="seed: integer, failures: texts",
    ),
    "demo": _rows(
        "`make demo`: synthetic faces from data to report",
        keys="seeds: integer",
        values="scores: json, gain_by_seed: numbers, standard_errors_above_no_teacher: number?, "
        "standard_errors_above_untrained: number, seconds: number",
    ),
}
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
    entry = BENCHES[bench]
    known = {**COMMON, **entry.keys, **entry.values, **entry.notes}
    problems = [f"unknown field `{_shown(name)}`{_nearest(name, known)}" for name in row if name not in known]
    for name, kind in known.items():
        value = row.get(name)
        if value is None:
            if not kind.endswith("?") and (version == SCHEMA or name in _ALWAYS):
                problems.append(f"`{name}` is missing")
            continue
        fits, wanted = _KINDS[kind.removesuffix("?")]
        if not fits(value):
            problems.append(f"`{name}` must be {wanted}, got {_shown(value)}")
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
            row = upgraded(_parsed(line, where=where))
            check_row(row, where=where)
            rows.append(row)
    return rows


def _parsed(line: str, *, where: str) -> Row:
    try:
        row = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where}: not a JSON object ({_shown(str(error))})") from error
    if not isinstance(row, dict):
        raise RowError(f"{where}: a row is a JSON object, this is {_shown(row)}")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_integer(value: object) -> bool:
    return type(value) is int and abs(value) <= 1 << 53  # beyond, it would be another number in what reads it


def _is_number(value: object) -> bool:
    return _is_integer(value) or (type(value) is float and math.isfinite(value))


def _is_spread(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"median", "p20", "p80"}
        and all(map(_is_number, value.values()))
        and value["p20"] <= value["median"] <= value["p80"]
    )


def _is_json(value: object) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_json, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, str | bool) or _is_number(value)


def _list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _named(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


_KINDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "text": (_is_text, f"text of at most {_LONGEST_TEXT} characters"),
    "texts": (_list_of(_is_text), "a list of texts"),
    "integer": (_is_integer, "an integer that a double holds"),
    "number": (_is_number, "a finite number"),
    "numbers": (_list_of(_is_number), "a list of finite numbers"),
    "flag": (lambda value: isinstance(value, bool), "true or false"),
    "spread": (_is_spread, "{median, p20, p80}, finite and p20 <= median <= p80"),
    "spreads": (_named(_is_spread), "{name: {median, p20, p80}}, finite and p20 <= median <= p80"),
    "named numbers": (_named(_is_number), "{name: finite number}"),
    "json": (_is_json, "JSON with finite numbers"),
}
_ALWAYS = ("date", "python", "torch", "devices", "threads", "device")
"""What rows of the first schema have too; `upgraded` adds the last one."""


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _shown(value: object) -> str:
    """Short and on one line, whatever a stranger's file holds."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= 80 else text[:77] + "..."
