"""Small folders of images as Hugging Face `datasets` saves them, for the tests of everything that reads such."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa


def write_arrow_folder(
    folder: Path, columns: dict[str, Sequence[Any]], *, files: int = 1, batch_rows: int = 3, struct: bool = True
) -> Path:
    """`state.json` and Arrow streams; column `image` holds encoded bytes, as a struct of bytes and path or bare."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: pa.array(values) for name, values in columns.items() if name != "image"}
    images = list(columns["image"])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays["image"] = pa.array([{"bytes": body, "path": None} for body in images], kind) if struct else pa.array(images)
    table = pa.table(arrays)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    per_file = -(-len(images) // files)
    for number, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(number * per_file, per_file), max_chunksize=batch_rows)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder
