"""Models on the Hugging Face Hub: from the local cache if they are there, else by byte ranges."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from tailwise.checkpoints.bytesource import ByteSource, Folder
from tailwise.core.errors import UnreachableError, UnreadableError, UsageError
from tailwise.core.harmless import one_line
from tailwise.core.storage import is_url

_log = logging.getLogger(__name__)
_ATTEMPTS = 5
_SECONDS = 30.0
_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_PAGE = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?")
_REVISION = re.compile(r"(refs/(?:pr|convert)/[^/]+|[^/]+)(?:/(.*))?")


@dataclass(frozen=True)
class HubAddress:
    """A model on the Hub, and a folder or file within it."""

    repo: str
    revision: str | None
    path: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{at}{'/' if self.path else ''}{self.path}"


def parse_hub(text: str, revision: str | None) -> HubAddress | None:
    """The address in `org/name`, `org/name@revision` or `hf://org/name[@revision][/path]`, or None."""
    # The address of a model's page, pasted from a browser.
    if page := _PAGE.fullmatch(text):
        text = f"hf://{page[1]}"
    scheme = text.startswith("hf://")
    repo, at, rest = text.removeprefix("hf://").partition("@")
    path = ""
    if scheme and not at:
        parts = repo.split("/", 2)
        repo, path = "/".join(parts[:2]), parts[2] if len(parts) > 2 else ""
    elif scheme and (match := _REVISION.fullmatch(rest)):
        rest, path = match[1], match[2] or ""
    if not _ID.fullmatch(repo) or repo.startswith(".") or ("/" not in repo and not scheme) or (at and not rest):
        return None
    if at and revision is not None and revision != rest:
        raise UsageError(f"two revisions were given, {rest!r} and {revision!r}", where=text, fix="give one")
    return HubAddress(repo, rest if at else revision, path.strip("/"))


def cached_snapshot(address: HubAddress) -> Path | None:
    """The folder of the local cache that holds the revision (whole or in part), or None."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    store = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=address.repo, repo_type="model")
    revision = address.revision or "main"
    try:
        ref = store / "refs" / revision
        commit = ref.read_text().strip() if ref.is_file() else revision
        snapshot = store / "snapshots" / commit
        return snapshot if commit and snapshot.is_dir() else None
    except OSError:
        return None


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def tell_of_request(name: str, where: object) -> None:
    """Say that it was a file that named the model which is asked for at an address, and not who started this."""
    text = os.fspath(name)
    if not is_url(text) and Path(text).expanduser().exists():
        return
    address = parse_hub(text, None)
    if (is_url(text) and address is None) or (address is not None and not is_offline()):
        _log.warning("%s names %s, which is asked for now", where, one_line(str(address or text))[:200])


def branches(address: HubAddress) -> list[str]:
    """Names of the branches and tags of a repository."""
    from huggingface_hub import HfApi

    with hub_errors(address):
        refs = HfApi().list_repo_refs(address.repo)
    return [ref.name for ref in (*refs.branches, *refs.tags)]


def _is_name(name: object) -> bool:
    """Whether a listed name can be that of a file: what no folder can hold is no part of a model."""
    parts = name.split("/") if isinstance(name, str) and name.isprintable() else [""]
    return all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)


class HubFolder(Folder):
    """A model on the Hub, as of one commit."""

    def __init__(self, address: HubAddress) -> None:
        from huggingface_hub import HfApi

        self.uri = str(address)
        with hub_errors(address):
            info = HfApi().model_info(address.repo, revision=address.revision, files_metadata=True, timeout=_SECONDS)
        self.revision = info.sha
        self._repo, self._address = address.repo, address
        self._files = {file.rfilename: file for file in info.siblings or [] if _is_name(file.rfilename)}
        self._prefix = ""

    def enter(self, path: str) -> str | None:
        """Look at the folder `path` of the repository; for a file, at its folder, and return its name."""
        if path and not any(name.startswith(f"{path}/") or name == path for name in self._files):
            raise UnreadableError("there is no such file or folder in the repository", where=self.uri)
        parent, _, file = path.rpartition("/") if path in self._files else (path, "", "")
        self._prefix = f"{parent}/" if parent else ""
        return file or None

    @override
    def names(self) -> frozenset[str]:
        return frozenset(name for name in self._within() if "/" not in name)

    @override
    def subfolders(self) -> frozenset[str]:
        return frozenset(name.partition("/")[0] for name in self._within() if "/" in name)

    def _within(self) -> Iterator[str]:
        return (n.removeprefix(self._prefix) for n in self._files if n.startswith(self._prefix))

    @override
    def source(self, name: str) -> ByteSource:
        full = self._prefix + name
        if full not in self._files:
            raise UnreadableError("there is no such file in the repository", where=f"{self.uri}/{name}")
        return HubFile(self._address, str(self.revision), full, self._files[full])


