"""A TinyFace folder opens in either layout, and what is wrong with one is said at the door."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from noise_records import jpeg

from adadistill.loaders.evaluation_sets.image_sets import AlignedImages, ImageFiles, ImageSetError
from adadistill.loaders.evaluation_sets.tinyface import DISTRACTOR, open_tinyface, tinyface_of_lists

PROBES = ["12_1.jpg", "7_3.jpg", "99_1.jpg"]
GALLERY = ["7_1.jpg", "12_2.jpg"]
DISTRACTORS = ["d_1.jpg", "d_2.jpg", "x.jpg"]
BODIES = {name: jpeg(seed, 8) for seed, name in enumerate([*PROBES, *GALLERY, *DISTRACTORS])}


def write_folders(root: Path) -> Path:
    for folder, names in (("Probe", PROBES), ("Gallery_Match", GALLERY), ("Gallery_Distractor", DISTRACTORS)):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(BODIES[name])
    return root


def lists(**other: object) -> dict[str, object]:
    """What metadata.pt holds; its paths were made on another machine, before the images were aligned."""
    own: dict[str, object] = {
        "image_paths": [f"/elsewhere/{name}" for name in BODIES],
        "probe_paths": [f"/data/tinyface/Probe/{name}" for name in PROBES],
        "gallery_paths": [f"/data/tinyface/Gallery_Match/{name}" for name in GALLERY],
        "distractor_paths": [
            f"/data/tinyface/Gallery_Distractor/{name.replace('.jpg', '.png')}" for name in DISTRACTORS
        ],
    }
    return {name: value for name, value in {**own, **other}.items() if value is not None}


def write_arrow(folder: Path, metadata: Mapping[str, object] | None = None, **columns: object) -> Path:
    arrow_folders = pytest.importorskip("arrow_folders", reason="pyarrow (extra arrow) is not installed")
    order = [3, 0, 7, 5, 1, 6, 2, 4]
    names = [list(BODIES)[index] for index in order]
    own = {"image": [BODIES[name] for name in names], "index": order, "path": [f"aligned/{name}" for name in names]}
    arrow_folders.write_arrow_folder(folder, {**own, **columns})
    torch.save(lists() if metadata is None else dict(metadata), folder / "metadata.pt")
    return folder


def test_both_layouts_hold_the_same_set(tmp_path):
    for tinyface in (open_tinyface(write_arrow(tmp_path / "tiny_0.1")), open_tinyface(write_folders(tmp_path / "t"))):
        bodies = list(tinyface.images.bodies(0, len(tinyface.images)))
        assert [bodies[row] for row in tinyface.probes] == [BODIES[name] for name in PROBES]
        assert [bodies[row] for row in tinyface.gallery[:2]] in (
            [BODIES[name] for name in GALLERY],
            [BODIES[name] for name in sorted(GALLERY)],  # files come by name
        )
        assert tinyface.probe_labels.tolist() == [12, 7, 99]
        assert sorted(tinyface.gallery_labels.tolist()) == [DISTRACTOR, DISTRACTOR, DISTRACTOR, 7, 12]
        assert tinyface.counts == {"images": 8, "probes": 3, "gallery": 2, "distractors": 3}
    assert open_tinyface(tmp_path / "tiny_0.1").name == "tiny_0.1"


def test_pixels_come_in_the_order_of_the_rows_and_of_one_size(tmp_path):
    tinyface = open_tinyface(write_folders(tmp_path / "t"))
    pixels = [read() for read in AlignedImages(tinyface.images).readers(1, 8, 8)]
    expected = [simplejpeg.decode_jpeg(body, colorspace="RGB") for body in tinyface.images.bodies(1, 8)]
    assert np.array_equal(np.stack(pixels), np.stack(expected))
    with pytest.raises(ImageSetError, match=r"8 of 8 images cannot be used; .*8 x 8 pixels, .* takes 9 x 9"):
        tinyface.inspect(9)
    with pytest.raises(ImageSetError, match=r"is 8 x 8 pixels, and the network takes 9 x 9"):
        next(AlignedImages(tinyface.images).readers(0, 1, 9))()


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        (lists(probe_paths=None), "has no probe_paths; it holds distractor_paths, gallery_paths, image_paths"),
        (lists(gallery_paths=[]), "gallery_paths is empty"),
        (lists(probe_paths=[1, 2]), "probe_paths is no list of paths"),
        (lists(probe_paths=["Probe/12_9.jpg"]), "lists 'Probe/12_9.jpg', and there is no image of that name"),
        (lists(probe_paths=["12_1.jpg", "a/12_1.png"]), "probe_paths lists 'a/12_1.png' twice"),
        (lists(probe_paths=["x.jpg"]), "must begin with a person's number"),
        (lists(probe_paths=["99_1.jpg"]), "no probe's person is in the gallery"),
        (lists(image_paths=["a"] * 9), "metadata.pt lists 9 image_paths for 8 images"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(tmp_path, metadata, problem):
    with pytest.raises(ImageSetError, match=problem):
        open_tinyface(write_arrow(tmp_path / "tiny", metadata))


def test_two_images_of_one_name_are_told_apart_by_path_or_refused(tmp_path):
    paths = ["Probe/1_1.jpg", "Gallery_Match/1_1.jpg", "Gallery_Match/2_1.jpg"]
    images = ImageFiles(tmp_path, tuple(paths))
    by_path = {"probe_paths": paths[:1], "gallery_paths": paths[1:], "distractor_paths": []}
    assert tinyface_of_lists(tmp_path, images, paths, by_path).gallery.tolist() == [1, 2]
    by_name = {**by_path, "probe_paths": ["elsewhere/1_1.jpg"]}
    with pytest.raises(ImageSetError, match=r"'elsewhere/1_1\.jpg', and two images or more have that name"):
        tinyface_of_lists(tmp_path, images, paths, by_name)
    with pytest.raises(ImageSetError, match=r"two images have the path 'Probe/1_1\.jpg'"):
        tinyface_of_lists(tmp_path, images, [paths[0]] * 3, by_path)


def test_a_person_is_a_plain_number_before_the_first_underscore(tmp_path):
    for name in ("-3_1.jpg", "3.jpg", "\u0663_1.jpg", "1e3_1.jpg", "9" * 30 + "_1.jpg", "_1.jpg"):
        paths = [name, "3_2.jpg"]
        found = {"probe_paths": [name], "gallery_paths": ["3_2.jpg"], "distractor_paths": []}
        with pytest.raises(ImageSetError, match=r"must begin with a person's number|no probe's person"):
            tinyface_of_lists(tmp_path, ImageFiles(tmp_path, tuple(paths)), paths, found)


def test_folders_that_hold_no_such_set_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no TinyFace folder"):
        open_tinyface(tmp_path / "nowhere")
    with pytest.raises(ImageSetError, match=r"neither state\.json.* nor folders Probe"):
        open_tinyface(tmp_path)
    root = write_folders(tmp_path / "t")
    (root / "Gallery_Distractor").rename(root / "distractors")
    with pytest.raises(ImageSetError, match="has no folder Gallery_Distractor"):
        open_tinyface(root)
    folder = write_arrow(tmp_path / "arrow")
    (folder / "metadata.pt").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ImageSetError, match=r"metadata\.pt"):
        open_tinyface(folder)
    (folder / "metadata.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"metadata\.pt"):
        open_tinyface(folder)
