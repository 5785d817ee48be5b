"""What a recipe may not ask of its terms, and what the records may not give them: named before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.config.strict_yaml import RecipeError
from adadistill.core.distributed import Ranks
from adadistill.core.training.run import run_training

ALONE = {"centres__kind": "none", "geometry_margin__mode": "off"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"terms__relations__weight": 1.0}, "unknown key `terms.relations`"),
     ({"terms__distances__weight": -1.0}, "weight must be positive and finite"),
     ({"terms__angles__weight": 1.0, "terms__angles__group": 2}, r"group must be in \[3, 1024\], got 2"),
     ({"terms__similarities__weight": 1.0, "terms__similarities__bank": 7}, r"hold a global batch, 8 images, got 7"),
     ({"terms__teacher_classes__weight": 1.0, **ALONE}, "needs centres.kind adaptive or frozen, got none"),
     ({"terms__distances__weight": 1.0, "teacher": "null", **ALONE, "centres__kind": "trainable"},
      "terms.distances asks for a teacher's embeddings, and there is no teacher"),
     (ALONE, "set it or one of terms"),
     ({"regression__hardest": 0.0}, r"hardest must be in \(0, 1\]")],
)  # fmt: skip
def test_a_recipe_whose_terms_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(tmp_path, **changes)


def test_terms_without_centres_need_no_regression(tmp_path: Path):
    assert tiny_recipe(tmp_path, terms__distances__weight=1.0, **ALONE).regression.weight == 0.0


def test_a_bank_or_a_sample_that_does_not_fit_the_records_is_refused_at_the_door(tmp_path: Path):
    write_tiny_records(tmp_path)  # 48 images of 6 identities
    bank = {"terms__similarities__weight": 1.0, "terms__similarities__bank": 49}
    with pytest.raises(ValueError, match=r"bank holds 49 images, .* has 48; set it to at most that"):
        run_training(tiny_recipe(tmp_path, **bank), tmp_path / "bank", ranks=Ranks())
    with pytest.raises(ValueError, match=r"draws 3 of 6 identities a step, fewer than the 8 images"):
        run_training(tiny_recipe(tmp_path, centres__sample_rate=0.5), tmp_path / "sample", ranks=Ranks())
    assert not (tmp_path / "bank" / "checkpoints").exists()
