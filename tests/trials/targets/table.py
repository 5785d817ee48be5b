"""Every target by name: the files, their damage, what holding means, which errors may refuse them, what makes them."""

from __future__ import annotations

from functools import partial

from adadistill.core.backbones.weight_files import WeightFileError
from adadistill.core.checkpoints import CheckpointError
from adadistill.core.config.strict_yaml import RecipeError
from adadistill.core.npy_files import NpyFileError
from adadistill.core.teachers import TeacherError
from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.evaluation_sets.verification_pairs import VerificationSetError
from adadistill.loaders.pixels import ImageDecodeError
from adadistill.loaders.safe_pickle import TorchMetadataError
from trials.targets.checkpoints import damaged_checkpoints, forged_checkpoints
from trials.targets.command_lines import command_lines, resumed_runs
from trials.targets.recipes import recipe_files
from trials.targets.records import REFUSALS, index_files, record_files
from trials.targets.stores import npy_files, stored_rows
from trials.targets.target import Target
from trials.targets.verification_sets import verification_sets
from trials.targets.weights import metadata_files, weight_files

_RECORDS = "bit flips, edits, cuts, splices, fields that lie, part chains, images that attack"
_STORE = "bit flips, cuts, splices of any of its files; headers that lie, with their own sha256 right"
_WHOLE = "an error of the store names the folder, or every row as it was written"

TARGETS: dict[str, Target] = {
    "checkpoints": Target(
        "checkpoint", "", "found, the file named, the newest undamaged checkpoint used",
        (), damaged_checkpoints, trials=2000,
    ),
    "resumed_runs": Target(
        "training run", "any damage to a file of its newest checkpoint",
        "resumes from the one before, ends in the same bits", (), resumed_runs, trials=50,
    ),
    "records": Target(
        "record file", _RECORDS,
        "a RecordError or ImageDecodeError names the file, or images of the right size with labels in range",
        REFUSALS, partial(record_files, sealed=False),
    ),
    "sealed_records": Target(
        "record file with a seal", _RECORDS.removesuffix(", images that attack"),
        "every change is found by the check, and no record reads otherwise than it was",
        REFUSALS, partial(record_files, sealed=True),
    ),
    "indices": Target(
        "index file",
        "bit flips, cuts, odd encodings and numbers, offsets doubled, negative, overlapping, past the end",
        "record ids are those of the sound index, read or rebuilt by a scan; or a RecordError names the file",
        REFUSALS, index_files,
    ),
    "verification_sets": Target(
        "verification set",
        "bit flips, cuts, splices; pickles that execute, under protocols 0 to 5; memo, length and image bombs",
        "a VerificationSetError or ImageDecodeError names the file, or pairs of images of one size; nothing runs",
        (VerificationSetError, ImageDecodeError), verification_sets,
    ),
    "recipes": Target(
        "recipe",
        "bit flips, cuts, odd encodings and numbers, values of every type in every key, nesting and alias bombs",
        "a RecipeError names the file, or a recipe that reads back from its own dump as the same",
        (RecipeError,), recipe_files,
    ),
    "forged_checkpoints": Target(
        "forged checkpoint",
        "names that leave the folder, sizes, shapes and JSON of every kind, links and pipes, with matching hashes",
        "a CheckpointError names the folder, or a network of finite size; nothing outside is read or written",
        (CheckpointError,), forged_checkpoints,
    ),
    "weights": Target(
        "weight file",
        "bit flips, cuts, splices; pickles that execute; compressed and overlapping archives; headers that lie",
        "a WeightFileError names the file, or named tensors no larger than it; nothing runs",
        (WeightFileError, TeacherError), weight_files,
    ),
    "metadata": Target(
        "metadata.pt",
        "bit flips, cuts, splices of archive and pickle; pickles that execute; keys that hang; compressed bombs",
        "a TorchMetadataError names the file, or a dictionary of plain values by text; nothing runs",
        (TorchMetadataError,), metadata_files,
    ),
    "caches": Target("teacher cache", _STORE, _WHOLE, (StoreError,), partial(stored_rows, packed=False)),
    "packed": Target("packed store", _STORE, _WHOLE, (StoreError,), partial(stored_rows, packed=True)),
    "npy": Target(
        ".npy file", "bit flips, cuts; headers of huge shapes, object dtypes, deep literals and odd escapes",
        "an NpyFileError, to which the caller adds the path, or numbers that the file really holds",
        (NpyFileError,), npy_files,
    ),
    "command_lines": Target(
        "command line", "records, indices, sets, recipes, checkpoints and weights as above, given to whole commands",
        "exit code 0, 1 or 2, no traceback, and an error that names the file", (), command_lines, trials=250,
    ),
}  # fmt: skip
