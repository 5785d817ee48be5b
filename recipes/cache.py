"""Entry point: caches of teacher embeddings, which a recipe trains from (`teacher.cache`) without running the teacher.

    adadistill cache build RECIPE [key.path=value ...]           run the recipe's teacher over its records; goes on
                                                                 where an earlier build stopped
    adadistill cache import ROWS.npy FOLDER --records train.rec  take embeddings that exist already, after checking that
                                                                 they belong to the records
    adadistill cache verify FOLDER [--recipe RECIPE]             read all of it against its checksums
    adadistill cache info FOLDER                                 what it holds and where it came from

On several devices: torchrun --standalone --nproc_per_node=8 -m adadistill.recipes.cache_teacher RECIPE ...

Exit codes: 0 done; 1 the work failed (a damaged record, an embedding that is not finite, a damaged cache); 2 the
recipe, a file it names or the launch is wrong, or the cache is another one; 143 stopped by SIGTERM (130 by SIGINT).
"""

from __future__ import annotations

if __name__ == "__main__":  # a signal may come before torch is imported, which takes seconds
    from adadistill.recipes.entry_point import begin_program

    begin_program()

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from adadistill.loaders.errors import WorkFailed
from adadistill.core.distributed import Ranks, distributed_session
from adadistill.core.host_memory import keep_freed_memory
from adadistill.core.recipe import Recipe, load_recipe, recipe_augmentation
from adadistill.core.teachers import expected_identity, record_binding
from adadistill.core.teachers.cache_build import (
    BuildProgress,
    CacheBuildResult,
    build_cache,
    recompute_rows,
)
from adadistill.core.teachers.cache_import import DEFAULT_MARGIN, import_embeddings
from adadistill.core.teachers.cache_views import needed_views
from adadistill.core.training.metrics_log import format_seconds
from adadistill.core.training.stop_signal import listen_for_stop
from adadistill.loaders.pipelines.pipeline import named_records
from adadistill.loaders.records.open_images import open_images
from adadistill.loaders.stored_blocks.files import HEADER_NAME, read_header_bytes
from adadistill.loaders.teacher_cache import (
    CacheHeader,
    CacheIncompleteError,
    TeacherCache,
)
from adadistill.loaders.teacher_cache.header import KIND
from adadistill.recipes.block_report import BlockReport, verify_blocks
from adadistill.recipes.entry_point import entry_point, log_to_stderr
from adadistill.recipes.outputs import will_write_folder

logger = logging.getLogger("adadistill")

LEAST_COSINE = 0.999
"""Of stored to fresh embeddings. Rounding moves a row by less, another image, colour order or network by far more."""


class CacheDiffersError(WorkFailed, RuntimeError):
    """The recipe's teacher does not say what the cache holds."""


