"""A list of pairs becomes the set it says, image for image and fold for fold, or says what is wrong and writes none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from adadistill.loaders.evaluation_sets.face_alignment import ARCFACE_TEMPLATE, aligned, similarities_to_template
from adadistill.loaders.evaluation_sets.pair_lists import PairListError, make_verification_bin, read_pair_list
from adadistill.loaders.evaluation_sets.verification_pairs import decode_pairs, read_verification_set


def jpeg(seed: int, side: int = 112) -> bytes:
    levels = np.random.default_rng(seed).integers(40, 216, (side // 4 + 1, side // 4 + 1, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(levels.repeat(4, 0).repeat(4, 1)[:side, :side]), quality=90)


def write_lfw(root: Path, *, folds: int = 10, of_a_kind: int = 2, side: int = 112) -> tuple[Path, Path]:
    """(list, folder) in LFW's layout: a person has three images, of which each fold names some."""
    names = [f"Person_{letter}" for letter in "ABCD"]
    for number, name in enumerate(names):
        (root / "lfw" / name).mkdir(parents=True)
        for image in (1, 2, 13):
            (root / "lfw" / name / f"{name}_{image:04d}.jpg").write_bytes(jpeg(20 * number + image, side))
    lines = [f"{folds}\t{of_a_kind}"]
    for fold in range(folds):
        lines += [f"{names[(fold + i) % 4]}\t1\t{(2, 13)[i % 2]}" for i in range(of_a_kind)]
        lines += [f"{names[(fold + i) % 4]}\t2\t{names[(fold + i + 1) % 4]}\t13" for i in range(of_a_kind)]
    (root / "pairs.txt").write_text("\n".join(lines) + "\n")
    return root / "pairs.txt", root / "lfw"


