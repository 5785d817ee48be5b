"""CVLface networks load from the Hub and from folders, exactly and only as locked, and nothing of theirs is run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_hub import FakeHub, fake_hub
from golden_weights import golden_state_dict
from narrow_networks import narrow_networks
from rank_processes import run_ranks
from safetensors.torch import save
from tests_support import golden_files
from torch import Tensor, nn

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.backbones.public_weights import public_names
from adadistill.core.distributed import Ranks
from adadistill.core.teachers import LoadedTeacher, Preprocessing, TeacherConfig, TeacherError
from adadistill.core.teachers.cvlface import VIT_REPOSITORIES, load_cvlface
from adadistill.core.teachers.cvlface_files import KNOWN_PINS
from adadistill.core.teachers.sources import network_source
from adadistill.core.teachers.teacher_lock import LockEntry, add_entry, read_lock

REPO = "minchul/cvlface_adaface_ir18_casia"
IR101 = "minchul/cvlface_adaface_ir101_webface12m"
FIRST, SECOND = "a1" * 20, "b2" * 20
WORKER = Path(__file__).with_name("cvlface_worker.py")
SAFETENSORS, PICKLED, YAML = "model.safetensors", "pretrained_model/model.pt", "pretrained_model/model.yaml"

DESCRIPTION = (
    "input_size:\n- 3\n- 16\n- 16\ncolor_space: RGB\nname: ir18\noutput_dim: 8\nstart_from: ''\nfreeze: false\n"
)
CONFIG = json.dumps(
    {
        "auto_map": {"AutoModel": "wrapper.CVLFaceRecognitionModel"},
        "conf": {"color_space": "RGB", "input_size": [3, 16, 16], "name": "ir18", "output_dim": 8},
    }
)
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@dataclass(frozen=True)
class Published:
    """A narrow network of the smallest architecture, in the two files in which CVLface publishes one."""

    network: nn.Module
    tensors: dict[str, Tensor]
    """Under the public names, without prefix. Half precision, which all of the network's values fit in."""
    safetensors: bytes
    pickled: bytes


@pytest.fixture(autouse=True)
def narrow(request: pytest.FixtureRequest) -> Iterator[None]:
    """But for the golden network, which is as it was published."""
    with nullcontext() if request.node.get_closest_marker("golden") else narrow_networks():
        yield


@pytest.fixture(scope="module")
def published() -> Published:
    with narrow_networks():
        network = build_backbone(BackboneConfig(arch="ir18", embedding_dim=8), 16, generator=3).eval()
        own = network.state_dict()
        halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in own.items()}
        network.load_state_dict(halves)
        tensors = {public: halves[name] for name, public in public_names(network).items()}
    return Published(network, tensors, _safetensors(tensors), _pickled(_prefixed(tensors, "net.")))


@pytest.fixture
def hub(published: Published) -> Iterator[FakeHub]:
    """A repository of one commit, with everything in it that must not be touched."""
    with fake_hub(REPO) as hub:
        hub.add(FIRST, _repository(published))
        yield hub


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a lock file's place and a cache."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _safetensors(tensors: dict[str, Tensor], prefix: str = "model.net.") -> bytes:
    return save(_prefixed(tensors, prefix))


def _pickled(value: object) -> bytes:
    buffer = BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


CANARY = "import pathlib; pathlib.Path('executed').touch()\n"


def _repository(published: Published, **changes: bytes | None) -> dict[str, bytes]:
    files: dict[str, bytes | None] = {
        "README.md": b"# a model",
        "files.txt": b"models/__init__.py\n../../../evil.py\nwrapper.py",
        "config.json": CONFIG.encode(),
        "wrapper.py": CANARY.encode(),
        "models/__init__.py": CANARY.encode(),
        "pretrained_model/config.yaml": b"!!python/object/apply:os.system [touch executed]",
        "../../../evil.py": CANARY.encode(),
        YAML: DESCRIPTION.encode(),
        SAFETENSORS: published.safetensors,
        PICKLED: published.pickled,
        **changes,
    }
    return {name: body for name, body in files.items() if body is not None}


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        if ".." not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(body)
    return folder


def _load(source: str, hub: FakeHub | None = None, **changes: Any) -> LoadedTeacher:
    """Load beside the working directory; without a hub any request would fail."""
    address = "http://127.0.0.1:9" if hub is None else hub.address
    arguments = {"revision": None, "color": None, "endpoint": address, "ranks": Ranks()}
    arguments |= {"lock": Path("lock.json"), "cache_dir": Path("cache")}
    return load_cvlface(source, **{**arguments, **changes})


def _refused(message: str, source: str, hub: FakeHub | None = None, **changes: Any) -> None:
    with pytest.raises(TeacherError, match=message):
        _load(source, hub, **changes)


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _assert_same(loaded: LoadedTeacher, published: Published) -> None:
    with torch.inference_mode():
        assert torch.equal(loaded.network()(IMAGES), published.network(IMAGES))


# --- The networks are the published ones ---


GOLDEN_CASES = golden_files("backbone_ir18.npz")


@pytest.mark.golden
@pytest.mark.parametrize("case", GOLDEN_CASES, ids=lambda path: path.stem)
def test_embeddings_are_those_of_the_public_implementation(here: Path, golden_dir: Path, case: Path):
    with np.load(golden_dir / "backbone_images.npz") as arrays:
        images = torch.from_numpy(arrays["images_u8"]).float() / 127.5 - 1.0
    with np.load(case) as arrays:
        expected = torch.from_numpy(arrays["output"])
    size, dim, arch = images.shape[-1], expected.shape[1], case.stem.removeprefix("backbone_")
    description = f"name: {arch}\ninput_size: [3, {size}, {size}]\noutput_dim: {dim}\ncolor_space: 'RGB'\n"
    tensors = {k: t.float() if t.is_floating_point() else t for k, t in golden_state_dict(case).items()}
    _write(here / "teacher", {YAML: description.encode(), PICKLED: _pickled(_prefixed(tensors, "net."))})

    loaded = _load("teacher")

    with torch.inference_mode():
        embeddings = nn.functional.normalize(loaded.network()(images)).double()
    torch.testing.assert_close(embeddings, nn.functional.normalize(expected), rtol=0.0, atol=2e-6)
    identity = loaded.identity
    assert (identity.arch, identity.embedding_dim, identity.image_size) == (arch, dim, size)


# --- From the Hub ---


def test_a_repository_loads_as_its_network_from_three_files_and_is_locked(
    hub: FakeHub, here: Path, published: Published
):
    loaded = _load(REPO, hub)
    _assert_same(loaded, published)
    assert not loaded.body.training
    assert {tensor.dtype for tensor in loaded.body.parameters()} == {torch.float32}
    assert loaded.stated_color == "rgb"
    identity = loaded.identity
    assert (identity.kind, identity.name, identity.arch) == ("cvlface", f"{REPO}@{FIRST[:12]}", "ir18")
    assert (identity.embedding_dim, identity.image_size) == (8, 16)
    assert identity.sha256 == _sha256(published.safetensors)
    assert identity.preprocessing == Preprocessing(color="rgb", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    assert hub.downloads() == [YAML, "config.json", SAFETENSORS]
    asked = {request.split("/resolve/")[1].split("/", 1)[1] for request in hub.requests if "/resolve/" in request}
    assert asked == {YAML, "config.json", SAFETENSORS}
    assert {path.name for path in here.iterdir()} == {"lock.json", "cache"}, "nothing of the repository ran"
    assert not {name for name in sys.modules if name == "transformers" or name.startswith("wrapper")}
    bodies = {SAFETENSORS: published.safetensors, YAML: DESCRIPTION.encode(), "config.json": CONFIG.encode()}
    files = {name: _sha256(body) for name, body in bodies.items()}
    assert read_lock(here / "lock.json") == {REPO: LockEntry(revision=FIRST, files=files)}

    hub.requests.clear()
    before = (here / "lock.json").read_bytes()
    _assert_same(_load(REPO, hub), published)
    assert hub.requests == [], "the second use asks nobody"
    assert (here / "lock.json").read_bytes() == before


def test_without_safetensors_the_pickled_tensors_are_taken(hub: FakeHub, here: Path, published: Published):
    hub.add(FIRST, _repository(published, **{SAFETENSORS: None, "config.json": None}))
    _assert_same(_load(REPO, hub), published)
    assert hub.downloads() == [YAML, PICKLED]


def test_a_repository_that_moves_is_used_as_it_was_locked_or_asked_for(hub: FakeHub, here: Path, published: Published):
    _load(REPO, hub)
    hub.add(SECOND, _repository(published, **{SAFETENSORS: b"another network"}))
    assert _load(REPO, hub, cache_dir=here / "another").identity.name == f"{REPO}@{FIRST[:12]}"
    other = {"lock": here / "other.json", "revision": FIRST}
    assert _load(REPO, hub, **other).identity.name == f"{REPO}@{FIRST[:12]}"
    assert read_lock(here / "other.json")[REPO].revision == FIRST


def test_another_revision_than_the_locked_one_or_none_is_refused(hub: FakeHub, here: Path, published: Published):
    _refused(rf"{REPO}: the repository has no revision {SECOND}", REPO, hub, revision=SECOND)
    _load(REPO, hub)
    hub.add(SECOND, _repository(published))
    both = rf"revision is {SECOND}, but lock.json says {FIRST}; .* remove the entry `{REPO}`"
    _refused(both, REPO, hub, revision=SECOND)


def test_a_bit_that_flips_in_the_cache_is_found(hub: FakeHub, here: Path, published: Published):
    _load(REPO, hub)
    (blob,) = (
        path
        for path in (here / "cache").rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size > 10**5
    )
    with blob.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([published.safetensors[-1] ^ 1]))
    _refused(rf"{SAFETENSORS} has sha256 .*, lock.json says {_sha256(published.safetensors)}", REPO, hub)


def test_a_repository_that_is_not_what_it_says_is_refused_and_not_locked(
    hub: FakeHub, here: Path, published: Published
):
    incomplete = _safetensors(_without(published.tensors, LINEAR), "net.")
    large = b"#" * (1 << 16) + DESCRIPTION.encode()
    for changes, message, downloads in (
        ({SAFETENSORS: incomplete}, rf"missing {LINEAR}", [YAML, "config.json", SAFETENSORS]),
        ({YAML: None}, rf"{FIRST} holds no CVLface network on the Hub: it needs {YAML}", []),
        ({YAML: large}, "more than the 65,536 that such a file can have", []),
    ):
        hub.add(FIRST, _repository(published, **changes))
        hub.requests.clear()
        _refused(message, REPO, hub, cache_dir=here / f"cache{len(downloads)}{len(message)}")
        assert hub.downloads() == downloads
    hub.add(FIRST, _repository(published))
    hub.lfs_sha256[SAFETENSORS] = "0" * 64
    _refused(rf"{SAFETENSORS} has sha256 \w+, the Hub states {'0' * 64}; .* damaged", REPO, hub)
    assert not (here / "lock.json").exists()


def test_a_lock_file_that_cannot_be_written_is_refused_before_the_hub_is_asked(hub: FakeHub, here: Path):
    _refused("there is no folder missing", REPO, hub, lock=Path("missing/lock.json"))
    assert hub.requests == []


# --- The pin that ships ---


def test_the_known_commit_is_used_where_nothing_else_says_one_and_its_hash_is_checked(here: Path, published: Published):
    pin = KNOWN_PINS[IR101]
    with fake_hub(IR101) as hub:
        hub.add(pin.revision, _repository(published))
        hub.add(SECOND, _repository(published))
        _refused(rf"{PICKLED} has sha256 \w+, this version .* knows {pin.files[PICKLED]}", "cvlface_ir101", hub)
    assert hub.downloads()[-1] == PICKLED
    assert not (here / "lock.json").exists()