@entry_point("adadistill cache")
def main(argv: Sequence[str]) -> int:
    """Run one of the verbs; returns the exit code."""
    verb, *rest = [*argv] or [""]
    if verb not in _VERBS:
        asked = verb in ("-h", "--help")
        print(__doc__ or f"verbs: {', '.join(_VERBS)}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    parser, work = _VERBS[verb]
    arguments = parser().parse_intermixed_args(rest)
    keep_freed_memory()
    work(arguments)
    return 0


def _build(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if recipe.teacher is not None and recipe.teacher.cache is not None:
        will_write_folder(Path(recipe.teacher.cache), remedy="name another as teacher.cache")
    with distributed_session(arguments.device) as ranks, listen_for_stop() as stop:
        log_to_stderr(speaks=ranks.is_main)
        result = build_cache(
            recipe,
            ranks=ranks,
            stop=stop,
            batch_size=arguments.batch_size,
            views=arguments.views,
            report=BlockReport(ranks, _rates) if ranks.is_main else None,
        )
        if ranks.is_main:
            _print_result(result)


def _import(arguments: argparse.Namespace) -> None:
    will_write_folder(arguments.folder)
    log_to_stderr(speaks=True)
    with listen_for_stop() as stop:
        result = import_embeddings(
            arguments.rows,
            arguments.folder,
            records=open_images(arguments.records, arguments.index, links="anywhere"),
            stop=stop,
            views=arguments.views,
            margin=arguments.margin,
            label_check=not arguments.no_label_check,
            name=arguments.name,
            image_size=arguments.image_size,
            report=BlockReport(Ranks(), _rates),
        )
    _print_result(result)


def _verify(arguments: argparse.Namespace) -> None:
    if arguments.recompute is not None and arguments.recipe is None:
        raise ValueError("--recompute embeds with the teacher of a recipe; name it with --recipe")
    if arguments.overrides and arguments.recipe is None:
        raise ValueError(f"{arguments.overrides[0]} replaces a value of a recipe; name it with --recipe")
    log_to_stderr(speaks=True)
    cache = TeacherCache(arguments.folder)
    with distributed_session(arguments.device) as ranks:
        recipe = None
        if arguments.recipe is not None:
            recipe = load_recipe(arguments.recipe, arguments.overrides)
            print(_require(cache, recipe, ranks))
        _check_sums(cache, ranks)
        if recipe is not None and arguments.recompute is not None:
            _recompute(cache, recipe, arguments.recompute, ranks)


def _require(cache: TeacherCache, recipe: Recipe, ranks: Ranks) -> str:
    """Refuse a cache that the recipe could not train from, and say what was compared."""
    records = named_records(recipe.data)
    compares_teacher = recipe.teacher is not None and recipe.teacher.source is not None
    teacher = None
    if recipe.teacher is not None and compares_teacher:
        teacher = expected_identity(recipe.teacher, cache, recipe.data.image_size, ranks)
    views = needed_views(recipe_augmentation(recipe))
    cache.require(teacher=teacher, records=record_binding(records), views=views)
    compared = "teacher, records and views" if compares_teacher else "records and views (the recipe names no network)"
    return f"fits recipe {recipe.name}: {compared}"


def _check_sums(cache: TeacherCache, ranks: Ranks) -> None:
    header = cache.header
    with listen_for_stop() as stop:
        said = verify_blocks(
            lambda progress: cache.verify(progress=progress), header.num_blocks, header.data_bytes, ranks, stop
        )
    print(f"{said}, digest {cache.digest()}")


def _recompute(cache: TeacherCache, recipe: Recipe, records: int, ranks: Ranks) -> None:
    found = recompute_rows(recipe, cache, records=records, ranks=ranks)
    least = (
        f"the least cosine of stored to fresh embeddings is {found.least_cosine:.6f} "
        f"(record {found.record_id}, {found.view} view), over {found.records} records"
    )
    if not found.least_cosine >= LEAST_COSINE:
        raise CacheDiffersError(
            f"{cache.folder} does not hold what the recipe's teacher says: {least}; {LEAST_COSINE} is asked for. "
            "Another teacher, other preprocessing or other records made it; build the cache anew"
        )
    print(f"recomputed: {least}")


def _info(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.folder
    header = CacheHeader.from_bytes(read_header_bytes(folder, KIND), where=str(folder / HEADER_NAME))
    try:
        state, digest = "complete", TeacherCache(folder).digest()
    except CacheIncompleteError as error:
        state, digest = str(error), None
    if arguments.json:
        content = {"header": json.loads(header.to_bytes()), "complete": digest is not None, "digest": digest}
        print(json.dumps(content, indent=2, sort_keys=True))
        return
    for name, value in _facts(header, state, digest):
        # Names in a header are other people's text: nothing of it may steer a terminal.
        print(f"{name:<12} {''.join(sign if sign.isprintable() else '?' for sign in value)}")


def _facts(header: CacheHeader, state: str, digest: str | None) -> list[tuple[str, str]]:
    """What people want to know of a cache, line by line."""
    teacher, records = header.teacher, header.records
    return [
        ("state", state),
        ("digest", digest or "none yet"),
        ("rows", f"{header.num_records} records x {header.num_views} views x {header.embedding_dim} float16"),
        ("views", ", ".join(map(str, header.views))),
        ("size", f"{header.data_bytes / 1e9:.3f} GB in {header.num_blocks} blocks of {header.block_records} records"),
        ("teacher", " ".join(str(teacher[key]) for key in ("kind", "name", "arch") if teacher.get(key))),
        ("  sha256", str(teacher["sha256"])),
        ("  images", f"{teacher.get('image_size')} px, preprocessing {_listed(teacher.get('preprocessing'))}"),
        ("records", f"{records.get('name')}, {records.get('num_classes')} identities"),
        ("  sha256", str(records["fingerprint"])),
        ("built", _listed(dict(header.built))),
    ]


def _listed(value: object) -> str:
    if value is None:
        return "unknown"
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{key} {_listed(entry)}" for key, entry in value.items())


def _rates(progress: BuildProgress, images_per_s: float) -> str:
    return f"images/s {images_per_s:.0f}  embeddings/s {images_per_s * progress.views:.0f}"


def _print_result(result: CacheBuildResult) -> None:
    header = result.header
    print(
        f"finished: {result.folder}  {header.num_records} records x {header.num_views} views x {header.embedding_dim}, "
        f"{header.data_bytes / 1e9:.3f} GB, digest {result.digest}"
    )
    if result.images:
        print(
            f"  {result.images} images in {format_seconds(result.seconds)}: {result.images_per_s:.0f} images/s, "
            f"{result.images_per_s * header.num_views:.0f} embeddings/s"
        )
    else:
        print("  it was already complete")


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"adadistill cache {verb}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _build_parser() -> argparse.ArgumentParser:
    parser = _parser("build", "Run the recipe's teacher over its records and keep the embeddings in teacher.cache.")
    parser.add_argument("recipe", help="YAML file, or the name of a recipe that ships with the package")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replace values of the recipe")
    parser.add_argument("--batch-size", type=int, default=256, help="images in each run of the network (default: 256)")
    parser.add_argument(
        "--views",
        choices=("plain", "both"),
        help="both: as stored and mirrored; plain: half the time and size, for recipes that never mirror "
        "(default: the augment.views views of a recipe that augments, both otherwise)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA where there is one)")
    return parser


def _import_parser() -> argparse.ArgumentParser:
    parser = _parser(
        "import", "Take embeddings that exist already: row = record id, view 0 as stored, view 1 mirrored."
    )
    parser.add_argument("rows", type=Path, help=".npy file, (N, V, D) or (N, D) float16, float32 or float64")
    parser.add_argument("folder", type=Path, help="of the cache, new or of an earlier call")
    parser.add_argument("--records", type=Path, required=True, help=".rec file or folder that the rows are of")
    parser.add_argument(
        "--index", type=Path, help="its .idx or .images.index (default: the one beside it, else a scan)"
    )
    parser.add_argument("--views", choices=("plain", "both"), help="views to keep (default: those that there are)")
    parser.add_argument(
        "--margin",
        type=float,
        default=DEFAULT_MARGIN,
        help=f"cosine by which images of one identity must beat images of two (default: {DEFAULT_MARGIN})",
    )
    parser.add_argument(
        "--no-label-check", action="store_true", help="do not compare identities; the cache will say so"
    )
    parser.add_argument("--name", help="what the cache calls the teacher (default: the file's name)")
    parser.add_argument("--image-size", type=int, default=112, help="pixels the teacher saw (default: 112)")
    return parser


def _verify_parser() -> argparse.ArgumentParser:
    parser = _parser("verify", "Read a cache against its checksums, and compare it with a recipe.")
    parser.add_argument("folder", type=Path, help="of the cache")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replace values of the recipe")
    parser.add_argument("--recipe", help="refuse a cache that this recipe could not train from")
    parser.add_argument(
        "--recompute", type=int, metavar="N", help="embed N records with the recipe's teacher and compare"
    )
    parser.add_argument("--device", help="to embed on: cpu, cuda or cuda:N (default: CUDA where there is one)")
    return parser


def _info_parser() -> argparse.ArgumentParser:
    parser = _parser("info", "Say what a cache holds and where it came from.")
    parser.add_argument("folder", type=Path, help="of the cache")
    parser.add_argument("--json", action="store_true", help="print the header and the digest as JSON")
    return parser


_VERBS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], None]]] = {
    "build": (_build_parser, _build),
    "import": (_import_parser, _import),
    "verify": (_verify_parser, _verify),
    "info": (_info_parser, _info),
}


if __name__ == "__main__":
    sys.exit(main())
