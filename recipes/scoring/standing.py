"""Networks side by side: which one is the best, in a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adadistill.core.scoring.evaluation_config import kind_of
from adadistill.core.scoring.tables import aligned_table
from adadistill.recipes.scoring.files import FORMAT, VERSION, Evaluation

SUMMARY = "evaluations.json"
"""The file of a comparison, beside those of its networks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Networks compared."""

    best_by: str | None
    """Key, or None for the mean of the headlines."""
    evaluations: tuple[Evaluation, ...]
    failures: Mapping[str, str] = field(default_factory=dict)
    """Network -> why it was not scored."""

    def merit(self, evaluation: Evaluation) -> float | None:
        """What networks are ordered by; None where it is withheld."""
        if self.best_by is not None:
            score = evaluation.score(self.best_by)
            return None if score is None else score.value
        common = set.intersection(*(set(one.headlines) for one in self.evaluations)) if self.evaluations else set()
        values = [evaluation.headlines[key] for key in sorted(common)]
        return sum(values) / len(values) if values else None

    @property
    def best(self) -> Evaluation | None:
        """The first of those with the best value."""
        kind = None if self.best_by is None else kind_of(self.best_by)
        sign = -1.0 if kind is not None and str(self.best_by).endswith(kind.lower_is_better) else 1.0
        ranked = [(one, merit) for one in self.evaluations if (merit := self.merit(one)) is not None]
        return max(ranked, key=lambda pair: sign * pair[1])[0] if ranked else None


def read_best_by(folder: Path) -> str | None:
    """The key that the last comparison in a folder chose by; None where it was the mean, or there was none."""
    try:
        content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    best_by = content.get("best_by") if isinstance(content, dict) else None
    return best_by if isinstance(best_by, str) else None


def standing_json(standing: Standing) -> dict[str, Any]:
    """The comparison as JSON; rates are shares."""
    best = standing.best
    return {
        "format": f"{FORMAT}-comparison",
        "version": VERSION,
        "best_by": standing.best_by,
        "best": None if best is None else best.name,
        "networks": [
            {"name": one.name, "sha256": one.sha256, "merit": standing.merit(one), "headlines": one.headlines}
            for one in standing.evaluations
        ],
        "failures": dict(standing.failures),
    }


def standing_table(standing: Standing) -> str:
    """One row a network: headlines in percent, what they are ordered by, and which is the best."""
    keys = list(dict.fromkeys(result.headline for one in standing.evaluations for result in one.results))
    names = {result.headline: result.name for one in standing.evaluations for result in one.results}
    head = ["network", *(names[key] for key in keys), standing.best_by or "mean", ""]
    rows = [
        [
            one.name,
            *(_percent(one.headlines.get(key)) for key in keys),
            _merit(standing, one),
            "best" if one is standing.best else "",
        ]
        for one in standing.evaluations
    ]
    failed = (f"{name}: not scored: {why}" for name, why in standing.failures.items())
    return "\n".join([aligned_table(head, rows), *failed])


def _merit(standing: Standing, one: Evaluation) -> str:
    merit = standing.merit(one)
    if merit is None or not math.isfinite(merit):
        return "-"
    score = one.score(standing.best_by) if standing.best_by is not None else None
    return f"{merit:.5f}" if score is not None and not score.is_share else _percent(merit)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:.2f}"
