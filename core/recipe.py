"""A recipe: everything that decides what a training run computes, read strictly from YAML.

The sections are config classes that live beside what they configure; this file composes them, checks what no section
can check alone, and gives a recipe its hash. A recipe names no device, no number of ranks and no output folder: these
belong to a launch, so the same recipe resumes elsewhere. Paths in a recipe (`data.records`, `teacher.*`,
`centres.path`, `evaluation.sets`) are relative to the working directory of the launch, not to the recipe's file.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adadistill.core.backbones import BackboneConfig
from adadistill.core.checkpoints import CheckpointConfig
from adadistill.core.config.stored import stored_differences
from adadistill.core.config.strict_yaml import (
    LoadedConfig,
    RecipeError,
    parse_config,
    read_config,
    read_overlaid_config,
)
from adadistill.core.config.text import canonical_json, config_differences, dump_config
from adadistill.core.method.class_centres import CentresConfig
from adadistill.core.method.geometry_margin import GeometryMarginConfig
from adadistill.core.method.heads import HEADS, HeadConfig
from adadistill.core.method.terms.config import TermsConfig
from adadistill.core.method.terms.regression import RegressionConfig
from adadistill.core.precision import PrecisionName
from adadistill.core.scoring.evaluation_config import EvaluationConfig
from adadistill.core.seeding import derive_seed
from adadistill.core.teachers import TeacherConfig
from adadistill.core.training.metrics_log import LogConfig
from adadistill.core.training.non_finite import GuardConfig
from adadistill.core.training.optimiser import OptimConfig
from adadistill.core.training.student_compiler import CompileMode
from adadistill.loaders.augment.augment_policy import MAX_AUGMENTED_SIDE, Augmentation, AugmentConfig
from adadistill.loaders.pipelines.pipeline import DataConfig

GONE_KEYS: Mapping[str, object] = {}
"""Dotted keys that recipes once had, with the value that means what is now always done. A run that stored another value
does not go on; one that is read as a recipe is refused as any unknown key."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a training run computes."""

    name: str
    """What reports call the run, and the default name of its folder. Letters, digits, `.`, `_` and `-`."""
    seed: int = 2048
    """Where every random stream starts: sample order, mirroring, initial weights and centres. In [0, 2^63). 2048 as in
    insightface's training."""
    data: DataConfig
    """Training records and how they are read."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to training images beyond mirroring."""
    teacher: TeacherConfig | None = None
    """Where teacher embeddings come from. Needed by adaptive centres, regression and the geometry margin; leave it out
    (or null) where none of them is used."""
    student: BackboneConfig = field(default_factory=BackboneConfig)
    """The network that is trained."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Margins of the loss."""
    centres: CentresConfig = field(default_factory=CentresConfig)
    """Class centres that the loss compares with."""
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    """Pull towards the teacher's embedding of the same image, beside the loss on the class centres or alone."""
    terms: TermsConfig = field(default_factory=TermsConfig)
    """Further losses against the teacher, added up by their weights: relations, similarities, its softmax."""
    geometry_margin: GeometryMarginConfig = field(default_factory=GeometryMarginConfig)
    """Extra margin where the student lags behind a confident teacher."""
    optim: OptimConfig
    """Optimiser, learning-rate schedule and length of training."""
    precision: PrecisionName = "auto"
    """Number format of the student: `auto` is bfloat16 autocast on CUDA and float32 on the CPU; float64 is for
    comparing implementations. Norms, margins, softmax and moving averages are never below float32."""
    compile: CompileMode = "off"
    """Run the student through `torch.compile`, in one of its modes: `default`; `reduce-overhead` (CUDA graphs, for
    small batches, whose launches cost more than their kernels); `max-autotune` and `max-autotune-no-cudagraphs` (tries
    kernels for minutes). `off` is the default: the first steps cost minutes, which long runs on CUDA earn back. What
    was measured is in docs/performance.md."""
    deterministic: bool = False
    """Only use algorithms that give the same bits again on the same hardware. Off, as some are slower on CUDA."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """What happens when a step is not finite."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Verification during training."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the run is saved."""
    log: LogConfig = field(default_factory=LogConfig)
    """How often the run speaks."""

    def __post_init__(self) -> None:
        problems = [*self._own_problems(), *self._size_problems(), *self._method_problems()]
        if problems:
            raise ValueError("\n".join(problems))

    def _own_problems(self) -> list[str]:
        problems = []
        if not _NAME.fullmatch(self.name):
            problems.append(f"name must be letters, digits, '.', '_' and '-', at most 100, got {self.name[:120]!r}")
        if not 0 <= self.seed < 2**63:
            problems.append(f"seed must be in [0, 2^63), got {self.seed}")
        return problems

    def _size_problems(self) -> list[str]:
        problems = []
        if self.data.image_size % 16 != 0:
            problems.append(f"data.image_size must be a multiple of 16 for any student, got {self.data.image_size}")
        if self.augment.alters_pixels and self.data.image_size > MAX_AUGMENTED_SIDE:
            problems.append(
                f"augment works on images of up to {MAX_AUGMENTED_SIDE} pixels a side, data.image_size is "
                f"{self.data.image_size}; set augment.policy to none"
            )
        if self.data.global_batch_size < 2:
            problems.append(
                "data.global_batch_size must be at least 2, since batch norm and AdaFace's statistics need a spread, "
                f"got {self.data.global_batch_size}"
            )
        if self.optim.warmup_epochs > self.optim.epochs:
            problems.append(
                f"optim.warmup_epochs must not exceed optim.epochs, got {self.optim.warmup_epochs} "
                f"and {self.optim.epochs}"
            )
        return problems

    def _method_problems(self) -> list[str]:
        return [
            *self._centre_problems(), *self._geometry_problems(), *self._term_problems(), *self._teacher_problems(),
        ]  # fmt: skip

    @property
    def _compares(self) -> str | None:
        """The key that asks for the teacher's embedding of each image in a loss; None where no loss does."""
        if self.regression.weight > 0.0:
            return f"regression.weight {self.regression.weight}"
        return next((f"terms.{name}" for name in self.terms.chosen), None)

    def _term_problems(self) -> list[str]:
        problems = []
        for name, term in self.terms.chosen.items():
            if term.needs_centres and self.centres.kind not in ("adaptive", "frozen"):
                problems.append(
                    f"terms.{name} compares with class centres in the teacher's space and needs centres.kind adaptive "
                    f"or frozen, got {self.centres.kind}"
                )
        bank, batch = self.terms.similarities, self.data.global_batch_size
        if bank is not None and bank.bank < batch:
            problems.append(f"terms.similarities.bank must hold a global batch, {batch} images, got {bank.bank}")
        return problems

    def _centre_problems(self) -> list[str]:
        problems = []
        if self.centres.kind == "adaptive" and self.teacher is None:
            problems.append(
                "centres.kind adaptive averages the embeddings of a teacher, and there is no teacher; add one, or set "
                "centres.kind to trainable"
            )
        if self.centres.kind == "none" and self._compares is None:
            problems.append(
                "centres.kind none leaves regression alone to train by, and regression.weight is 0; set it or one of "
                "terms, or choose other centres"
            )
        return problems

    def _geometry_problems(self) -> list[str]:
        mode, kind = self.geometry_margin.mode, self.centres.kind
        if mode == "off":
            return []
        problems = []
        if not HEADS[self.head.kind].takes_geometry:
            heeding = " or ".join(name for name, head in HEADS.items() if head.takes_geometry)
            problems.append(f"geometry_margin.mode {mode} needs head.kind {heeding}, got {self.head.kind}")
        if mode == "headroom" and kind != "adaptive":
            problems.append(
                f"geometry_margin.mode headroom needs centres.kind adaptive, got {kind}: it replaces the confidence of "
                "centres that move with every image"
            )
        elif kind not in ("adaptive", "frozen"):
            problems.append(
                f"geometry_margin.mode {mode} needs a teacher and centres.kind adaptive or frozen, got {kind}"
            )
        if kind == "frozen" and self.teacher is None:
            problems.append(
                f"geometry_margin.mode {mode} compares the student with a teacher, and there is no teacher; add one, "
                "or set geometry_margin.mode to off"
            )
        return problems

    def _teacher_problems(self) -> list[str]:
        """A teacher that is missing where it is needed, or would run for nothing; adaptive centres speak for theirs."""
        kind, asks = self.centres.kind, self._compares
        if self.teacher is None:
            if kind == "none":
                return [
                    "centres.kind none learns from a teacher alone, and there is no teacher; add one, or choose other "
                    "centres"
                ]
            if asks is not None and kind != "adaptive":
                off = "set regression.weight to 0" if self.regression.weight > 0.0 else "leave it out"
                return [f"{asks} asks for a teacher's embeddings, and there is no teacher; add one, or {off}"]
            return []
        if self.augment.alters_pixels and self.augment.views is None and self.teacher.cache is not None:
            return [
                "teacher.cache holds embeddings of fixed images, and augment draws others every epoch; set "
                "augment.views to the number of views that training shall cycle through, leave out teacher.cache, or "
                "set augment.policy to none"
            ]
        if kind == "trainable" and asks is None:
            return [
                "teacher would not be used, since centres.kind is trainable; remove it (null), set centres.kind to "
                "adaptive, or set regression.weight"
            ]
        if kind == "frozen" and asks is None and self.geometry_margin.mode == "off":
            return [
                "teacher would not be used, since centres.kind is frozen; remove it (null), or set regression.weight "
                "or geometry_margin.mode"
            ]
        return []


