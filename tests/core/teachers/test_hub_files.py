"""Files come from the Hub at one commit, into the cache and nowhere else; every failure is one sentence."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, fake_hub

from adadistill.core.teachers import TeacherError
from adadistill.core.teachers.hub_files import REPOSITORY_ID, HubRepository

REPO = "someone/teacher"
OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub(REPO) as hub:
        hub.add(OLD, {"model.yaml": b"old", "model.safetensors": b"old weights"})
        hub.add(NEW, {"model.yaml": b"new", "model.safetensors": b"new weights", "../../evil.py": b"no"})
        yield hub


@pytest.fixture
def repository(hub: FakeHub, tmp_path: Path) -> HubRepository:
    return HubRepository(REPO, endpoint=hub.address, cache_dir=tmp_path / "hub" / "cache")


def _files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_listing_is_of_the_newest_commit_or_the_one_asked_for(repository: HubRepository):
    assert repository.listing(None) == (NEW, {"model.yaml", "model.safetensors", "../../evil.py"})
    assert repository.listing(OLD)[0] == OLD


def test_a_file_is_fetched_at_its_commit_and_then_comes_from_the_cache(hub: FakeHub, repository: HubRepository):
    assert repository.cached(OLD, "model.yaml") is None
    assert repository.fetch(OLD, "model.yaml", max_bytes=10).read_bytes() == b"old"
    assert repository.fetch(NEW, "model.yaml", max_bytes=10).read_bytes() == b"new"
    hub.requests.clear()
    path = repository.fetch(OLD, "model.yaml", max_bytes=10)
    assert path == repository.cached(OLD, "model.yaml")
    assert path.name == "model.yaml"
    assert hub.requests == []
    repository.fetch(OLD, "model.safetensors", max_bytes=100)
    assert repository.stated == {"model.safetensors": hashlib.sha256(b"old weights").hexdigest()}


def _list_and_fetch(repository: HubRepository) -> None:
    repository.listing(OLD)
    repository.fetch(OLD, "model.yaml", max_bytes=10)


@pytest.mark.parametrize(
    ("part", "status", "code", "message"),
    [
        ("/api/", 404, "RepoNotFound", "no such repository, or does not show it to you, .* no folder of that name"),
        ("/api/", 401, "RepoNotFound", "set HF_TOKEN where it is private"),
        ("/api/", 401, "", "HTTP 401; check name and HF_TOKEN"),
        ("/api/", 403, "GatedRepo", "is gated; accept its terms on its page"),
        ("/api/", 500, "", "asked what it holds, the Hub answered HTTP 500; .* try again later"),
        ("/api/", 404, "RevisionNotFound", f"has no revision {OLD}; correct teacher.revision"),
        ("/resolve/", 404, "EntryNotFound", f"asked for model.yaml, but revision {OLD} has no such file"),
        ("/resolve/", 503, "", "asked for model.yaml, the Hub answered HTTP 503"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_without_a_chain(
    hub: FakeHub, repository: HubRepository, part: str, status: int, code: str, message: str
):
    hub.failing[part] = (status, code)
    with pytest.raises(TeacherError, match=message) as error:
        _list_and_fetch(repository)
    assert str(error.value).startswith(f"{REPO}: ")
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        repository = HubRepository(REPO, endpoint=address, cache_dir=tmp_path)
        with pytest.raises(TeacherError, match=r"could not be reached .* check the network"):
            repository.listing(None)
        with pytest.raises(TeacherError, match=r"asked for model\.yaml, the Hub could not be reached"):
            repository.fetch(OLD, "model.yaml", max_bytes=10)


def test_an_answer_that_is_no_hubs_is_refused(hub: FakeHub, repository: HubRepository):
    for answer in (b"", b"<html>hello</html>", b"[]", b"{}", b'{"id": "x", "siblings": [1]}', b"[" * 99999):
        hub.raw_info = answer
        with pytest.raises(TeacherError, match=REPO):
            repository.listing(None)


def test_a_commit_that_is_none_or_another_is_refused(hub: FakeHub, repository: HubRepository):
    for commit in (None, "main", "../../x", "A" * 40, 7):
        hub.info["sha"] = commit
        with pytest.raises(TeacherError, match="the Hub names no commit"):
            repository.listing(None)
    hub.info["sha"] = NEW
    with pytest.raises(TeacherError, match=f"asked for revision {OLD}, the Hub answered with {NEW}"):
        repository.listing(OLD)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ETag", '"../../../../evil"', "cannot name a cached file"),
        ("ETag", '""', "cannot name a cached file"),
        ("X-Linked-Etag", '"../evil"', "cannot name a cached file"),
        ("X-Repo-Commit", NEW, f"asked for revision {OLD}, the server answered with {NEW}"),
        ("X-Linked-Size", str(1 << 50), "more than the 10 that such a file can have"),
    ],
)
def test_an_offer_that_lies_is_refused_and_nothing_is_written(
    hub: FakeHub, repository: HubRepository, tmp_path: Path, name: str, value: str, message: str
):
    hub.headers[name] = value
    with pytest.raises(TeacherError, match=message):
        repository.fetch(OLD, "model.yaml", max_bytes=10)
    assert hub.downloads() == []
    assert _files_below(tmp_path) == set()


def test_a_larger_file_than_allowed_is_not_downloaded_and_nothing_is_written_outside_the_cache(
    hub: FakeHub, repository: HubRepository, tmp_path: Path
):
    with pytest.raises(TeacherError, match=r"model\.safetensors has 11 bytes, more than the 10"):
        repository.fetch(OLD, "model.safetensors", max_bytes=10)
    assert hub.downloads() == []
    repository.listing(None)
    repository.fetch(NEW, "model.yaml", max_bytes=10)
    inside = _files_below(tmp_path / "hub" / "cache")
    assert inside == {str(Path(*Path(name).parts[2:])) for name in _files_below(tmp_path)}


def test_a_cached_link_that_leads_out_of_the_cache_is_refused(repository: HubRepository, tmp_path: Path):
    path = repository.fetch(OLD, "model.yaml", max_bytes=10)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(TeacherError, match=rf"model\.yaml in the cache leads to {secret}, which is no file inside"):
        repository.fetch(OLD, "model.yaml", max_bytes=10)


def test_a_cache_that_cannot_be_written_is_said_to_be_that(hub: FakeHub, tmp_path: Path):
    (tmp_path / "file").touch()
    repository = HubRepository(REPO, endpoint=hub.address, cache_dir=tmp_path / "file" / "cache")
    with pytest.raises(TeacherError, match=r"cannot be written: .*; set HF_HUB_CACHE to another"):
        repository.fetch(OLD, "model.yaml", max_bytes=10)


def test_offline_only_the_cache_is_used(hub: FakeHub, repository: HubRepository, monkeypatch: pytest.MonkeyPatch):
    repository.fetch(OLD, "model.yaml", max_bytes=10)
    hub.requests.clear()
    # The library reads the variable when it is imported; test_cvlface.py sets it for a whole process.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = HubRepository(REPO, endpoint=hub.address, cache_dir=repository.cache_dir)
    assert offline.fetch(OLD, "model.yaml", max_bytes=10).read_bytes() == b"old"
    with pytest.raises(TeacherError, match=rf"not in .*; .* run `hf download {REPO} model.yaml --revision {NEW}`"):
        offline.fetch(NEW, "model.yaml", max_bytes=10)
    assert hub.requests == []


def test_what_could_lead_elsewhere_is_no_repository():
    strangers = ["", "a", "a/", "a/b/c", "../b", "a/..", "./a", "a/.b", "a--b/c", "a b/c", "a/b?c", "a/b\n", "a\\b/c"]
    assert all(map(REPOSITORY_ID.fullmatch, ("minchul/cvlface_adaface_ir50_webface4m", "a/b", "A-b/c.d_e", "0/1")))
    assert not any(map(REPOSITORY_ID.fullmatch, [*strangers, "a/%2e%2e", "ä/b", "http://a/b"]))
