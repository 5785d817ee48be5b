"""Says what a file really is, where it is not what its name promises: a pointer, a web page, an archive, a copy that
failed. Readers of foreign files ask here before they speak of their format.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

LOOKED_AT: Final = 2048
"""Bytes from the beginning; a page's title and a tar's mark lie within them."""

_AGAIN: Final = "download the file itself"
_ARCHIVE: Final = "archive; unpack it and name the file inside"
_SIGNATURES: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"PK\x03\x04", "zip", f"a zip {_ARCHIVE}"),
    (b"PK\x05\x06", "zip", "an empty zip archive"),
    (b"\x1f\x8b", "gzip", f"a gzip {_ARCHIVE}"),
    (b"BZh", "bzip2", f"a bzip2 {_ARCHIVE}"),
    (b"\xfd7zXZ\0", "xz", f"an xz {_ARCHIVE}"),
    (b"\x28\xb5\x2f\xfd", "zstd", f"a zstd {_ARCHIVE}"),
    (b"\x04\x22\x4d\x18", "lz4", f"an lz4 {_ARCHIVE}"),
    (b"7z\xbc\xaf\x27\x1c", "7z", f"a 7z {_ARCHIVE}"),
    (b"Rar!\x1a\x07", "rar", f"a rar {_ARCHIVE}"),
    (b"\0\5\x16\7", "mac", "macOS metadata (a ._ file), not the file itself; take the one without ._ in its name"),
    (b"\0\5\x16\0", "mac", "macOS metadata, not the file itself; copy it again"),
    (b"\0\0\0\1Bud1", "mac", "a macOS .DS_Store, no data"),
    (b"\xff\xd8\xff", "jpeg", "a JPEG image"),
    (b"\x89PNG", "png", "a PNG image"),
    (b"GIF8", "gif", "a GIF image"),
    (b"\x93NUMPY", "npy", "a numpy array (.npy)"),
    (b"\x89HDF\r\n", "hdf5", "an HDF5 file"),
    (b"PAR1", "parquet", "a parquet file"),
    (b"ARROW1", "arrow", "an Arrow file"),
    (b"SQLite format 3", "sqlite", "an SQLite data base"),
    (b"%PDF-", "pdf", "a PDF"),
    (b"\x7fELF", "elf", "a program"),
    (b"\x12\x01\0\0\0\0\0\0", "mxnet", "MXNet parameters, which are not read here; export the network as ONNX"),
    (b"\x0a\x23\xd7\xce", "records", "a RecordIO file (.rec)"),
)
_SAFETENSORS_HEADER: Final = 100 << 20
_ONNX: Final = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]")
_PICKLE: Final = re.compile(rb"\x80[\x02-\x05]")
_PAGE: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|!--|\?xml|[a-z]+[ >])", re.IGNORECASE)
_TITLE: Final = re.compile(rb"<(title|message|code|h1)[^<>]*>\s*([^<]{1,200})", re.IGNORECASE)
_POINTED_SIZE: Final = re.compile(rb"^size (\d{1,18})$", re.MULTILINE)
_LEAST_TEXT: Final = 8
"""Bytes; fewer may be the beginning of anything."""
_SHOWN: Final = 60


def what_it_is(file: Path | bytes, *expected: str) -> str | None:
    """What a file is by its first bytes, where that is none of the kinds expected: words to stand behind its name.

    Args:
        file: its path, or its first bytes (`LOOKED_AT` are enough).
        expected: kinds that are fine, as `_SIGNATURES` calls them, or `pickle`, `onnx`, `safetensors`, `tar`, `json`,
            `text`, `empty`.

    Returns:
        For example "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"; None for a kind that is
        expected, and for bytes of which nothing can be told.

    Raises:
        OSError: it cannot be read.
    """
    kind, words = _kind(file)
    return None if words is None or kind in expected else f"is {words}"


def kind_of(file: Path | bytes) -> str:
    """The kind that `what_it_is` finds, `unknown` where nothing can be told."""
    return _kind(file)[0]


def _kind(file: Path | bytes) -> tuple[str, str | None]:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            start = opened.read(LOOKED_AT)
    else:
        start = file[:LOOKED_AT]
    if not start:
        return "empty", "empty: a download or copy cut short before it began; fetch it again"
    if start.startswith(b"version https://git-lfs"):
        size = _POINTED_SIZE.search(start)
        of = f" (of {int(size[1]):,} bytes)" if size is not None else ""
        return "pointer", f"a Git LFS pointer, not the file itself{of}; fetch it with `git lfs pull`"
    if b"/annex/objects/" in start[:200]:
        return "pointer", "a git-annex pointer, not the file itself; fetch it with `git annex get`"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _SAFETENSORS_HEADER:
        return "safetensors", "a safetensors file"
    for signature, kind, words in _SIGNATURES:
        if start.startswith(signature):
            return kind, words
    if start[257:262] == b"ustar":
        return "tar", f"a tar {_ARCHIVE}"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp", "a WebP image"
    if _PICKLE.match(start):
        return "pickle", "a pickle"
    if _ONNX.match(start):
        return "onnx", "an ONNX network; its name should end in .onnx"
    return _kind_of_text(start)


def _kind_of_text(start: bytes) -> tuple[str, str | None]:
    if len(start) >= 64 and not start.strip(b"\0"):
        return "zeros", f"zeros from its beginning on, as of a download that was never filled; {_AGAIN}"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in start[2:8]:
        return "text", "text in UTF-16, as a shell's redirection makes it of binary data; copy it in binary"
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3 or len(start) < LOOKED_AT:  # a letter that the limit cuts is none
            return "unknown", None
        text = start[: error.start].decode("utf-8-sig")
    if len(start) < _LEAST_TEXT or not all(letter.isprintable() or letter in "\t\r\n\f" for letter in text):
        return "unknown", None
    if _PAGE.match(start):
        title = _TITLE.search(start)
        said = _shown(title[2].decode("utf-8", "replace")) if title is not None else _shown(text)
        return "page", f"a web page or XML answer ({said}), not the file itself; {_AGAIN}"
    if re.match(r"\s*[{\[]", text):
        return "json", f"JSON ({_shown(text)}), such as a server's refusal, not the file itself; {_AGAIN}"
    return "text", f"text ({_shown(text)}), not the file itself; {_AGAIN}"


def _shown(text: str) -> str:
    """The beginning of a stranger's text, on one line."""
    line = " ".join(text.split())
    return ascii(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")
