"""Files of a repository on the Hugging Face Hub at one commit: a few that we name, never what the repository lists.

`huggingface_hub` downloads and caches (HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE as everywhere). Here a file
is taken only at a full commit, what the server offers is looked at before anything is fetched (the library joins its
ETag to a path as it is), and every failure is one sentence that says what to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from adadistill.core.config.yaml_tree import show_text
from adadistill.core.teachers.interface import TeacherError

REPOSITORY_ID: Final = re.compile(r"{0}/{0}".format(r"[A-Za-z0-9](?:\w|-(?!-)|\.(?!\.))*(?<![-.])"), re.ASCII)
"""owner/name, without what would be another place in a file system or a URL."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ETAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TIMEOUT_S: Final = 30.0
_LEADS: Final = re.compile(r"(all|https?|no)_proxy|hf_endpoint|hf_hub_\w+_timeout|ssl_cert_(file|dir)", re.IGNORECASE)


class HubRepository:
    """One model repository.

    Args:
        repo_id: `owner/name`, as `REPOSITORY_ID` wants it.
        endpoint: address of the Hub; None for HF_ENDPOINT, else huggingface.co.
        cache_dir: where files are kept; None for HF_HUB_CACHE.
    """

    def __init__(self, repo_id: str, *, endpoint: str | None = None, cache_dir: Path | None = None) -> None:
        try:
            from huggingface_hub import constants
        except (ValueError, ImportError) as error:  # it reads the environment as it is imported
            raise TeacherError(f"{repo_id}: huggingface_hub cannot be used ({_first_line(error)}){_set()}") from None
        self.repo_id = repo_id
        self._endpoint = endpoint
        self.cache_dir = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)
        self.offline: bool = constants.HF_HUB_OFFLINE
        """Whether HF_HUB_OFFLINE forbids the network."""
        self.stated: dict[str, str] = {}
        """sha256 that the Hub states of the large files that were downloaded."""

    def listing(self, revision: str | None) -> tuple[str, frozenset[str]]:
        """Ask the Hub which commit `revision` is (None: the newest), and which paths it lists. Raises TeacherError."""
        from huggingface_hub import HfApi

        with self._explained(revision, "asked what it holds"):
            info = HfApi(endpoint=self._endpoint).model_info(self.repo_id, revision=revision, timeout=_TIMEOUT_S)
            commit, names = info.sha, frozenset(str(sibling.rfilename) for sibling in info.siblings or ())
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise TeacherError(f"{self.repo_id}: the Hub names no commit, got {show_text(repr(commit))}")
        if revision not in (None, commit):
            raise TeacherError(f"{self.repo_id}: asked for revision {revision}, the Hub answered with {commit}")
        return commit, names

    def cached(self, revision: str, name: str) -> Path | None:
        """Path of a file in the local cache, None where it is not there. Raises TeacherError for one that leads out."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache_dir, revision=revision)
        return self._inside_cache(Path(found), name) if isinstance(found, str) else None

    def fetch(self, revision: str, name: str, *, max_bytes: int) -> Path:
        """Path of a file at a commit in the local cache, downloaded first where it is not there.

        Args:
            revision: full commit, 40 hex digits.
            name: path inside the repository, one that we chose.
            max_bytes: a larger file is not downloaded.

        Raises:
            TeacherError: it cannot be had, is too large, or would lie outside the cache.
        """
        found = self.cached(revision, name)
        if found is not None:
            return found
        if self.offline:
            raise TeacherError(
                f"{self.repo_id}: HF_HUB_OFFLINE is set and {name} of revision {revision} is not in {self.cache_dir}; "
                f"where the Hub can be reached, run `hf download {self.repo_id} {name} --revision {revision}`"
            )
        from huggingface_hub import hf_hub_download

        with self._explained(revision, f"asked for {name}"):
            self._check_offer(revision, name, max_bytes)
            path = hf_hub_download(
                self.repo_id, name, revision=revision, cache_dir=self.cache_dir, endpoint=self._endpoint
            )
        return self._inside_cache(Path(path), name)

    def _check_offer(self, revision: str, name: str, max_bytes: int) -> None:
        """Look at what the server would send before anything is written."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.repo_id, name, revision=revision, endpoint=self._endpoint)
        offer = get_hf_file_metadata(url, timeout=_TIMEOUT_S)
        where = f"{self.repo_id}, {name}"
        if offer.commit_hash != revision:
            answered = show_text(str(offer.commit_hash))
            raise TeacherError(f"{where}: asked for revision {revision}, the server answered with {answered}")
        if offer.etag is None or not _ETAG.fullmatch(offer.etag):
            raise TeacherError(f"{where}: the server's ETag {show_text(repr(offer.etag))} cannot name a cached file")
        if offer.size is not None and offer.size > max_bytes:
            raise TeacherError(
                f"{where} has {offer.size:,} bytes, more than the {max_bytes:,} that such a file can have"
            )
        if _SHA256.fullmatch(offer.etag):
            self.stated[name] = offer.etag

    def _inside_cache(self, path: Path, name: str) -> Path:
        """The path itself (its end tells the kind of file) once what it leads to is known to lie in the cache."""
        try:
            target = path.resolve(strict=True)
            if target.is_relative_to(self.cache_dir.resolve()) and target.is_file():
                return path
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise TeacherError(f"{path} cannot be read: {error}") from None
        raise TeacherError(
            f"{self.repo_id}: {name} in the cache leads to {target}, which is no file inside {self.cache_dir}; "
            f"remove {path} and run again"
        )

    @contextmanager
    def _explained(self, revision: str | None, doing: str) -> Iterator[None]:
        """Turn what the library and its HTTP client raise into one sentence that says what to do."""
        try:
            yield
        except TeacherError:
            raise
        except Exception as error:
            raise TeacherError(f"{self.repo_id}: {self._reason(error, revision, doing)}") from None

    def _reason(self, error: Exception, revision: str | None, doing: str) -> str:
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            return "the repository is gated; accept its terms on its page, and set HF_TOKEN to a token of that account"
        if isinstance(error, errors.RepositoryNotFoundError):
            return (
                "the Hub has no such repository, or does not show it to you, and there is no folder of that name here; "
                "check the name, and set HF_TOKEN where it is private"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return f"the repository has no revision {revision}; correct teacher.revision, or the lock file's entry"
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            return f"{doing}, but revision {revision} has no such file; it is no CVLface network as they are published"
        if isinstance(error, errors.HfHubHTTPError):
            return (
                f"{doing}, the Hub answered HTTP {error.response.status_code}; check name and HF_TOKEN, try again "
                "later, or use a folder that holds the files"
            )
        if isinstance(error, OSError) and str(error.filename or "").startswith(str(self.cache_dir)):
            reason = _first_line(error)
            return f"the cache {self.cache_dir} cannot be written: {reason}; set HF_HUB_CACHE to another one"
        if isinstance(error, ImportError):
            return f"{doing}, a package is missing ({_first_line(error)}){_set()}"
        # The base of the library's own error is its HTTP client's (requests, httpx or httpx2, by version), whose errors
        # of transport are not all OSErrors; hf_xet raises plain RuntimeErrors. The rest is what an answer that is not a
        # Hub's leads to inside the library, or a malformed address.
        if isinstance(error, (OSError, RuntimeError, *errors.HfHubHTTPError.__bases__)):
            return (
                f"{doing}, the Hub could not be reached ({_first_line(error.__cause__ or error)}); check the network, "
                f"or download the files where there is one and name their folder as the teacher{_set()}"
            )
        reason = _first_line(error)
        return f"{doing}, the answer is not that of a Hugging Face Hub ({reason}); check HF_ENDPOINT{_set()}"


def _set() -> str:
    """What in the environment leads the client elsewhere. Names alone: the values may hold passwords."""
    names = [name for name, value in sorted(os.environ.items()) if _LEADS.fullmatch(name) and value]
    return f". This environment sets {', '.join(names)}: is that meant, and does it work?" if names else ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return show_text(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__, 200)