class HubFile(ByteSource):
    """One file of one commit of a model on the Hub."""

    def __init__(self, address: HubAddress, commit: str, path: str, listed: Any) -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        self._address, self._commit, self._path = address, commit, path
        self.name = f"hf://{address.repo}@{commit[:12]}/{path}"
        self._url = hf_hub_url(address.repo, path, revision=commit)
        size = listed.size
        if size is None:
            with hub_errors(address):
                size = get_hf_file_metadata(self._url, timeout=_SECONDS).size
        if not isinstance(size, int) or size < 0:
            fix = "the Hub's answer is damaged: try again"
            raise UnreadableError(f"has the size {str(size)[:40]!r} in the Hub's listing", where=self.name, fix=fix)
        self.size = size
        lfs = listed.lfs or {}
        content = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
        # The content's own hash is the same in every copy of a model; a commit is the next best.
        self._identity = f"sha256:{content}" if content else f"hf:{address.repo}@{commit}/{path}"
        self._closed = False
        self._copy: Path | None = None

    @override
    def read_into(self, buffer: memoryview, offset: int) -> None:
        if self._closed:
            raise UnreadableError("is closed", where=self.name, fix="open the checkpoint again")
        done = 0
        with hub_errors(self._address):
            for left in reversed(range(_ATTEMPTS)):
                try:
                    for count in self._fetch(buffer[done:], offset + done):
                        done += count
                except Exception as error:  # a broken connection has a class of its HTTP library's
                    if not left or not _is_transport(error):
                        raise
                    _log.info("taking up %s at byte %d after %s", self.name, offset + done, error)
                if done == len(buffer):
                    return
        raise UnreadableError(
            f"only {done} of {len(buffer)} bytes came", where=self.name, fix="try again, or run hf download"
        )

    def _fetch(self, buffer: memoryview, offset: int) -> Iterator[int]:
        """Fill `buffer`, yielding how many bytes came each time."""
        from huggingface_hub import utils

        http: Any = utils  # it re-exports these functions without saying so to type checkers
        headers = http.build_hf_headers()
        headers |= {"Range": f"bytes={offset}-{offset + len(buffer) - 1}", "Accept-Encoding": "identity"}
        # It waits when the Hub is busy; it cannot take up an answer that broke off, which is done here.
        stream = http.http_stream_backoff(
            "GET", self._url, max_retries=2, retry_on_exceptions=(), headers=headers, timeout=_SECONDS
        )
        done = 0
        with stream as answer:
            http.hf_raise_for_status(answer)
            if answer.status_code != 206:
                raise UnreadableError(
                    "the server does not serve byte ranges",
                    where=self.name,
                    fix=f"download the model (hf download {self._address.repo}) and open it again",
                )
            for chunk in answer.iter_bytes():
                if done + len(chunk) > len(buffer):
                    raise UnreadableError("the server sent more than was asked for", where=self.name)
                buffer[done : done + len(chunk)] = chunk
                done += len(chunk)
                yield len(chunk)

    def identity(self) -> str:
        """The hash of the content, or the commit."""
        return self._identity

    def local_path(self) -> Path:
        """The file in the local cache of the Hub, downloaded if it is not there yet."""
        from huggingface_hub import hf_hub_download

        if self._copy is None:
            _log.warning("%s cannot be read in parts: all %d bytes are downloaded", self.name, self.size)
            with hub_errors(self._address):
                self._copy = Path(hf_hub_download(self._address.repo, self._path, revision=self._commit))
        return self._copy

    def __getstate__(self) -> dict[str, Any]:
        # Where the local cache of the Hub has it is another place on another machine.
        return {**self.__dict__, "_copy": None}

    @override
    def close(self) -> None:
        self._closed = True


def _is_transport(error: Exception) -> bool:
    """Whether a request failed on its way, rather than being answered."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    answered = (UnreadableError, OfflineModeIsEnabled, HFValidationError)
    return getattr(error, "response", None) is None and not isinstance(error, answered)


@contextmanager
def hub_errors(address: HubAddress) -> Iterator[None]:
    """Turn what the Hub's client raises into `UnreadableError`s that say what to do."""
    try:
        yield
    except UnreadableError:
        raise
    except Exception as error:  # its HTTP library, and so its errors, differ between versions
        what, fix = _explain(error, address)
        kind = UnreachableError if _may_pass(error) else UnreadableError
        raise kind(what, where=str(address), fix=fix) from error


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: the Hub is busy, or was not reached."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return _is_transport(error) if status is None else status == 429 or status >= 500


def _explain(error: Exception, address: HubAddress) -> tuple[str, str]:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{address.repo}"
    token = "set HF_TOKEN to a token that may read it (https://huggingface.co/settings/tokens)"  # noqa: S105
    nowhere = "is neither a local path nor a model on the Hub that this token can see"
    offline = "HF_HUB_OFFLINE is set and the model is not in the local cache"
    # A gated repository's error is a kind of a missing one's, so it stands first.
    known: tuple[tuple[type[Exception], str, str], ...] = (
        (errors.GatedRepoError, "the model is gated", f"ask for access at {page}, then {token}"),
        (
            errors.RevisionNotFoundError,
            f"there is no revision {address.revision!r}",
            f"see the branches and tags at {page}/tree/main",
        ),
        (errors.RepositoryNotFoundError, nowhere, f"check the spelling; if the model is private, {token}"),
        (errors.OfflineModeIsEnabled, offline, "unset it, or download the model (hf download) before"),
        (errors.HFValidationError, f"is not a valid model id: {error}", "write it as org/name"),
    )
    for kind, what, fix in known:
        if isinstance(error, kind):
            return what, fix
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub denied access ({status})", token
    if status is not None:
        return f"the Hub answered {status}: {str(error)[:200]}", "try again later"
    return f"the Hub could not be reached ({type(error).__name__}: {str(error)[:200]})", "check the network"
