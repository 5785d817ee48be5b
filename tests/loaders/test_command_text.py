"""Commands in messages can be typed as they stand."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from adadistill.loaders.command_text import quoted
from adadistill.loaders.dataset_tools.inspection import inspect_path
from adadistill.loaders.synthetic.synthetic_faces import SyntheticFacesConfig, write_synthetic_records


@pytest.mark.parametrize("name", ["a b", "it's", "$HOME", "a;b", "-x", "~", "plain"])
def test_a_name_comes_back_as_one_word(name: str):
    (word,) = shlex.split(quoted(name))
    assert Path(word) == Path(name)
    assert not word.startswith(("-", "~"))


def test_next_steps_name_a_path_with_spaces_as_one_word(tmp_path: Path):
    folder = tmp_path / "a b"
    write_synthetic_records(folder, SyntheticFacesConfig(image_size=32, identities=2, images_per_identity=2))
    steps = inspect_path(folder / "train.rec").next_steps
    steps = [step[step.index("adadistill ") :] for step in steps if "adadistill " in step]
    assert steps
    for step in steps:
        assert str(folder / "train.rec") in shlex.split(step)
