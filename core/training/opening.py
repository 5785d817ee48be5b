"""The opening of a run: everything that can refuse it, looked at before anything is written or trained.

The looks come in the order in which mistakes are cheapest to find. A launch stops at the first refusal. A dry run takes
the very same looks, notes what each refuses and goes on to the next, so what it finds is what a launch would say.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from adadistill.core.checkpoints import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    newest_valid_checkpoint,
    resolve_checkpoint,
)
from adadistill.core.distributed import Ranks, run_on_main
from adadistill.core.memory import checkpoint_space
from adadistill.core.method.centre_files import read_centres
from adadistill.core.method.class_sample import sample_problem
from adadistill.core.method.frozen_centres import FrozenCentres, load_frozen_centres
from adadistill.core.network_cost import network_values
from adadistill.core.precision import Precision, resolve_precision
from adadistill.core.recipe import Recipe, recipe_augmentation
from adadistill.core.scoring.benchmark import Benchmark, ScoringTerms
from adadistill.core.scoring.evaluation_config import open_benchmarks
from adadistill.core.seeding import derive_seed
from adadistill.core.teachers import BuiltTeacher, TeacherConfig, build_teacher, load_source
from adadistill.core.teachers.sources import network_source
from adadistill.core.teachers.stored_embeddings import open_embeddings
from adadistill.core.training.apex_sgd import require_apex
from adadistill.core.training.compiler_check import require_compilers, teacher_switches
from adadistill.core.training.folder_owner import Launch, refuse_owned
from adadistill.core.training.metrics_sinks import require_sinks
from adadistill.core.training.rank_agreement import require_same_records, require_sound_labels
from adadistill.core.training.restarts import restart_count
from adadistill.core.training.resume_check import (
    refuse_at_the_door,
    refuse_other_beginning,
    refuse_other_centres,
    refuse_other_run,
    refuse_other_teacher,
)
from adadistill.core.training.run_folder import RunFolder
from adadistill.kernels.triton_use import SWITCH
from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.block_store.teacher_cache import TeacherCache
from adadistill.loaders.pipelines.pipeline import named_records, open_store, require_decoder
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.records.image_source import ImageSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunParts:
    """What a run is made of once its files have been found good."""

    records: ImageSource
    order: SampleOrder
    augmentation: Augmentation
    precision: Precision
    teacher: BuiltTeacher | None
    frozen_centres: FrozenCentres | None
    benchmarks: tuple[Benchmark, ...]


class Opening:
    """The looks of one launch, and what they have found; None where a look refused, or came too late to be taken.

    Args:
        recipe: what is to be trained; `run_folder`: where, which no look writes into.
        ranks: who takes part in the looks; all of them call each method together.
        world_size: processes of the launch, where fewer look: a dry run looks alone.
        noted: holds each look. A dry run's notes what the look refuses; by default it is raised.
        leaves_no_trace: a teacher that loading would download or lock is not loaded.
    """

    def __init__(
        self,
        recipe: Recipe,
        run_folder: RunFolder,
        ranks: Ranks,
        *,
        world_size: int | None = None,
        noted: Callable[[], AbstractContextManager[object]] = nullcontext,
        leaves_no_trace: bool = False,
    ) -> None:
        self.recipe, self.run_folder, self.ranks = recipe, run_folder, ranks
        self.world_size = ranks.world_size if world_size is None else world_size
        self._noted, self._leaves_no_trace = noted, leaves_no_trace
        self.restarted = False
        self.switches = training_switches(recipe, ranks.device)
        self.augmentation = recipe_augmentation(recipe)
        self.precision: Precision | None = None
        self.records: ImageSource | None = None
        self.order: SampleOrder | None = None
        self.teacher: BuiltTeacher | None = None
        self.frozen_centres: FrozenCentres | None = None
        self.benchmarks: tuple[Benchmark, ...] = ()
        self.checkpoint: Checkpoint | None = None
        self._named_checkpoint: Path | None = None

    def look_at_folder(self, launch: Launch, *, resume: str, take_over: bool) -> None:
        """Whose the run folder is, and whether it may take this run."""
        with self._noted():
            run_on_main(lambda: self._refuse_owned(launch, take_over=take_over), self.ranks)
            self.restarted = _is_restart(self.run_folder, launch, self.ranks)
        with self._noted():
            resuming = resume != "none" or self.restarted
            run_on_main(lambda: self.run_folder.refuse_other_run(resuming=resuming), self.ranks)

    def look_at_resume(self, *, resume: str, resume_allow: Sequence[str]) -> None:
        """Whether what is to be gone on from is a checkpoint of this recipe, as far as little files tell.

        A restart, which goes on from what it has saved itself, has passed this look when the launch began.
        """
        if resume == "none" or self.restarted:
            return
        with self._noted():
            self._named_checkpoint = run_on_main(
                lambda: refuse_at_the_door(self.recipe, self.run_folder, resume, resume_allow), self.ranks
            )

    def look_at_machine(self) -> None:
        """Compilers and packages that the recipe asks for."""
        recipe, ranks = self.recipe, self.ranks
        with self._noted():
            require_compilers(self.switches, ranks)
        with self._noted():
            require_sinks(tensorboard=recipe.log.tensorboard, wandb=recipe.log.wandb)
        if recipe.optim.backend == "apex":
            with self._noted():
                require_apex(ranks.device)
        with self._noted():
            self.precision = resolve_precision(recipe.precision, ranks.device)
        with self._noted():
            require_decoder(recipe.data, ranks.device)
        with self._noted():
            network_values(recipe.student, recipe.data.image_size)  # refuses a size that the network does not take

    def look_at_files(self) -> None:
        """Every file that the run reads, in whole or in part."""
        with self._noted():
            records = named_records(self.recipe.data)
            len(records), records.num_classes  # what is not right with a file is raised when it is asked
            self.records = records
        if self.records is not None:
            self._look_at_records(self.records)
        with self._noted():
            self.teacher = self._teacher()
        if self.recipe.centres.path is not None:
            with self._noted():
                self.frozen_centres = self._frozen_centres(self.recipe.centres.path)
        self._look_at_evaluation()
        with self._noted():
            run_on_main(self._refuse_full_disk, self.ranks)

    def choose_checkpoint(self, *, resume: str, resume_allow: Sequence[str]) -> None:
        """The checkpoint to go on from, if any, found to be of this recipe and these files, as is the folder.

        Called once the folder is this launch's: nobody else saves there any more.
        """
        with self._noted():
            self.checkpoint = self._find_checkpoint(resume)
        if (found := self.checkpoint) is not None:
            with self._noted():
                refuse_other_run(self.recipe, self.records, found, resume_allow)
            with self._noted():
                refuse_other_centres(self.frozen_centres, found)
                refuse_other_teacher(self.teacher, found)
        path = None if found is None else found.path
        if resume != "none" or self.restarted:
            with self._noted():
                run_on_main(
                    lambda: refuse_other_beginning(self.recipe, self.run_folder, path, resume_allow), self.ranks
                )

    def parts(self) -> RunParts:
        """What was opened, when every look has passed."""
        assert self.precision is not None, "every look was taken"
        assert self.records is not None, "every look was taken"
        assert self.order is not None, "every look was taken"
        return RunParts(
            records=self.records,
            order=self.order,
            augmentation=self.augmentation,
            precision=self.precision,
            teacher=self.teacher,
            frozen_centres=self.frozen_centres,
            benchmarks=self.benchmarks,
        )

    def _refuse_owned(self, launch: Launch, *, take_over: bool) -> None:
        if self._leaves_no_trace and (reason := refuse_owned(self.run_folder.path, launch, take_over=take_over)):
            logger.warning("%s", reason)  # a launch says so when it takes the folder
        else:
            refuse_owned(self.run_folder.path, launch, take_over=take_over)

    def _look_at_records(self, records: ImageSource) -> None:
        data, ranks, centres = self.recipe.data, self.ranks, self.recipe.centres
        with self._noted():
            require_same_records(records, ranks)
            require_sound_labels(data, records, ranks, needs_several=centres.kind != "none")
        with self._noted():
            order = SampleOrder(len(records), data.global_batch_size, derive_seed(self.recipe.seed, "sample_order"))
            data.parts(order.local_batch_size(self.world_size))
            self.order = order
        if data.packed is not None:
            with self._noted():
                open_store(data, records)
        with self._noted():
            self._refuse_other_size(records)
        if centres.placement == "sharded" and records.num_classes < self.world_size:
            with self._noted():
                raise ValueError(
                    f"centres.placement sharded cannot spread {records.num_classes} identities over "
                    f"{self.world_size} ranks; start fewer processes, or set centres.placement=replicated"
                )
        with self._noted():
            self._refuse_unfit_sizes(records)

    def _refuse_unfit_sizes(self, records: ImageSource) -> None:
        """What a recipe counts in images or identities must fit those of the records."""
        data, centres, similarities = self.recipe.data, self.recipe.centres, self.recipe.terms.similarities
        if similarities is not None and similarities.bank > len(records):
            raise ValueError(
                f"terms.similarities.bank holds {similarities.bank} images, {records.path} has {len(records)}; set it "
                "to at most that"
            )
        shards = self.world_size if centres.placement == "sharded" else 1
        smallest = records.num_classes // shards
        if problem := sample_problem(centres.sample_rate, smallest, data.global_batch_size):
            raise ValueError(problem)

    def _refuse_other_size(self, records: ImageSource) -> None:
        """One image tells of most whether data.image_size is theirs. One that is damaged is met in training."""
        import simplejpeg

        data = self.recipe.data
        if data.wrong_size != "refuse" or data.on_damaged != "stop" or data.packed is not None:
            return
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(records.read(0).body)
        except ValueError:  # damaged, or no JPEG
            return
        if (height, width) != (data.image_size, data.image_size):
            raise ValueError(
                f"data.image_size is {data.image_size}, and {records.path} begins with an image of {width} x {height}; "
                "set it to the size of the images, or data.wrong_size=resize"
            )

    def _teacher(self) -> BuiltTeacher | None:
        config, recipe = self.recipe.teacher, self.recipe
        if config is None or (self._leaves_no_trace and _leaves_a_trace(config)):
            return None
        if self.records is None or self.precision is None:  # what can be said without the records
            if config.source is not None:
                load_source(config, image_size=recipe.data.image_size, ranks=self.ranks)
            elif config.cache is not None:
                TeacherCache(config.cache)
            elif config.embeddings is not None:
                open_embeddings(Path(config.embeddings))
            return None
        return build_teacher(
            config,
            records=self.records,
            data=recipe.data,
            augmentation=self.augmentation,
            embedding_dim=recipe.student.embedding_dim,
            precision=self.precision,
            ranks=self.ranks,
            sets=recipe.evaluation.sets,
        )

    def _frozen_centres(self, path: str) -> FrozenCentres | None:
        if self.records is None:
            read_centres(path)
            return None
        return load_frozen_centres(
            path,
            records=self.records,
            embedding_dim=self.recipe.student.embedding_dim,
            precision=resolve_precision(self.recipe.precision, self.ranks.device),
            ranks=self.ranks,
        )

    def _look_at_evaluation(self) -> None:
        terms = ScoringTerms(image_size=self.recipe.data.image_size, ranks=self.ranks, intervals=False)
        for kind, paths in self.recipe.evaluation.paths.items():
            with self._noted():
                self.benchmarks += open_benchmarks({kind: paths}, terms)

    def _refuse_full_disk(self) -> None:
        if self.records is None or self.order is None:
            return
        space = checkpoint_space(
            self.recipe,
            self.run_folder.path,
            identities=self.records.num_classes,
            steps_per_epoch=self.order.steps_per_epoch,
        )
        if space.free_bytes is not None and space.needed_bytes > space.free_bytes:
            raise ValueError(
                f"too little room for the checkpoints of run folder {self.run_folder.path}: {space.most_at_once} at "
                f"once of {space.one_bytes / 1e9:.2f} GB need {space.needed_bytes / 1e9:.2f} GB more, "
                f"{space.free_bytes / 1e9:.2f} GB are free; make room, give --out another disk, or lower "
                f"checkpoint.keep ({self.recipe.checkpoint.keep})"
            )

    def _find_checkpoint(self, resume: str) -> Checkpoint | None:
        """The checkpoint to go on from; all ranks take the one that rank 0 found."""
        ranks = self.ranks
        own_rows_of = (ranks.rank, ranks.world_size) if self.recipe.centres.placement == "sharded" else None
        if self.restarted:
            found = _newest_checkpoint(self.run_folder, own_rows_of, ranks)
            if found is not None or resume == "auto":
                return found
        if resume == "none":
            return None
        if resume != "auto":
            return load_checkpoint(self._named_checkpoint or resolve_checkpoint(resume), own_rows_of=own_rows_of)
        return _newest_checkpoint(self.run_folder, own_rows_of, ranks)


def _leaves_a_trace(config: TeacherConfig) -> bool:
    """Whether loading a teacher would write: one of CVLface is downloaded and locked where it is used first."""
    source = network_source(config)
    return source is not None and source.writes(config)


def _is_restart(run_folder: RunFolder, launch: Launch, ranks: Ranks) -> bool:
    """Whether torchrun has started this launch again, after it had begun or continued the run in this folder.

    Where it had not, because it was refused or died before, the restart is told nothing new and begins as the first.
    """
    if launch.restarts == 0:
        return False
    own = run_on_main(lambda: run_folder.belongs_to(launch.agents), ranks)
    if own and ranks.is_main:
        count = restart_count() or launch.restarts
        logger.info("torchrun has started this launch again (restart %d); %s is its own", count, run_folder.path)
    return own


def _newest_checkpoint(run_folder: RunFolder, own_rows_of: tuple[int, int] | None, ranks: Ranks) -> Checkpoint | None:
    found: list[Checkpoint] = []

    def find() -> str:
        newest, skipped = newest_valid_checkpoint(run_folder.path, own_rows_of=own_rows_of)
        for bad, reason in skipped:
            logger.warning("checkpoint %s is passed over: %s", bad, reason)
        if newest is None and skipped:
            raise CheckpointError(
                f"{run_folder.path} holds {len(skipped)} checkpoint(s) and none is valid:\n  "
                + "\n  ".join(reason for _, reason in skipped)
                + "\n  Restore one of them, or move them away to start the run anew"
            )
        found.extend([] if newest is None else [newest])
        return "" if newest is None else str(newest.path)

    path = run_on_main(find, ranks)
    if ranks.is_main or not path:
        return found[0] if found else None
    return load_checkpoint(path, own_rows_of=own_rows_of)


def training_switches(recipe: Recipe, device: torch.device) -> list[str]:
    """What switches off everything that a training run compiles; empty where it compiles nothing."""
    switches = [] if recipe.compile == "off" else ["compile=off"]
    if recipe.teacher is not None and recipe.teacher.cache is None:
        switches += teacher_switches(recipe.teacher, device)
    if device.type == "cuda" and os.environ.get(SWITCH) != "torch" and os.environ.get("TRITON_INTERPRET") != "1":
        switches.append(f"{SWITCH}=torch in the environment")  # kernels of ours
    return switches
