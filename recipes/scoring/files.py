"""What an evaluation leaves behind for each network, and how it is read back.

    verification-<name>.json   everything: network, data, protocols, scores, curves, worst cases; `format`, `version`
    verification-<name>.csv    `metric,value` with the keys that AdaDistill's users know

In JSON every rate is a share in [0, 1]. In CSV each key has the unit that its users know: `verification.*` shares
(`Accuracy-Flip` 0.9948), `ijb.*` and `tinyface.*` percent (93.98). Numbers that are not defined are null with their
reason in JSON and have no line in CSV.

JSON files are also the memory of an evaluation: what they hold of the same network, data and settings is not done
again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.recipes.outputs import will_write_folder

if TYPE_CHECKING:
    from adadistill.core.scoring.result import BenchmarkResult, Score

FORMAT = "adadistill-evaluation"
VERSION = 1
_MAX_BYTES = 1 << 28


class EvaluationFileError(ValueError):
    """A file is no evaluation of ours, or is damaged; the text says where."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """One network on one benchmark."""

    result: BenchmarkResult
    settings: Mapping[str, Any]
    """What, beside network and data, the numbers depend on."""
    details: Mapping[str, Any] | None
    """Fields of `VerificationResult`, of verification sets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One network on all its benchmarks."""

    name: str
    facts: Mapping[str, Any]
    """What the network is: path or identity, hash, architecture."""
    setting: Mapping[str, Any]
    """Precision, device, world size of the last launch that added to it."""
    done: tuple[Done, ...]

    @property
    def sha256(self) -> str:
        """Of the network's weights."""
        return network_sha256(self.facts)

    @property
    def results(self) -> tuple[BenchmarkResult, ...]:
        """Of all benchmarks."""
        return tuple(one.result for one in self.done)

    def score(self, key: str) -> Score | None:
        """The score of a key, where there is one."""
        return next((score for result in self.results for score in result.scores if score.key == key), None)

    @property
    def headlines(self) -> dict[str, float]:
        """The values that stand for each benchmark, by key; withheld ones are left out."""
        values = {result.headline: result[result.headline].value for result in self.results}
        return {key: value for key, value in values.items() if value is not None}


def network_sha256(facts: Mapping[str, Any]) -> str:
    """Of the weights that the facts speak of; empty where they do not say."""
    identity = facts.get("identity")
    found = identity.get("sha256") if isinstance(identity, dict) else facts.get("model_sha256")
    return found if isinstance(found, str) else ""


def same_network(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two facts speak of one network that is fed in one way, wherever it lies."""
    identity = network_identity(one)
    return bool(identity) and identity == network_identity(other)


def network_identity(facts: Mapping[str, Any]) -> str:
    """sha256 of weights, architecture and preprocessing, wherever the network lies; empty where weights have none."""
    weights = network_sha256(facts)
    if not weights:
        return ""
    identity = facts.get("identity")
    shown = dict(identity) if isinstance(identity, dict) else {}
    shown.pop("name", None)
    # Through JSON, so that what was just made equals what was read back.
    bound = _json({**shown, "network": facts.get("network"), "image_size": facts.get("image_size")})
    return hashlib.sha256(f"{weights} {bound}".encode()).hexdigest()


def json_path(folder: Path, name: str) -> Path:
    """The file of a network."""
    return folder / f"verification-{name}.json"


def write_evaluation(folder: Path, evaluation: Evaluation) -> tuple[Path, Path]:
    """Write JSON and CSV, each whole or not at all; their paths. The folder is made where it is missing."""
    from adadistill.core.scoring.stored_result import result_to_json

    content = {
        "format": FORMAT,
        "version": VERSION,
        "name": evaluation.name,
        **evaluation.facts,
        **evaluation.setting,
        "sets": {one.result.name: one.details for one in evaluation.done if one.details is not None},
        "benchmarks": [
            {"settings": dict(one.settings), "result": result_to_json(one.result)} for one in evaluation.done
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = json_path(folder, evaluation.name)
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    table = path.with_suffix(".csv")
    write_whole(table, csv_text([score for result in evaluation.results for score in result.scores]))
    return path, table


def read_evaluation(path: Path) -> Evaluation:
    """Read the JSON of a network.

    Raises:
        OSError: it cannot be read.
        EvaluationFileError: it is no evaluation, of another version, or damaged.
    """
    from adadistill.core.scoring.stored_result import StoredResultError, result_from_json

    with path.open("rb") as file:
        body = file.read(_MAX_BYTES + 1)
    try:
        content = json.loads(body[:_MAX_BYTES])
    except (ValueError, RecursionError) as error:
        raise EvaluationFileError(f"{path}: no JSON ({error!s:.80})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EvaluationFileError(f"{path}: no evaluation (format must be {FORMAT}); run adadistill evaluate again")
    if content.get("version") != VERSION:
        raise EvaluationFileError(
            f"{path}: version {content.get('version')!r:.20} of the format, this is {VERSION}; run adadistill evaluate "
            "again"
        )
    name, sets, benchmarks = content.get("name"), content.get("sets"), content.get("benchmarks")
    if not isinstance(name, str) or not isinstance(sets, dict) or not isinstance(benchmarks, list):
        raise EvaluationFileError(f"{path}: needs a name, an object `sets` and a list `benchmarks`")
    done = []
    for index, one in enumerate(benchmarks):
        if not isinstance(one, dict) or not isinstance(one.get("settings"), dict):
            raise EvaluationFileError(f"{path}: benchmarks[{index}] must hold settings and a result")
        try:
            result = result_from_json(one.get("result"), where=f"{path}: benchmarks[{index}]")
        except StoredResultError as error:
            raise EvaluationFileError(str(error)) from None
        details = sets.get(result.name) if result.kind == "verification" else None
        done.append(Done(result=result, settings=one["settings"], details=details))
    setting = {key: content.get(key) for key in ("precision", "device", "world_size")}
    known = {"format", "version", "name", "sets", "benchmarks", *setting}
    facts = {key: value for key, value in content.items() if key not in known}
    return Evaluation(name=name, facts=facts, setting=setting, done=tuple(done))


def read_evaluations(folder: Path) -> tuple[list[Evaluation], list[str]]:
    """Every evaluation in a folder, by name (numbers in names by value), and why other files were passed over."""
    found, passed_over = [], []
    for path in sorted(folder.glob("verification-*.json")):
        try:
            found.append(read_evaluation(path))
        except (EvaluationFileError, OSError) as error:
            passed_over.append(str(error))
    return sorted(found, key=lambda one: (one.facts.get("checkpoint") is None, one.name)), passed_over


def csv_text(scores: Sequence[Score]) -> str:
    """`metric,value` lines, sorted by key, in the units of the module's docstring."""
    lines = []
    for score in sorted(scores, key=lambda one: one.key):
        if score.value is not None:
            percent = score.is_share and not score.key.startswith("verification.")
            lines.append(f"{_csv_field(score.key)},{score.value * (100.0 if percent else 1.0):.6f}")
    return "\n".join(["metric,value", *lines]) + "\n"


def check_places(folder: Path, embeddings: Path | None) -> None:
    """Refuse places that cannot be written, before hours of scoring. Raises OSError."""
    will_write_folder(folder, remedy="say with --out where the results go")
    if embeddings is not None:
        will_write_folder(embeddings, remedy="name another folder with --embeddings")


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it appears whole or not at all. A device or a pipe is written to."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _csv_field(text: str) -> str:
    """Quoted where a file name brings a comma, a quote or a line break into a key."""
    if any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