def test_of_a_known_commit_the_file_with_the_known_hash_is_taken(
    hub: FakeHub, here: Path, published: Published, monkeypatch: pytest.MonkeyPatch
):
    pin = LockEntry(revision=FIRST, files={PICKLED: _sha256(published.pickled)})
    monkeypatch.setattr("adadistill.core.teachers.cvlface_files.KNOWN_PINS", {REPO: pin})
    hub.add(SECOND, _repository(published))
    loaded = _load(REPO, hub)
    _assert_same(loaded, published)
    assert loaded.identity.name == f"{REPO}@{FIRST[:12]}"
    assert loaded.identity.sha256 == pin.files[PICKLED]
    assert _load(REPO, hub, lock=Path("other.json"), revision=SECOND).identity.sha256 == _sha256(published.safetensors)


# --- Offline ---


def test_offline_lock_or_revision_and_cache_are_enough(
    hub: FakeHub, here: Path, published: Published, monkeypatch: pytest.MonkeyPatch
):
    _load(REPO, hub)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when the library is imported
    other = {"lock": Path("other.json")}
    _assert_same(_load(REPO, hub), published)
    for arguments, message in (
        (other, r"HF_HUB_OFFLINE is set, and neither other.json nor teacher.revision says"),
        ({**other, "revision": SECOND}, rf"{SECOND} holds no CVLface network in cache \(HF_HUB_OFFLINE is set\)"),
        ({"cache_dir": Path("empty")}, rf"{YAML} of revision {FIRST} is not in empty; .* `hf download"),
    ):
        _refused(message, REPO, hub, **arguments)
    _assert_same(_load(REPO, hub, **other, revision=FIRST), published)
    assert read_lock(here / "other.json") == read_lock(here / "lock.json")
    assert hub.requests == []


# --- From a folder ---


def _layouts(published: Published) -> dict[str, dict[str, bytes]]:
    yaml = DESCRIPTION.encode()
    return {
        "snapshot": _repository(published, **{PICKLED: b"must not be read"}),
        "pickled": {YAML: yaml, PICKLED: published.pickled},
        "training": {"model.yaml": yaml, "model.pt": published.pickled, "optimizer.pt": b"x"},
    }


@pytest.mark.parametrize("layout", ["snapshot", "pickled", "training"])
def test_a_folder_loads_and_is_locked_by_its_hashes(here: Path, published: Published, layout: str):
    files = _layouts(published)[layout]
    _write(here / "weights" / "ours", files)
    loaded = _load("weights/ours")
    _assert_same(loaded, published)
    assert loaded.identity.name == "ours"
    entry = read_lock(here / "lock.json")["weights/ours"]
    assert entry.revision is None
    assert all(entry.files[name] == _sha256(files[name]) for name in entry.files)
    assert len(entry.files) == (3 if layout == "snapshot" else 2)
    _assert_same(_load("weights/ours"), published)
    assert not (here / "executed").exists()


def test_an_existing_folder_goes_before_the_hub(here: Path, published: Published):
    for source in ("cvlface_ir50", VIT_REPOSITORIES[0], "."):
        _write(here / source, {"model.yaml": DESCRIPTION.encode(), "model.pt": published.pickled})
        assert _load(source).identity.name == (here / source).resolve().name
    assert read_lock(here / "lock.json").keys() == {"cvlface_ir50", VIT_REPOSITORIES[0], "."}


def test_a_snapshot_in_the_hubs_cache_is_a_folder(hub: FakeHub, here: Path, published: Published):
    _load(REPO, hub)
    snapshot = here / "cache" / f"models--{REPO.replace('/', '--')}" / "snapshots" / FIRST
    assert (snapshot / SAFETENSORS).is_symlink()
    _assert_same(_load(str(snapshot), lock=Path("other.json")), published)