def load_recipe(recipe: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a file, or a shipped one by its bare name.

    Args:
        recipe: path of a YAML file, or the name of a shipped recipe (`ms1mv2_ir50_to_mobilefacenet`). A file wins.
        overrides: `key.path=value`, see `strict_yaml.read_config`.

    Raises:
        RecipeError: anything is wrong, with everything that is.
    """
    return resolve_recipe(recipe, overrides).config


def resolve_recipe(recipe: Path | str, overrides: Iterable[str] = ()) -> LoadedConfig[Recipe]:
    """As `load_recipe`, with where each value came from: a default, a line of a file, or an override."""
    return read_config(Recipe, find_recipe(recipe), overrides)


def load_overlaid_recipe(
    recipe: Path | str,
    overrides: Iterable[str] = (),
    *,
    overlay: Path | str | None,
    overlay_overrides: Iterable[str] = (),
) -> Recipe:
    """As `load_recipe`, with a YAML file of recipe keys and then further overrides laid over the result.

    Raises:
        RecipeError: anything is wrong with the whole that this gives.
    """
    return read_overlaid_config(
        Recipe, find_recipe(recipe), overrides, overlay=overlay, overlay_overrides=overlay_overrides
    ).config


def parse_recipe(text: str | bytes, *, source: str = "recipe", overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from YAML text, such as `dump_recipe` gives. It cannot have a `base`.

    Raises:
        RecipeError: as `load_recipe`; `source` stands for the file.
    """
    return parse_config(Recipe, text, source=source, overrides=overrides).config


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    folder = Path(__file__).resolve().parent.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: Path | str) -> Path:
    """The file that a path or a bare name means.

    Raises:
        RecipeError: there is no such file and no shipped recipe of that name.
    """
    path = Path(recipe)
    try:
        if path.is_file():
            return path
        exists = path.exists()
    except (OSError, ValueError):  # too long, or a NUL
        exists = False
    shipped = shipped_recipes()
    name = path.name.removesuffix(".yaml")
    if path.name == str(recipe) and name in shipped:
        return shipped[name]
    if exists:
        raise RecipeError(str(recipe), ["is not a regular file"])
    close = difflib.get_close_matches(name[:100], shipped, n=1)
    suggestion = f"did you mean {close[0]}?" if close else "`adadistill recipes ls` lists those"
    raise RecipeError(str(recipe), [f"there is no such file, and no shipped recipe of that name; {suggestion}"])


