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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.loaders.atomic_file import write_whole

if TYPE_CHECKING:
    from adadistill.core.scoring.result import BenchmarkResult, Score

FORMAT = "adadistill-evaluation"
VERSION = 1
_MAX_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """One network on one benchmark."""

    result: BenchmarkResult
    settings: Mapping[str, Any]
    """What, beside network and data, the numbers depend on."""


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
    fed = {**shown, "network": facts.get("network"), "image_size": facts.get("image_size")}
    bound = json.dumps(fed, sort_keys=True)
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
        "sets": {result.name: result.details for result in evaluation.results if result.details},
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
        StoredResultError: it is no evaluation, of another version, or damaged.
    """
    from adadistill.core.scoring.evaluation_config import KINDS
    from adadistill.core.scoring.stored_result import StoredResultError, result_from_json

    with path.open("rb") as file:
        body = file.read(_MAX_BYTES + 1)
    try:
        content = json.loads(body[:_MAX_BYTES])
    except (ValueError, RecursionError) as error:
        raise StoredResultError(f"{path}: no JSON ({error!s:.80})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoredResultError(f"{path}: no evaluation (format must be {FORMAT}); run adadistill evaluate again")
    if content.get("version") != VERSION:
        raise StoredResultError(
            f"{path}: version {content.get('version')!r:.20} of the format, this is {VERSION}; run adadistill evaluate "
            "again"
        )
    name, sets, benchmarks = content.get("name"), content.get("sets"), content.get("benchmarks")
    if not isinstance(name, str) or not isinstance(sets, dict) or not isinstance(benchmarks, list):
        raise StoredResultError(f"{path}: needs a name, an object `sets` and a list `benchmarks`")
    done = []
    for index, one in enumerate(benchmarks):
        if not isinstance(one, dict) or not isinstance(one.get("settings"), dict):
            raise StoredResultError(f"{path}: benchmarks[{index}] must hold settings and a result")
        result = result_from_json(one.get("result"), where=f"{path}: benchmarks[{index}]")
        details = sets.get(result.name) if KINDS[result.kind].flat else None
        if isinstance(details, dict):
            result = replace(result, details=details)
        done.append(Done(result=result, settings=one["settings"]))
    setting = {key: content.get(key) for key in ("precision", "device", "world_size")}
    known = {"format", "version", "name", "sets", "benchmarks", *setting}
    facts = {key: value for key, value in content.items() if key not in known}
    return Evaluation(name=name, facts=facts, setting=setting, done=tuple(done))


def read_evaluations(folder: Path) -> tuple[list[Evaluation], list[str]]:
    """Every evaluation in a folder, by name (numbers in names by value), and why other files were passed over."""
    from adadistill.core.scoring.stored_result import StoredResultError

    found, passed_over = [], []
    for path in sorted(folder.glob("verification-*.json")):
        try:
            found.append(read_evaluation(path))
        except (StoredResultError, OSError) as error:
            passed_over.append(str(error))
    return sorted(found, key=lambda one: (one.facts.get("checkpoint") is None, one.name)), passed_over


def csv_text(scores: Sequence[Score]) -> str:
    """`metric,value` lines, sorted by key, in the units of the module's docstring."""
    from adadistill.core.scoring.evaluation_config import kind_of

    lines = []
    for score in sorted(scores, key=lambda one: one.key):
        if score.value is not None:
            kind = kind_of(score.key)
            percent = score.is_share and (kind is None or kind.percent_in_csv)
            lines.append(f"{_csv_field(score.key)},{score.value * (100.0 if percent else 1.0):.6f}")
    return "\n".join(["metric,value", *lines]) + "\n"


def _csv_field(text: str) -> str:
    """Quoted where a file name brings a comma, a quote or a line break into a key."""
    return '"' + text.replace('"', '""') + '"' if any(character in text for character in ',"\r\n') else text