def test_a_changed_file_of_a_folder_is_refused_with_both_hashes(here: Path, published: Published):
    folder = _write(here / "ours", {"model.yaml": DESCRIPTION.encode(), "model.pt": published.pickled})
    _load("ours")
    changed = DESCRIPTION.replace("RGB", "BGR").encode()
    (folder / "model.yaml").write_bytes(changed)
    both = rf"ours, model.yaml has sha256 {_sha256(changed)}, lock.json says {_sha256(DESCRIPTION.encode())}.*"
    _refused(rf"{both}If the change is meant, remove the entry `ours` from lock\.json", "ours")
    (folder / "model.yaml").unlink()
    _refused(r"ours/model\.yaml is missing", "ours")
    _refused(r"revision is for repositories on the Hub, but ours is a folder", "ours", revision=FIRST)


def test_whether_loading_would_write_is_known_beforehand(here: Path, published: Published):
    _write(here / "ours", _layouts(published)["training"])
    config = TeacherConfig(cvlface="ours", lock="lock.json")
    source = network_source(config)
    assert source is not None
    assert source.writes(config)
    _load("ours")
    assert not source.writes(config)


def test_a_folder_without_a_network_is_refused_with_what_it_must_hold(here: Path):
    for number, files in enumerate(({}, {"model.pt": b"x"}, {YAML: b"x"}, {"model.yaml": b"x", PICKLED: b"x"})):
        (here / f"ours{number}").mkdir()
        _write(here / f"ours{number}", files)
        _refused(r"holds no CVLface network: it must have .* model\.yaml and model\.pt", f"ours{number}")


def test_a_folder_in_place_of_a_locked_repository_is_refused_and_the_reverse(
    hub: FakeHub, here: Path, published: Published
):
    _load(REPO, hub)
    _write(here / REPO, _layouts(published)["training"])
    _refused(f"locked in lock.json as a repository at revision {FIRST}, but is a folder here", REPO, hub)
    _load(REPO, hub, lock=Path("other.json"))
    (here / REPO).rename(here / "moved")
    _refused(r"locked in other\.json as a folder, but there is no such folder", REPO, hub, lock=Path("other.json"))


# --- Hostile files ---


