"""Verification sets are read in every layout met in practice, and nothing a hostile file asks for is done."""

from __future__ import annotations

import codecs
import hashlib
import io
import itertools
import pickle
import random
import struct
import subprocess
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from forked_python import forked_python

from adadistill.loaders import safe_pickle
from adadistill.loaders.evaluation_sets.verification_pairs import (
    UnsafePickleError,
    VerificationSetError,
    decode_pairs,
    fit_square,
    read_verification_bin,
    read_verification_set,
    write_verification_bin,
)
from adadistill.loaders.pixels import ImageDecodeError


def jpeg(seed: int, height: int = 16, width: int = 16) -> bytes:
    ramp = np.linspace(0, 150, height * width * 3).reshape(height, width, 3)
    return simplejpeg.encode_jpeg((ramp + 17 * (seed % 6)).astype(np.uint8), quality=95)


IMAGES = [jpeg(seed) for seed in range(8)]
SAME = [True, False, True, False]


def save(path: Path, content: object, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


# --- layouts that must be read -------------------------------------------------------------------------------------


IMAGE_LAYOUTS: dict[str, Callable[[bytes], object]] = {
    "bytes": bytes,
    "vector": lambda body: np.frombuffer(body, np.uint8),
    "own vector": lambda body: np.frombuffer(body, np.uint8).copy(),
    "column": lambda body: np.frombuffer(body, np.uint8).reshape(-1, 1).copy(),
    "fortran column": lambda body: np.asfortranarray(np.frombuffer(body, np.uint8).reshape(-1, 1)),
}
FLAG_LAYOUTS: dict[str, Callable[[list[bool]], object]] = {
    "list of bool": list,
    "tuple of bool": tuple,
    "list of numpy bool": lambda flags: [np.bool_(flag) for flag in flags],
    "bool array": np.array,
    "int64 array": lambda flags: np.array(flags, dtype=np.int64),
    "list of 0 and 1": lambda flags: [int(flag) for flag in flags],
}


def test_every_layout_is_read_under_every_protocol(tmp_path):
    layouts = itertools.product(range(6), IMAGE_LAYOUTS.items(), FLAG_LAYOUTS.items())
    for protocol, (name, image_layout), (flags, flag_layout) in layouts:
        kind = list if protocol == 4 else tuple  # a list of two is as good as a tuple
        content = kind(([image_layout(body) for body in IMAGES], flag_layout(SAME)))

        pairs = read_verification_bin(save(tmp_path / "toy.bin", content, protocol))

        assert pairs.name == "toy"
        assert pairs.images == IMAGES, name
        assert pairs.same.dtype == np.bool_
        assert pairs.same.tolist() == SAME, flags


@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
def test_both_names_of_numpys_core_are_read(tmp_path, package):
    images = [np.frombuffer(body, np.uint8) for body in IMAGES]
    pickled = pickle.dumps((images, np.array(SAME)), protocol=2)
    written_by = b"numpy._core" if b"numpy._core" in pickled else b"numpy.core"
    (tmp_path / "toy.bin").write_bytes(pickled.replace(written_by, package.encode()))
    assert read_verification_bin(tmp_path / "toy.bin").images == IMAGES


def python_2_pickle(images: list[bytes], same: list[bool], *, binary: bool) -> bytes:
    """What Python 2's cPickle writes for lists of str and bool, protocol 2 or 0."""
    out = io.BytesIO()
    out.write(b"\x80\x02]q\x01(" if binary else b"((lp1\n")
    for memo, body in enumerate(images, start=2):
        if binary:
            out.write(b"T" + struct.pack("<i", len(body)) + body + b"q" + bytes([memo]))
        else:
            quoted = codecs.escape_encode(body)[0]
            out.write(b"S'" + quoted + b"'\np" + str(memo).encode() + b"\na")
    memo = str(len(images) + 2).encode()
    if binary:
        out.write(b"e]r" + struct.pack("<i", len(images) + 2) + b"(")
        out.write(b"".join(b"\x88" if flag else b"\x89" for flag in same) + b"e\x86.")
    else:
        out.write(b"(lp" + memo + b"\n" + b"".join(b"I01\na" if flag else b"I00\na" for flag in same) + b"t.")
    return out.getvalue()


@pytest.mark.parametrize("binary", [True, False])
def test_python_2_pickles_are_read(tmp_path, binary):
    path = tmp_path / "toy.bin"
    path.write_bytes(python_2_pickle(IMAGES, SAME, binary=binary))
    assert pickle.loads(path.read_bytes(), encoding="bytes") == (IMAGES, SAME)  # the pickle above is a real one

    pairs = read_verification_bin(path)

    assert pairs.images == IMAGES
    assert pairs.same.tolist() == SAME


def test_python_2_arrays_are_read(tmp_path):
    # Their dtype codes and bytes are Python 2 strings: protocol 2 with each bytes object as SHORT_BINSTRING.
    body = IMAGES[0]
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01" + b"M" + struct.pack("<H", len(body)) + b"\x85cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(body)) + body + b"tb"
    )
    path = tmp_path / "toy.bin"
    path.write_bytes(b"\x80\x02](" + array + array + b"e](\x88e\x86.")
    assert read_verification_bin(path).images == [body, body]


