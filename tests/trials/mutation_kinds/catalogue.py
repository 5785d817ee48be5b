"""Every kind of mutation by name: what the child process of a trial is told to run."""

from __future__ import annotations

from collections.abc import Callable

from trials.mutation_kinds.checkpoint_folders import CheckpointFolders
from trials.mutation_kinds.command_lines import CommandLines
from trials.mutation_kinds.index_files import IndexFiles
from trials.mutation_kinds.metadata_files import MetadataFiles
from trials.mutation_kinds.recipe_files import Recipes
from trials.mutation_kinds.record_files import RecordFiles
from trials.mutation_kinds.stored_rows import NpyFiles, StoredRows
from trials.mutation_kinds.trial import MutationKind
from trials.mutation_kinds.verification_sets import VerificationSets
from trials.mutation_kinds.weight_files import WeightFiles

KINDS: dict[str, Callable[[], MutationKind]] = {
    "records": lambda: RecordFiles(sealed=False),
    "sealed_records": lambda: RecordFiles(sealed=True),
    "indices": IndexFiles,
    "verification_sets": VerificationSets,
    "recipes": Recipes,
    "checkpoints": lambda: CheckpointFolders(forged=False),
    "forged_checkpoints": lambda: CheckpointFolders(forged=True),
    "weights": WeightFiles,
    "metadata": MetadataFiles,
    "caches": lambda: StoredRows(packed=False),
    "packed": lambda: StoredRows(packed=True),
    "npy": NpyFiles,
    "command_lines": CommandLines,
}