def write_plain(root: Path, lines: list[str], images: dict[str, bytes]) -> tuple[Path, Path]:
    for name, body in images.items():
        (root / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "faces" / name).write_bytes(body)
    (root / "faces").mkdir(exist_ok=True)
    (root / "list.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "list.txt", root / "faces"


# --- lists that are read -------------------------------------------------------------------------------------------


def test_lfws_pairs_keep_their_order_their_folds_and_their_bytes(tmp_path):
    pairs, folder = write_lfw(tmp_path)

    made = make_verification_bin(pairs, folder, tmp_path / "mine.bin")

    assert (made.pairs, made.same_pairs, made.images, made.aligned) == (40, 20, 12, 0)
    found = read_verification_set(tmp_path / "mine.bin")
    assert found.same.tolist() == [True, True, False, False] * 10
    (tmp_path / "one.txt").write_text("2\n" + "\n".join(pairs.read_text().splitlines()[1:5]))  # one fold
    assert read_pair_list(tmp_path / "one.txt", folder).same.tolist() == [True, True, False, False]
    for pair, line in enumerate(pairs.read_text().splitlines()[1:]):
        fields = line.split()
        first, second = (fields[:2], [fields[0], fields[2]]) if len(fields) == 3 else (fields[:2], fields[2:])
        for image, (name, number) in zip(found.images[2 * pair : 2 * pair + 2], (first, second), strict=True):
            assert image == (folder / name / f"{name}_{int(number):04d}.jpg").read_bytes()


def test_plain_lines_may_have_tabs_blank_lines_and_spaces_in_names(tmp_path):
    images = {"a/x 1.jpg": jpeg(0), "b.jpg": jpeg(1), "c.jpg": jpeg(2)}
    pairs, folder = write_plain(tmp_path, ["a/x 1.jpg\tb.jpg\t0", "", "b.jpg   ./c.jpg  1", "c.jpg b.jpg 0"], images)
    pairs.write_bytes(b"\xef\xbb\xbf" + pairs.read_bytes().replace(b"\n", b"\r\n"))  # as Windows' editors save it

    make_verification_bin(pairs, folder, tmp_path / "mine.bin")

    found = read_verification_set(tmp_path / "mine.bin")
    assert found.same.tolist() == [False, True, False]
    order = ("a/x 1.jpg", "b.jpg", "b.jpg", "c.jpg", "c.jpg", "b.jpg")
    assert found.images == [images[name] for name in order]


# --- alignment -----------------------------------------------------------------------------------------------------


def landmark_line(name: str, points: np.ndarray, *more: float) -> str:
    return " ".join([name, *(f"{value:.10g}" for value in [*points.reshape(-1), *more])])


def test_landmarks_align_each_image_and_leave_those_on_the_template_alone(tmp_path):
    images = {"large.jpg": jpeg(0, 250), "on.jpg": jpeg(1)}
    pairs, folder = write_plain(tmp_path, ["large.jpg on.jpg 0", "on.jpg large.jpg 1"], images)
    points = 1.7 * ARCFACE_TEMPLATE @ np.array([[0.96, 0.28], [-0.28, 0.96]]) + [40.0, 15.0]
    lines = [
        landmark_line("large.jpg", points),
        landmark_line("on.jpg", ARCFACE_TEMPLATE, 0.99),
        "other.jpg" + " 1 2" * 5,
    ]
    (tmp_path / "landmarks.txt").write_text("\n".join(lines))

    made = make_verification_bin(pairs, folder, tmp_path / "mine.bin", landmarks=tmp_path / "landmarks.txt")

    found = read_verification_set(made.path)
    assert (made.images, made.aligned) == (2, 1)
    assert found.images[1] == found.images[2] == images["on.jpg"]
    picture = simplejpeg.decode_jpeg(images["large.jpg"], colorspace="RGB")
    expected = aligned(picture, similarities_to_template(points[None])[0])
    got = decode_pairs(found, 112)[0]
    assert np.abs(got.astype(int) - expected).max() <= 4  # JPEG of quality 100
    assert np.abs(got.astype(int) - expected).mean() < 0.7


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["a.jpg" + " 1 2" * 5], "has no landmarks of b.jpg"),
        (["a.jpg" + " 1 nan" * 5], r"line 1: .* is not `path x1 y1"),
        (["a.jpg" + " 1 2" * 6 + " 3"], r"line 1: .* is not `path x1 y1"),
        (["a.jpg" + " 1 2" * 5, "a.jpg" + " 1 3" * 5], r"line 2: other landmarks of 'a\.jpg'"),
        (["a.jpg" + " 1 2" * 5, landmark_line("b.jpg", ARCFACE_TEMPLATE)], r"landmarks of a\.jpg give no similarity"),
    ],
)
def test_landmarks_that_do_not_serve_are_refused(tmp_path, lines, problem):
    pairs, folder = write_plain(tmp_path, ["a.jpg b.jpg 1"], {"a.jpg": jpeg(0), "b.jpg": jpeg(1)})
    (tmp_path / "landmarks.txt").write_text("\n".join(lines))
    with pytest.raises(PairListError, match=problem):
        make_verification_bin(pairs, folder, tmp_path / "mine.bin", landmarks=tmp_path / "landmarks.txt")
    assert not (tmp_path / "mine.bin").exists()


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a.jpg b.jpg", "is not `path1 path2 same`"),
        ("a.jpg b.jpg 2", "is not `path1 path2 same`"),
        ("a.jpg b.jpg c.jpg 1", "is not `path1 path2 same`"),
        ("a.jpg ../secret.jpg 1", "'../secret.jpg' is not within the folder"),
        ("/etc/passwd a.jpg 0", "'/etc/passwd' is not within the folder"),
        ("a.jpg none.jpg 1", r"none\.jpg: is missing"),
        ("a.jpg small.jpg 1", r"small\.jpg: is 100 x 100 pixels, and an aligned face has 112 a side"),
        ("a.jpg cut.jpg 1", r"cut\.jpg: JPEG"),
        ("a.jpg text.jpg 1", r"text\.jpg: neither JPEG nor PNG"),
    ],
)
def test_a_bad_line_or_image_is_named_and_nothing_is_written(tmp_path, line, problem):
    images = {"a.jpg": jpeg(0), "b.jpg": jpeg(1), "small.jpg": jpeg(2, 100), "text.jpg": b"hello"}
    pairs, folder = write_plain(tmp_path, ["a.jpg b.jpg 1", line], images | {"cut.jpg": jpeg(3)[:300]})
    with pytest.raises(PairListError, match=problem):
        make_verification_bin(pairs, folder, tmp_path / "mine.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "list.txt"]


def test_all_problems_are_told_at_once_up_to_ten(tmp_path):
    pairs, folder = write_plain(tmp_path, [f"{i}.jpg {i + 1}.jpg 1" for i in range(30)], {})
    with pytest.raises(PairListError) as caught:
        make_verification_bin(pairs, folder, tmp_path / "mine.bin")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("31 problems:")
    assert len(lines) == 12
    assert lines[-1].strip() == "... and 21 more"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text.replace("10\t2\n", "10\t3\n", 1), r"40 pairs, but its first line says 10 x \(3 same"),
        (lambda text: text.replace("10\t2\n", "0\t0\n", 1), "40 pairs, but its first line says 0 x"),
        (lambda text: "10\t2\n" + "\n".join(reversed(text.splitlines()[1:])), r"line 2: has 4 fields .* same pair"),
        (lambda text: text.replace("Person_A\t1", "../Person_A\t1"), "is no name and number"),
        (lambda text: text.replace("Person_A\t1", "Person_A\t7"), r"Person_A_0007\.jpg: is missing"),
        (lambda text: "", "holds no pairs"),
        (lambda text: "a\udcff b 1\n", "is no text in UTF-8"),
    ],
)
def test_an_lfw_list_with_wrong_counts_or_fields_is_refused(tmp_path, change, problem):
    pairs, folder = write_lfw(tmp_path)
    pairs.write_text(change(pairs.read_text()), errors="surrogateescape")
    with pytest.raises(PairListError, match=problem):
        make_verification_bin(pairs, folder, tmp_path / "mine.bin")


def test_nothing_is_overwritten_silently(tmp_path):
    pairs, folder = write_plain(tmp_path, ["a.jpg b.jpg 1"], {"a.jpg": jpeg(0), "b.jpg": jpeg(1)})
    target = tmp_path / "deep" / "mine.bin"
    make_verification_bin(pairs, folder, target)
    before = target.read_bytes()
    pairs.write_text("a.jpg b.jpg 0\n")
    with pytest.raises(FileExistsError, match="--overwrite replaces it"):
        make_verification_bin(pairs, folder, target)
    assert target.read_bytes() == before
    make_verification_bin(pairs, folder, target, overwrite=True)
    assert read_verification_set(target).same.tolist() == [False]


def test_what_the_command_names_must_be_there(tmp_path):
    pairs, folder = write_plain(tmp_path, ["a.jpg b.jpg 1"], {"a.jpg": jpeg(0), "b.jpg": jpeg(1)})
    with pytest.raises(ValueError, match=r"is named NAME\.bin"):
        make_verification_bin(pairs, folder, tmp_path / "mine.pkl")
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        make_verification_bin(pairs, tmp_path / "nowhere", tmp_path / "mine.bin")
    with pytest.raises(FileNotFoundError, match="no list at"):
        make_verification_bin(tmp_path / "none.txt", folder, tmp_path / "mine.bin")
    with pytest.raises(FileNotFoundError, match="no list at"):
        make_verification_bin(pairs, folder, tmp_path / "mine.bin", landmarks=tmp_path / "none.txt")