def test_what_we_write_is_what_the_field_reads(tmp_path):
    path = tmp_path / "toy.bin"
    write_verification_bin(path, IMAGES, np.array(SAME))

    images, same = pickle.loads(path.read_bytes())

    assert (images, same) == (IMAGES, SAME)
    assert (type(images), type(same)) == (list, list)
    assert {type(body) for body in images} == {bytes}
    assert {type(flag) for flag in same} == {bool}
    assert read_verification_bin(path).images == IMAGES
    assert [file.name for file in tmp_path.iterdir()] == ["toy.bin"]


def test_writing_refuses_what_could_not_be_read_and_leaves_no_file(tmp_path):
    with pytest.raises(VerificationSetError, match="8 images for 3 flags"):
        write_verification_bin(tmp_path / "toy.bin", IMAGES, SAME[:3])
    with pytest.raises(VerificationSetError, match=r"image 1 .* neither JPEG nor PNG"):
        write_verification_bin(tmp_path / "toy.bin", [IMAGES[0], b"GIF89a"], [True])
    with pytest.raises(VerificationSetError, match="no pairs"):
        write_verification_bin(tmp_path / "toy.bin", [], [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.realdata
def test_every_real_set_is_read_as_pickle_itself_reads_it(data_dir):
    paths = sorted((data_dir / "faces").glob("*.bin"))
    if not paths:
        pytest.skip(f"no .bin files in {data_dir / 'faces'}")
    for path in paths[:2]:
        images, same = pickle.loads(path.read_bytes(), encoding="bytes")
        pairs = read_verification_bin(path)
        assert pairs.images == [bytes(image) if isinstance(image, bytes) else image.tobytes() for image in images]
        assert pairs.same.tolist() == [bool(flag) for flag in same]
        first = decode_pairs(pairs, 112, first=0, stop=2)
        assert first.shape == (2, 112, 112, 3)
        assert np.array_equal(first[1], simplejpeg.decode_jpeg(pairs.images[1], colorspace="RGB"))


# --- files that are no sets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGES, "a list of 8, not the pair"),
        ((IMAGES, SAME, SAME), "a tuple of 3, not the pair"),
        (5, "the number 5, not the pair"),
        ((IMAGES[:7], SAME), "7 images for 4 flags"),
        (([], []), "no pairs"),
        ((IMAGES[0], SAME), "images are of type bytes"),
        ((IMAGES, True), "same flags are the number 1"),
        (([*IMAGES[:7], "text"], SAME), "image 7 is of type str"),
        (([*IMAGES[:7], b""], SAME), r"image 7 \(0 bytes, starts with nothing\)"),
        (([*IMAGES[:7], b"\x00\x00\x00\x20ftyp"], SAME), "starts with 00000020"),
        (([*IMAGES[:7], np.zeros((112, 112, 3), np.uint8)], SAME), "image 7 is an array of shape .112, 112, 3."),
        ((IMAGES, [True, False, True, 2]), "same flag 3 is the number 2"),
        ((IMAGES, np.array([0, 1, 2, 3])), "integers other than 0 and 1"),
        ((IMAGES, np.ones((2, 2), bool)), "same flags are an array of shape"),
    ],
)
def test_other_contents_are_refused_with_what_they_are(tmp_path, content, message):
    path = save(tmp_path / "toy.bin", content, 4)
    with pytest.raises(VerificationSetError, match=message) as caught:
        read_verification_bin(path)
    assert str(path) in str(caught.value)