class _Payload:
    """Runs a command where a pickle is loaded without limits."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickled_payload_is_refused_and_does_not_run(here: Path, published: Published):
    canary = here / "executed"
    payloads = [pickle.dumps(_Payload(canary), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    zipped = [_pickled(_Payload(canary)), _pickled({**_prefixed(published.tensors, "net."), "x": _Payload(canary)})]
    for number, body in enumerate(payloads + zipped):
        _write(here / f"evil{number}", {"model.yaml": DESCRIPTION.encode(), "model.pt": body})
        _refused(r"cannot be read by torch's restricted unpickler|is text", f"evil{number}")  # protocol 0
    assert not canary.exists()
    assert not (here / "lock.json").exists()
    pickle.loads(payloads[0])  # had it run, there would be a trace
    assert canary.exists()


def _without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {other: tensor for other, tensor in tensors.items() if other != name}


LINEAR = "output_layer.3.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {f"x.{name}.y": tensor for name, tensor in t.items()},
            r"(?s) problems:.*missing input_layer\.0\.weight.* and \d+ more",
        ),
        (
            lambda t: _prefixed({**_without(t, "body.3.res_layer.0.bias"), "extra": torch.zeros(3)}, "net."),
            r"(?s)2 problems:.*missing body\.3\.res_layer\.0\.bias.*not expected extra \[3\]",
        ),
        (
            lambda t: _prefixed({**t, LINEAR: torch.zeros(8, 64).to_sparse()}, "net."),
            rf"model\.pt is no state dict: 1 entries are no plain tensors, such as net\.{LINEAR}",
        ),
        (lambda t: {**_prefixed(t, "net."), "stray": torch.zeros(3)}, r"1 problems:\n  not expected stray \[3\]"),
        (lambda t: [1], "holds a list, not a state dict"),
    ],
    ids=["prefix", "names", "sparse", "stray", "list"],
)
def test_tensors_of_another_network_are_refused_with_a_list(here: Path, published: Published, change, message: str):
    _write(here / "ours", {"model.yaml": DESCRIPTION.encode(), "model.pt": _pickled(change(published.tensors))})
    with pytest.raises(TeacherError, match=message):
        _load("ours")


def test_a_description_of_a_giant_is_refused_before_memory_is_asked_for(here: Path):
    giant = DESCRIPTION.replace("- 16", "- 1024").replace("output_dim: 8", "output_dim: 16384").encode()
    # One element, said to be as many as the giant's last layer has.
    tensors = {f"net.{LINEAR}": torch.zeros(1).expand(16384, 64 * 64 * 64)}
    _write(here / "ours", {"model.yaml": giant, "model.pt": _pickled(tensors)})
    with pytest.raises(TeacherError, match=r"describes a network of 17,.* bytes, more than the 1,073,741,824"):
        _load("ours")


def test_a_link_out_of_the_folder_or_to_nowhere_and_a_pipe_are_refused(here: Path, published: Published):
    files = _layouts(published)["snapshot"]
    _write(here / "elsewhere", files)
    for number, name in enumerate((SAFETENSORS, YAML, "config.json")):
        folder = _write(here / f"ours{number}", files)
        (folder / name).unlink()
        (folder / name).symlink_to(here / "elsewhere" / name)
        _refused(rf"ours{number}/{name} leads out of its folder, to {here}/elsewhere", f"ours{number}")
    (folder / "config.json").unlink()
    for target in ("nothing", SAFETENSORS):  # dangling; a loop
        (folder / SAFETENSORS).unlink()
        (folder / SAFETENSORS).symlink_to(target)
        _refused(r"ours2/model\.safetensors (is missing|cannot be read)", "ours2")
    (folder / YAML).unlink()
    os.mkfifo(folder / YAML)
    _refused(r"model\.yaml is no regular file", "ours2")


@pytest.mark.parametrize("name", ["wrapper.py", "../model.yaml", None])
def test_a_lock_entry_names_the_files_of_a_network_and_no_others(hub: FakeHub, here: Path, name: str | None):
    names = [SAFETENSORS] if name is None else [SAFETENSORS, name]
    add_entry(here / "lock.json", REPO, LockEntry(revision=FIRST, files=dict.fromkeys(names, "0" * 64)))
    lacking = r"lists model\.safetensors, which make no CVLface network"
    message = lacking if name is None else rf"lock.json, entry `{REPO}`: {name} is none of the files"
    _refused(message, REPO, hub)
    assert hub.requests == []


def test_a_damaged_lock_file_stops_everything(hub: FakeHub, here: Path):
    (here / "lock.json").write_text("{}")
    _refused(r"lock\.json is no readable lock file", REPO, hub)
    assert hub.requests == []


# --- What is not built, or not there ---


def test_vision_transformers_are_refused_before_anything_is_asked(hub: FakeHub, here: Path):
    for repo_id in VIT_REPOSITORIES:
        with pytest.raises(
            TeacherError, match=rf"{repo_id} is a vision transformer.* `adadistill cache import`"
        ) as error:
            _load(repo_id, hub)
        assert ("keypoints" in str(error.value)) == ("kprpe" in repo_id)
    assert hub.requests == []


def test_a_transformer_under_any_name_is_refused_before_its_weights_are_fetched(
    hub: FakeHub, here: Path, published: Published
):
    description = DESCRIPTION.replace("ir18", "base") + "rpe_config:\n  name: KPRPE_shared\n"
    hub.add(FIRST, _repository(published, **{YAML: description.encode()}))
    _refused(rf"{REPO}@{FIRST[:12]}, {YAML} is a KPRPE network, `base`; .* keypoints", REPO, hub)
    assert hub.downloads() == [YAML]


def test_what_names_nothing_is_refused_with_what_could_be_meant(hub: FakeHub, here: Path):
    for source, hint in (
        ("cvlface_ir5", "did you mean cvlface_ir50?"),
        ("cvlface_adaface_ir18_vgg2", "did you mean minchul/cvlface_adaface_ir18_vgg2?"),
        ("nothing", "no repository `owner/name` on the Hub"),
        ("../x/y", "is no folder here"),
        ("minchul/a--b", "is no folder here"),
        ("a\0b", "is no folder here"),
        ("x" * 5000, "is no folder here"),
    ):
        _refused(re.escape(hint), source, hub)
    assert hub.requests == []


# --- Colour order ---


def _coloured(here: Path, published: Published, description: str | None, config: str | None) -> None:
    line = "" if description is None else f"color_space: {description}\n"
    files = {YAML: DESCRIPTION.replace("color_space: RGB\n", line).encode(), SAFETENSORS: published.safetensors}
    if config is not None:
        files["config.json"] = json.dumps({"conf": {"model": {"color_space": config}}}).encode()
    _write(here / "ours", files)


@pytest.mark.parametrize(
    ("description", "config", "stated"),
    [("BGR", "BGR", "bgr"), (None, "BGR", "bgr"), (None, None, None)],
)
def test_colour_order_is_what_the_files_state(here: Path, published: Published, description, config, stated):
    _coloured(here, published, description, config)
    loaded = _load("ours")
    assert loaded.stated_color == stated
    assert loaded.identity.preprocessing.color == (stated or "rgb")  # CVLface feeds RGB where nothing is said
    with torch.inference_mode():
        images = IMAGES.flip(1) if stated == "bgr" else IMAGES
        assert torch.equal(loaded.network()(IMAGES), published.network(images))


def test_files_that_contradict_each_other_need_a_word_of_the_recipe(here: Path, published: Published):
    _coloured(here, published, "RGB", "BGR")
    _refused(r"model\.yaml says .* RGB, config\.json says BGR.* set teacher\.color to auto", "ours")
    assert not (here / "lock.json").exists()
    for color in ("auto", "rgb", "bgr"):
        assert _load("ours", color=color).stated_color is None


# --- Ranks and processes ---


def _run_workers(folder: Path, jobs: list[dict[str, Any]]) -> list[list[dict]]:
    """Every job in both ranks of one process group; what each came to, by rank."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_ranks([str(WORKER), str(folder / "jobs.json"), str(folder)], 2)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def _job(hub: FakeHub, here: Path, source: str, **changes: Any) -> dict[str, Any]:
    places = {"lock": str(here / "lock.json"), "cache_dir": str(here / "cache-{rank}")}
    return {"source": source, "endpoint": hub.address, "revision": None, "color": None, **places, **changes}