def recipe_augmentation(recipe: Recipe) -> Augmentation:
    """What a recipe does to its training images, mirroring included; the same on all ranks."""
    return Augmentation(
        recipe.augment,
        mirror_probability=recipe.data.mirror_probability,
        seed=derive_seed(recipe.seed, "mirror") if recipe.augment.seed is None else recipe.augment.seed,
        image_size=recipe.data.image_size,
    )


def dump_recipe(recipe: Recipe) -> str:
    """YAML of every value, in a fixed order. Reading it gives an equal recipe with the same hash."""
    return dump_config(recipe)


def recipe_hash(recipe: Recipe) -> str:
    """sha256 over all values that do not stand at their defaults, 64 hex digits; how they were written does not matter.

    It names a recipe in reports. Whether a run may go on is decided by its values, see `stored_recipe_differences`.
    """
    return hashlib.sha256(canonical_json(recipe).encode("ascii")).hexdigest()


def recipe_differences(first: Recipe, second: Recipe) -> list[str]:
    """What differs between two recipes, by dotted key with both values: `optim.lr: 0.1 != 0.2`."""
    return config_differences(first, second)


def stored_recipe_differences(
    stored: str | bytes, recipe: Recipe, *, source: str, clean: Callable[[str], str] = str
) -> list[str]:
    """As `recipe_differences`, between what `dump_recipe` once gave, maybe of an older version, and a recipe of now.

    Args:
        source: where it was stored, for errors.
        clean: applied to both texts before they are compared.

    Raises:
        YamlError: it is no YAML.
    """
    text = stored.decode("utf-8", "surrogateescape") if isinstance(stored, bytes) else stored
    return stored_differences(Recipe, clean(text), clean(dump_recipe(recipe)), source=source, gone=GONE_KEYS)