def test_every_truncation_is_a_named_error(tmp_path):
    path = tmp_path / "toy.bin"
    for protocol in (0, 2, 5):
        whole = pickle.dumps((IMAGES[:2], [np.bool_(True)]), protocol=protocol)
        for length in [*range(0, 120, 3), *range(120, len(whole), 97), len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(VerificationSetError):
                read_verification_bin(path)


def test_random_damage_is_a_named_error_or_harmless(tmp_path):
    draw = random.Random(0)
    path = tmp_path / "toy.bin"
    arrays = [np.frombuffer(body, np.uint8) for body in IMAGES[:2]]
    wholes = [pickle.dumps((images, [True]), protocol) for protocol in range(6) for images in (IMAGES[:2], arrays)]
    refused = 0
    for trial in range(120):
        damaged = bytearray(wholes[trial % len(wholes)])
        for _ in range(draw.randint(1, 4)):
            # Half of the damage goes to the first 200 bytes, where opcodes are dense.
            limit = len(damaged) if draw.random() < 0.5 else min(200, len(damaged))
            damaged[draw.randrange(limit)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_verification_bin(path)
        except VerificationSetError:
            refused += 1
    assert refused > 45


# --- hostile files ---------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def op_payloads(canary: Path) -> dict[str, bytes]:
    """Pickles spelled out opcode by opcode, for what the pickle module itself would not write."""
    command = f"touch {canary}".encode()
    line = command + b"\n"
    text = b"X" + struct.pack("<I", len(command)) + command
    return {
        "global system": b"cos\nsystem\n(V" + line + b"tR.",
        "inst": b"(V" + line + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + text + b"o.",
        "newobj": b"\x80\x02cos\nsystem\n" + text + b"\x85\x81.",
        "newobj_ex": b"\x80\x04cos\nsystem\n" + text + b"\x85}\x92.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",
        "dotted stack global": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93" + text + b"\x85R.",
        "dotted module path": b"\x80\x04\x8c\x07_codecs\x8c\x0fencode.__self__\x93.",
        "ext1": b"\x80\x02\x82\x01.",
        "ext4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persistent id": b"Pevil\n.",
        "binary persistent id": text + b"Q.",
        "next buffer": b"\x80\x05\x97.",
        "read-only buffer": b"\x80\x05C\x01a\x98.",
        "dict build on a global": b"c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",
        "tuple build on a global": b"c_codecs\nencode\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        "set": b"\x80\x04\x8f(K\x01\x90.",
        "dup": b"K\x012\x86.",
        "hidden after a pop": b"cos\nsystem\n(V" + line + b"tR0(]]t.",
        "nested pickle": b"c_pickle\nloads\n(C" + bytes([20]) + b"cos\nsystem\n(Vls\ntR." + b"tR.",
        "builtins eval": b"cbuiltins\neval\n(V__import__('os').system('" + command + b"')\ntR.",
        "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\nX\x08\x00\x00\x00__call__tR.",
        "import": b"cimportlib\nimport_module\n(Vos\ntR.",
        "codec of another name": b"c_codecs\nencode\n(Vcode\nVrot13\ntR.",
        "codec of bytes": b"c_codecs\nencode\n(C\x01aVlatin1\ntR.",
        "codec decode": b"c_codecs\ndecode\n(C\x01aVzip\ntR.",
        "numpy ndarray of a terabyte": b"cnumpy\nndarray\n(L1099511627776L\nt\x85R.",
        "numpy new ndarray": b"\x80\x02cnumpy\nndarray\nJ\x00\x00\x00\x7f\x85\x85\x81.",
        "reconstruct of a terabyte": b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n\x85C\x01btR.",
        "numpy testing": b"cnumpy.testing._private.utils\nrunstring\n(Vprint(1)\n}tR.",
        "object dtype": b"cnumpy\ndtype\n(VO8\nI00\nI01\ntR.",
        "object array state": (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
            b"(K\x01(K\x01tcnumpy\ndtype\n(Vu1\nI00\nI01\ntRI00\n](K\x01etb."
        ),
        "structured dtype": (
            b"cnumpy\ndtype\n(Vu1\nI00\nI01\ntR(K\x03V|\nN(Va\nt]J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."
        ),
        "huge string dtype": b"cnumpy\ndtype\n(VS2000000000\nI00\nI01\ntR.",
        "unknown opcode behind the result": b"K\x01\xfe.",
    }


def length_bombs() -> dict[str, bytes]:
    huge, large = struct.pack("<Q", 1 << 40), struct.pack("<I", 0xFFFFFFF0)
    return {
        "binbytes8": b"\x80\x04\x8e" + huge + b"a.",
        "bytearray8": b"\x80\x05\x96" + huge + b"a.",
        "binunicode8": b"\x80\x04\x8d" + huge + b"a.",
        "binunicode": b"X" + large + b"a.",
        "binstring": b"T" + struct.pack("<i", 0x7FFFFFF0) + b"a.",
        "negative binstring": b"T" + struct.pack("<i", -8) + b"a.",
        "long4": b"\x80\x02\x8b" + struct.pack("<i", 0x7FFFFFF0) + b"a.",
        "frame": b"\x80\x04\x95" + huge + b"N.",
        "long_binput": b"Nr" + large + b".",
        "put": b"Np4294967280\n.",
        "put of no number": b"Np-1\n.",
        "long digits": b"L" + b"9" * 100_000 + b"L\n.",

        "text encoded again and again": (
            b"c_codecs\nencode\nq\x00X\x40\x42\x0f\x00" + b"a" * 1_000_000
            + b"q\x01](" + b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R" * 20_000 + b"e."
        ),
        "buffer copied again and again": (
            b"\x80\x05cnumpy.core.numeric\n_frombuffer\nq\x00\x96" + struct.pack("<Q", 1_000_000) + b"\xff" * 1_000_000
            + b"q\x01cnumpy\ndtype\n(Vu1\nI00\nI01\ntRq\x02]("
            + b"h\x00(h\x01h\x02J\x40\x42\x0f\x00\x85VC\ntR" * 20_000 + b"e."
        ),
    }  # fmt: skip


def objects_that_execute(canary: Path) -> dict[str, object]:
    import os

    command = f"touch {canary}"
    call = Calls(os.system, command)
    return {
        "reduce": call,
        "eval": Calls(eval, f"open({str(canary)!r}, 'w')"),
        "partial": Calls(partial(os.system, command)),
        "open": Calls(open, str(canary), "w"),
        "popen": Calls(subprocess.Popen, ["touch", str(canary)]),
        "among the images": ([*IMAGES[:7], call], SAME),
        "among the flags": (IMAGES, [True, False, True, call]),
        "in an array": (np.array([*IMAGES[:7], call], dtype=object), SAME),
        "object array of bytes": (np.array(IMAGES, dtype=object), SAME),
        "behind nested lists": ([[[[call]]]], SAME),
        "dictionary": {"images": IMAGES, "same": SAME},
        "set": {1, 2},
        "float array": (IMAGES, np.array([0.0, 1.0, 0.0, 1.0])),
        "complex": (IMAGES, [1j]),
        "bytearray": (IMAGES, [bytearray(b"a")] * 4),
        "masked array": (IMAGES, np.ma.masked_array(SAME, mask=SAME)),
        "record array": (IMAGES, np.zeros(4, dtype=[("flag", "?")])),
    }


def test_objects_that_execute_are_refused_and_nothing_runs(tmp_path):
    canary = tmp_path / "canary"
    for name, content in objects_that_execute(canary).items():
        for protocol in range(6):
            with pytest.raises(VerificationSetError):
                read_verification_bin(save(tmp_path / "toy.bin", content, protocol))
            assert not canary.exists(), name


def test_opcodes_that_execute_are_refused_and_nothing_runs(tmp_path):
    canary = tmp_path / "canary"
    for name, payload in op_payloads(canary).items():
        (tmp_path / "toy.bin").write_bytes(payload)
        with pytest.raises(UnsafePickleError, match="nothing of it was run"):
            read_verification_bin(tmp_path / "toy.bin")
        assert not canary.exists(), name


def test_the_real_unpickler_would_have_run_these(tmp_path):
    # A payload that does nothing even when loaded would prove nothing about the reader.
    canary = tmp_path / "canary"
    for name in ("global system", "inst", "obj", "stack global", "builtins eval"):
        pickle.loads(op_payloads(canary)[name])
        assert canary.exists(), name
        canary.unlink()


def test_bombs_are_refused_within_a_bounded_memory(tmp_path):
    folder = tmp_path / "bombs"
    folder.mkdir()
    for name, bomb in length_bombs().items():
        (folder / f"{name}.bin").write_bytes(bomb)
    # As many opcodes as are allowed, each making an empty list: the costliest object that one byte can ask for.
    (folder / "within the limit.bin").write_bytes(b"]" * (safe_pickle.MAX_OPCODES - 1) + b".")
    script = f"""
        import resource, sys
        from pathlib import Path
        from adadistill.loaders.evaluation_sets.verification_pairs import (
            UnsafePickleError, VerificationSetError, read_verification_bin,
        )
        peak_kib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak_kib()
        for path in sorted(Path({str(folder)!r}).glob("*.bin")):
            try:
                read_verification_bin(path)
            except UnsafePickleError:
                continue
            except VerificationSetError:
                assert path.stem == "within the limit", path.stem
                continue
            sys.exit(f"{{path.stem}} was accepted")
        print(peak_kib() - before)
    """
    done = subprocess.run(
        [forked_python(), "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300 * 1024, f"{int(done.stdout)} KiB for {len(length_bombs()) + 1} files of 2 MB at most"


def test_what_a_file_holds_is_not_printed(tmp_path):
    path = save(tmp_path / "toy.bin", (IMAGES, ["\x1b[2Jsecret"] * 4), 4)
    with pytest.raises(VerificationSetError) as caught:
        read_verification_bin(path)
    assert "secret" not in str(caught.value)


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_images_of_the_right_size_keep_their_pixels_whatever_the_threads(tmp_path):
    write_verification_bin(tmp_path / "toy.bin", IMAGES, SAME)
    pairs = read_verification_bin(tmp_path / "toy.bin")

    pixels = decode_pairs(pairs, 16)

    assert pixels.shape == (8, 16, 16, 3)
    assert pixels.dtype == np.uint8
    for index, body in enumerate(IMAGES):
        assert np.array_equal(pixels[index], simplejpeg.decode_jpeg(body, colorspace="RGB"))
    assert np.array_equal(decode_pairs(pairs, 16, first=3, stop=6, threads=1), pixels[3:6])
    assert decode_pairs(pairs, 16, first=4, stop=4).shape == (0, 16, 16, 3)


@pytest.mark.parametrize(("height", "width"), [(40, 24), (24, 40), (8, 8)])
def test_other_sizes_are_scaled_to_the_short_side_and_cropped_about_the_centre(height, width):
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None, :]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]

    square = fit_square(ramp, 16)

    assert square.shape == (16, 16, 3)
    assert square.dtype == np.uint8
    assert abs(float(square[..., 0].mean()) - 127.5) < 9  # the crop is centred
    assert abs(float(square[..., 1].mean()) - 127.5) < 9
    assert (np.diff(square[8, :, 0].astype(int)) >= 0).all()  # neither mirrored nor transposed
    assert (np.diff(square[:, 8, 1].astype(int)) >= 0).all()
    assert not square[..., 2].any()


def test_strips_are_refused_and_not_scaled_and_damage_is_named_with_its_pair(tmp_path):
    # One row of 2,048 pixels, scaled until it is 112 high, would take 300 MB, in each of eight threads.
    strip = r": 1 x 2048 pixels, one side"
    for body, said in ((jpeg(3, 1, 2048), strip), (IMAGES[3][:30], "")):
        write_verification_bin(tmp_path / "strips.bin", [*IMAGES[:3], body], [True, False])
        with pytest.raises(ImageDecodeError, match=rf"strips\.bin image 3 \(pair 1\){said}"):
            decode_pairs(read_verification_bin(tmp_path / "strips.bin"), 112)


# --- Arrow folders -------------------------------------------------------------------------------------------------


def arrow_set(folder: Path, **columns: object) -> Path:
    """The toy set as CVLface keeps it, rows shuffled, unless columns say otherwise."""
    arrow_folders = pytest.importorskip("arrow_folders", reason="pyarrow (extra arrow) is not installed")
    order = [5, 0, 3, 6, 1, 7, 2, 4]
    own = {
        "image": [IMAGES[index] for index in order],
        "index": order,
        "is_same": [SAME[index // 2] for index in order],
    }
    return arrow_folders.write_arrow_folder(folder, {**own, **columns}, files=2)


def test_an_arrow_folder_reads_as_the_bin_of_the_same_pairs(tmp_path):
    write_verification_bin(tmp_path / "cfp_fp.bin", IMAGES, SAME)
    pairs = read_verification_set(arrow_set(tmp_path / "cfp_fp"))

    same_pairs = read_verification_set(tmp_path / "cfp_fp.bin")
    assert pairs.name == same_pairs.name == "cfp_fp"
    assert pairs.images == same_pairs.images == IMAGES
    assert pairs.same.tolist() == same_pairs.same.tolist() == SAME
    assert same_pairs.sha256 == hashlib.sha256((tmp_path / "cfp_fp.bin").read_bytes()).hexdigest()
    files = sorted((tmp_path / "cfp_fp").glob("*.arrow"))
    assert pairs.sha256 == hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"is_same": [True] * 4 + [False] * 4}, "says different things of the images of 4 pairs, the first is pair 0"),
        ({"index": [0, 0, 1, 2, 3, 4, 5, 6]}, "index does not number"),
        ({"image": [*IMAGES[:7], b"GIF89a"]}, "image 4 .* is neither JPEG nor PNG"),
        ({"is_same": [2] * 8}, "is_same holds other values than 0 and 1"),
        ({"image": IMAGES[:7], "index": list(range(7)), "is_same": [True] * 7}, "7 images; a pair is two images"),
    ],
)
def test_an_arrow_folder_that_is_no_set_of_pairs_is_refused(tmp_path, columns, problem):
    with pytest.raises(VerificationSetError, match=problem):
        read_verification_set(arrow_set(tmp_path / "lfw", **columns))


def test_a_folder_of_something_else_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(VerificationSetError, match=r"without state\.json"):
        read_verification_set(tmp_path)
    folder = arrow_set(tmp_path / "lfw")
    first = sorted(folder.glob("*.arrow"))[0]
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(VerificationSetError, match="cut short"):
        read_verification_set(folder)
    with pytest.raises(FileNotFoundError):
        read_verification_set(tmp_path / "nowhere")
