"""Entry point: class centres as a file that `centres.kind: frozen` takes.

    adadistill centres export runs/ms1mv2_ir50_adaface_teacher --out centres.safetensors
    adadistill centres export adaface_ir50_ms1mv2.ckpt --out centres.safetensors

A run folder can be named as `centres.path` itself; a file of its own outlives the run, travels, and can be unbound from
the records it was trained on. Centres are written as float32, one row for each label, with the lengths they have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadistill.core.method.centre_files import (
    ADAFACE_SUFFIXES,
    CentresFileError,
    CentresFormat,
    StoredCentres,
    read_adaface_head,
    read_centres,
    write_centres,
)
from adadistill.recipes.entry_point import entry_point, known_verb
from adadistill.recipes.outputs import add_out, parse_with_out, will_write

_USAGE = "usage: adadistill centres export RUN --out FILE; `adadistill centres export --help` tells more."
_SUFFIXES: dict[CentresFormat, str] = {"safetensors": ".safetensors", "npy": ".npy"}


@entry_point("adadistill centres")
def main(argv: Sequence[str]) -> int:
    """Run `adadistill centres`; 0 when the file was written, 2 when there are no centres to write or no place."""
    code = known_verb("adadistill centres", argv, ("export",), _USAGE)
    if code is not None:
        return code
    options = parse_with_out(_parser(), argv[1:])
    export(options.run, options.out, file_format=options.format, keep_records=not options.drop_records)
    return 0


def export(source: Path, out: Path, *, file_format: CentresFormat = "safetensors", keep_records: bool = True) -> None:
    """Write the class centres of `source` to the new file `out` and print what was written.

    Args:
        source: a run folder or checkpoint of ours with trainable or adaptive centres, a file of centres, or AdaFace's
            training checkpoint.
        file_format: `npy` is for other programs; it does not hold the fingerprint of the records.
        keep_records: write down on which records they were trained, so that others are refused.

    Raises:
        CentresFileError: `source` holds no centres, or `out` is not named for the format.
        FileNotFoundError, WeightFileError: `source` cannot be read. FileExistsError: `out` exists.
    """
    if out.suffix != _SUFFIXES[file_format]:
        raise CentresFileError(
            f"{out} must end in {_SUFFIXES[file_format]}, as --format is {file_format}; "
            "centres.path tells the formats by their endings"
        )
    if out.exists():  # before minutes of reading
        raise FileExistsError(f"{out} exists already; choose another name or remove it")
    will_write(out)
    centres = _read(source)
    write_centres(out, centres, file_format=file_format, keep_records=keep_records)
    count, dim = centres.rows.shape
    print(f"{source}  {count} class centres of {dim} dimensions  ({centres.name})")
    print(f"wrote {out}, {out.stat().st_size / 2**20:.1f} MiB, {_binding(centres, file_format, keep_records)}")


def _read(source: Path) -> StoredCentres:
    if source.suffix in ADAFACE_SUFFIXES and not source.is_dir():
        return read_adaface_head(source)
    return read_centres(source)


def _binding(centres: StoredCentres, file_format: CentresFormat, keep_records: bool) -> str:
    """What the file says of the records, and what that means for its user."""
    if centres.records is not None and keep_records and file_format == "safetensors":
        return f"bound to the records it was trained on ({centres.records[:12]}...)"
    return "not bound to any records: that its rows are the people of data.records is for you to know"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adadistill centres export",
        description="Write the class centres of a run to a file that frozen centres take.",
    )
    parser.add_argument("run", type=Path, help="run folder, checkpoint, file of centres, or AdaFace's .ckpt")
    add_out(parser, "FILE", "new file, ending in .safetensors (or .npy)")
    parser.add_argument(
        "--format", choices=tuple(_SUFFIXES), default="safetensors", help="of the file (default: safetensors)"
    )
    parser.add_argument(
        "--drop-records", action="store_true", help="do not write down on which records they were trained"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