def test_ranks_load_the_same_bytes_or_fail_alike(hub: FakeHub, here: Path, published: Published):
    moved = {name: (tensor * 2 if tensor.is_floating_point() else tensor) for name, tensor in published.tensors.items()}
    hub.commits[SECOND] = _repository(published, **{SAFETENSORS: _safetensors(moved)})
    hub.moves_to = SECOND
    for rank, pickled in enumerate((published.pickled, _pickled(_prefixed(moved, "net.")))):
        _write(here / f"folder-{rank}", {"model.yaml": DESCRIPTION.encode(), "model.pt": pickled})
        (here / f"root-{rank}").mkdir()
    jobs = [
        _job(hub, here, REPO),  # each rank with a cache of its own, and the Hub moves after it was asked once
        _job(hub, here, "minchul/nothing"),
        _job(hub, here, str(here / "folder-{rank}")),  # the machines do not see the same folder
    ]

    first, second = _run_workers(here, jobs)

    assert first[0]["identity"]["name"] == f"{REPO}@{FIRST[:12]}"
    assert first[0] == second[0]
    assert [request for request in hub.requests if REPO in request and "/api/" in request] == [
        f"GET /api/models/{REPO}"
    ]
    assert hub.newest == SECOND
    assert "no such repository" in first[1]["error"]
    assert first[1] == second[1]
    assert first[2]["identity"]["name"] == "folder-0"
    assert "model.pt has sha256" in second[2]["error"]
    assert "rank 0 read" in second[2]["error"]
    assert read_lock(here / "lock.json").keys() == {REPO, str(here / "folder-0")}
