"""How far the runs of an ablation are, read from the run folders themselves.

There is no list of what has been done: a run is finished when its newest checkpoint is of its recipe and of its last
epoch, is undamaged, and the scores of every verification set after that epoch stand in its `metrics.jsonl`. Whatever is
less is trained on from where it is, so that a kill at any moment costs what training alone would lose.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adadistill.core.checkpoints import CheckpointError, list_checkpoints, load_checkpoint
from adadistill.core.config.yaml_tree import YamlError
from adadistill.core.recipe import Recipe, dump_recipe, recipe_hash
from adadistill.core.training.metrics_log import read_metrics
from adadistill.core.training.resume_check import recipe_changes
from adadistill.core.training.run_folder import RunFolder, redact_urls, training_code
from adadistill.loaders.atomic_file import write_whole
from adadistill.loaders.evaluation_sets.verification_pairs import verification_set_name
from adadistill.recipes.ablation.plan import AblationError, AblationPlan, PlannedRun

logger = logging.getLogger("adadistill")

BASE_RECIPE = "base.resolved.yaml"


@dataclass(frozen=True, slots=True)
class RunState:
    """Where one run is."""

    stage: Literal["new", "begun", "finished"]
    told: str
    """For people: `not begun`, `begun, epoch 3 of 16`, `finished`."""
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The scores of a finished run by set, as `metrics.jsonl` holds them."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """What the run says that its scores depend on beside its recipe; empty where it has not begun."""
    made_of: Mapping[str, str] = field(default_factory=dict)
    """What stood behind the paths in the recipe of a finished run, by kind: fingerprint of the records, sha256 of the
    teacher where it has one, number of pairs of each set."""


def read_done(paths: Sequence[Path]) -> dict[str, RunState]:
    """Finished runs by recipe hash, out of rows that earlier reports wrote (`ablation.jsonl`), with this training code.

    Rows of other code are left out: they are of another experiment.

    Raises:
        AblationError: a file cannot be read or holds something else than rows of JSON.
    """
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    told: dict[str, tuple[Mapping[str, Any], Path]] = {}
    for path in paths:
        for row in _rows(path):
            if row.get("bench") != "ablation" or row.get("state") != "finished" or not _is_score(row):
                continue
            if row.get("training_code") != training_code():
                logger.warning("%s: rows of other training code count for nothing", path)
                break
            scores.setdefault(str(row.get("recipe_hash")), {})[row["set"]] = row
            told[str(row.get("recipe_hash"))] = (row, path)
    return {
        found: RunState("finished", f"finished, by a row of {path}", scores[found], row, row.get("made_of") or {})
        for found, (row, path) in told.items()
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise AblationError([f"--done {path}: cannot be read as rows of JSON: {error}"]) from error
    return [row for row in rows if isinstance(row, dict)]


def check_folder(plan: AblationPlan) -> None:
    """Refuse a folder that is a file, or holds a run, something unknown, or an ablation of another recipe.

    Nothing is written.

    Raises:
        AblationError: it does.
    """
    folder = plan.folder
    if not folder.exists():
        return
    if not folder.is_dir():
        raise AblationError([f"{folder} is a file; an ablation needs a folder. Give another --out"])
    base = folder / BASE_RECIPE
    if base.exists():
        if differences := _differences(base.read_bytes(), base, plan.base):
            raise AblationError(
                [
                    f"{folder} is the ablation of another recipe; differences (there != now): "
                    f"{'; '.join(differences)}. Give another --out, or the recipe and overrides it was begun with"
                ]
            )
    elif RunFolder(folder).traces_of_a_run():
        raise AblationError([f"{folder} is the folder of one run; give the ablation a folder of its own with --out"])
    # What a kill leaves of a file that was being written begins with a dot.
    elif any(not path.name.startswith(".") for path in folder.iterdir()):
        raise AblationError([f"{folder} is not empty and holds no ablation; give another --out"])


def claim_folder(plan: AblationPlan) -> None:
    """Make the folder of an ablation, or recognise it. Rank 0 calls it. Raises as `check_folder`, and OSError."""
    check_folder(plan)
    base = plan.folder / BASE_RECIPE
    if not base.exists():
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_whole(base, redact_urls(dump_recipe(plan.base)))


def read_states(plan: AblationPlan, done: Mapping[str, RunState] | None = None) -> dict[PlannedRun, RunState]:
    """Where every run of the plan is.

    Args:
        done: runs that were finished elsewhere, as `read_done` gives them; one with a score for every set of the plan
            stands for a run that is not finished here.

    Raises:
        AblationError: run folders hold other recipes than the plan's, or were made of other files; all are named.
    """
    states: dict[PlannedRun, RunState] = {}
    problems: list[str] = []
    for run in plan.runs():
        try:
            states[run] = read_state(run)
            elsewhere = None if done is None else done.get(recipe_hash(run.recipe))
            names = {verification_set_name(path) for path in run.recipe.evaluation.sets}
            if states[run].stage != "finished" and elsewhere is not None and names <= elsewhere.evaluations.keys():
                states[run] = elsewhere
        except AblationError as error:
            problems += error.problems
    if problems:
        raise AblationError(problems)
    refuse_mixtures(states)
    return states


def refuse_mixtures(states: Mapping[PlannedRun, RunState]) -> None:
    """Refuse finished runs whose equal recipes meant other files: a path says nothing of what lay there at the time.

    Raises:
        AblationError: two runs with the same records, teacher or verification set by name had different ones.
    """
    first: dict[tuple[str, str], tuple[PlannedRun, str]] = {}
    problems = []
    for run, state in states.items():
        for kind, content in state.made_of.items():
            named = str(run.recipe.teacher) if kind == "teacher" else run.recipe.data.records
            other, seen = first.setdefault((kind, named), (run, content))
            if seen != content:
                problems.append(
                    f"{run.folder} was trained with another {kind} ({content:.12}) than {other.folder} ({seen:.12}); "
                    "their difference would not be that of the variants. Remove the runs of one of them"
                )
    if problems:
        raise AblationError(problems)


def read_state(run: PlannedRun) -> RunState:
    """Where one run is.

    Raises:
        AblationError: its folder holds a run of another recipe.
    """
    folder = RunFolder(run.folder)
    return dataclasses.replace(_state_of(run, folder), environment=_environment(folder))


def _state_of(run: PlannedRun, folder: RunFolder) -> RunState:
    if folder.recipe.exists():
        _refuse_differences(run, _differences(folder.recipe.read_bytes(), folder.recipe, run.recipe))
    saved = list_checkpoints(run.folder)
    if not saved:
        return RunState("begun", "begun, nothing saved yet") if folder.recipe.exists() else RunState("new", "not begun")
    try:
        checkpoint = load_checkpoint(saved[-1], model_only=True)
    except CheckpointError:
        return RunState("begun", "begun; its newest checkpoint is damaged")
    _refuse_differences(run, _differences(str(checkpoint.state.get("recipe", "")), checkpoint.path, run.recipe))
    position = checkpoint.state.get("position")
    epoch, epochs = position.get("epoch") if isinstance(position, dict) else None, run.recipe.optim.epochs
    if epoch != epochs:
        return RunState("begun", f"begun, epoch {epoch} of {epochs}")
    found = _evaluations(folder.metrics, step=checkpoint.step)
    names = [verification_set_name(path) for path in run.recipe.evaluation.sets]
    if any(name not in found for name in names):
        return RunState("begun", "trained, to be scored")
    return RunState(
        "finished", "finished", {name: found[name] for name in names}, made_of=_made_of(checkpoint.state, found)
    )


def _environment(folder: RunFolder) -> dict[str, Any]:
    try:
        content = json.loads(folder.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _made_of(state: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    teacher, records = state.get("teacher"), state.get("records")
    sha256 = teacher.get("sha256") if isinstance(teacher, dict) else None
    made = {f"verification set {name}": f"{score['pairs']} pairs" for name, score in scores.items()}
    made |= {"records": records} if isinstance(records, str) else {}
    return made | ({"teacher": sha256} if isinstance(sha256, str) else {})


def _refuse_differences(run: PlannedRun, differences: list[str]) -> None:
    if differences:
        raise AblationError(
            [
                f"{run.folder} holds a run of another recipe; differences (there != now): {'; '.join(differences)}. "
                "Give another --out, or remove that folder"
            ]
        )


def _differences(stored: str | bytes, where: Path, recipe: Recipe) -> list[str]:
    """What differs between a stored recipe and one of now, key by key."""
    try:
        return recipe_changes(stored, recipe, source=str(where))
    except YamlError as error:
        raise AblationError([f"{error}\n  It is the record of what was begun there; give another --out"]) from error


def _evaluations(metrics: Path, *, step: int) -> dict[str, dict[str, Any]]:
    """The last scores of each set after a step. A line that is no JSON (of a machine that died) says nothing."""
    rows = (row for row in read_metrics(metrics) if row.get("event") == "evaluation" and row.get("step") == step)
    return {row["set"]: row for row in rows if _is_score(row)}


def _is_score(row: Mapping[str, Any]) -> bool:
    accuracy, pairs = row.get("accuracy"), row.get("pairs")
    known = accuracy is None or (isinstance(accuracy, float) and 0.0 <= accuracy <= 1.0)
    return isinstance(row.get("set"), str) and isinstance(pairs, int) and pairs > 0 and known
