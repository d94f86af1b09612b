"""A repository of the hub at a commit: from the hub's own cache when it is there, else downloaded.

Only safetensors, JSON and tokenizer files are taken from a model. What came is compared once with
the hashes under which the hub stores it, and our cache notes that: a warm start asks nothing of the
network and hashes nothing again.
"""

import hashlib
import logging
import re
from functools import cache
from pathlib import Path

from qlora_lib.assets.checks import MODEL_FILES, check_model_dir
from qlora_lib.assets.registry import HubRepo
from qlora_lib.assets.store import Manifest, clear_disk_errors, locked, sha256_of
from qlora_lib.errors import QloraError, UsageError, no_room
from qlora_lib.paths import cache_dir
from qlora_lib.progress import say

# The hub's * also crosses folders, where copies in other formats lie (onnx/, original/).
NOT_WANTED = ["*/*", "consolidated*"]


def hub_snapshot(
    repo: HubRepo, files: tuple[str, ...] = (), progress: bool = True
) -> tuple[Path, str]:
    """(folder of the verified snapshot, its commit). `files` of a data set; none means a model."""
    with clear_disk_errors(cache_dir()):
        if (folder := cached_snapshot(repo, files)) is None:
            with locked(_place(repo), repo.repo_id):
                if (folder := cached_snapshot(repo, files, heal=True)) is None:
                    folder = _download(repo, files, progress)
    return folder, folder.name


def cached_snapshot(repo: HubRepo, files: tuple[str, ...] = (), heal: bool = False) -> Path | None:
    """The snapshot if all of it is here and undamaged; asks nothing of the network.

    `heal` removes damaged files, so that the next download brings them again.
    """
    folder = _snapshot(repo, files, local_files_only=True)
    if folder is None:
        return None
    try:
        names = needed_files(repo, folder, files)
    except QloraError:  # an older tool's partial download: the hub knows what is missing
        return None
    if wrong := damaged_files(repo, folder, names):
        if heal:
            say(f"the cached copy of {repo.repo_id} is damaged ({wrong[0]}): fetched again")
            _remove(folder, wrong)
        return None
    return folder


def needed_files(repo: HubRepo, folder: Path, files: tuple[str, ...]) -> list[str]:
    what = f"hub repository {repo.repo_id}"
    if not files:
        return check_model_dir(folder, what)
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise QloraError(f"{what} has no file {missing[0]}", "Fetch it again, or pass a local file")
    return list(files)


def damaged_files(repo: HubRepo, folder: Path, names: list[str]) -> list[str]:
    """Files that are not what the hub stores under that name."""
    key = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]
    note = _place(repo) / f"{folder.name}-{key}.json"
    manifest = Manifest(note, folder, recipe=f"{repo.repo_id}@{folder.name}")
    if manifest.read() is not None:
        return sorted(manifest.damaged())
    if not (wrong := [name for name in names if blob_differs(folder / name)]):
        manifest.write(names)
    return wrong


def blob_differs(path: Path) -> bool:
    """Whether a file of the hub's cache differs from the hash that is its blob's name.

    SHA-256 for large files, git's SHA-1 for small ones. Where the cache cannot use links the name
    is not kept, and there is nothing to compare with.
    """
    name = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return sha256_of(path) != name
    if re.fullmatch(r"[0-9a-f]{40}", name):
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() != name
    return False


def _place(repo: HubRepo) -> Path:
    return cache_dir() / "hub" / f"{repo.repo_type}--{repo.repo_id.replace('/', '--')}"


def _download(repo: HubRepo, files: tuple[str, ...], progress: bool) -> Path:
    if progress:
        say(f"fetching {repo.repo_id} from the hub")
    folder = _snapshot(repo, files, local_files_only=False)
    if wrong := damaged_files(repo, folder, needed_files(repo, folder, files)):
        _remove(folder, wrong)
        raise QloraError(f"{wrong[0]} of {repo.repo_id} came damaged", "Fetch it again")
    return folder


def _remove(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).resolve().unlink(missing_ok=True)  # the blob behind the link
        (folder / name).unlink(missing_ok=True)


def _snapshot(repo: HubRepo, files: tuple[str, ...], local_files_only: bool) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    _end_every_wait()
    log = logging.getLogger("huggingface_hub")
    handlers, log.handlers = log.handlers, [_Patience()]  # its retries would bury the one line that says what to do
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo.repo_id,
                repo_type=repo.repo_type,
                revision=repo.revision,
                allow_patterns=list(files or MODEL_FILES),
                ignore_patterns=None if files else NOT_WANTED,
                local_files_only=local_files_only,
                etag_timeout=huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT,  # which the client itself asks in half of its calls
            )
        )
    except Exception as e:
        if local_files_only and isinstance(e, LocalEntryNotFoundError):
            return None
        raise hub_error(e, repo) from e
    finally:
        log.handlers = handlers


@cache
def _end_every_wait() -> None:
    """Give a time limit to those calls of the hub's client that have none: where a server is silent they never come back."""
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import _http

    default = _http.default_client_factory

    def limit(request) -> None:
        times = request.extensions.get("timeout") or {}
        if not any(times.values()):
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), constants.HF_HUB_DOWNLOAD_TIMEOUT)

    def client():
        made = default()
        made.event_hooks = {**made.event_hooks, "request": [*made.event_hooks["request"], limit]}
        return made

    if _http._GLOBAL_CLIENT_FACTORY is default:  # not one of the user's
        set_client_factory(client)


class _Patience(logging.Handler):
    """Says once that the client asks again, which it does for minutes."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and "etry" in record.getMessage() and not self.said:
            self.said = True
            say("the hub does not answer: asking again for some minutes")


def hub_error(e: BaseException, repo: HubRepo) -> QloraError:
    """The one line that a user needs, from what huggingface_hub raised."""
    from huggingface_hub import constants, errors

    while isinstance(e, errors.LocalEntryNotFoundError) and e.__cause__:
        e = e.__cause__  # "not in the cache, and the hub could not be asked because ..."
    name, kind = repo.repo_id, "datasets/" if repo.repo_type == "dataset" else ""
    page = f"{constants.ENDPOINT}/{kind}{name}"
    local = "pass a local file" if kind else "pass a local folder or .gguf file"
    token = "run: hf auth login (or set HF_TOKEN)"
    status = getattr(getattr(e, "response", None), "status_code", None)
    if isinstance(e, errors.GatedRepoError):
        return QloraError(
            f"{name} is gated: its licence must be accepted first",
            f"Accept it at {page}, then {token}; or {local}",
        )
    if isinstance(e, errors.RevisionNotFoundError):
        return QloraError(
            f"hub repository {name} has no revision '{repo.revision}'",
            f"See {page}/commits/main for its revisions",
        )
    if isinstance(e, errors.RepositoryNotFoundError):
        return QloraError(
            f"the hub has no repository {name}, or it is private",
            f"Check the name; if it is private, {token}; or {local}",
        )
    if isinstance(e, errors.LocalTokenNotFoundError) or status in (401, 403):
        return QloraError(
            f"the hub refuses {name} without a token that may read it",
            f"Look at {page}, then {token}; or {local}",
        )
    if isinstance(e, errors.HFValidationError):
        return UsageError(f"'{name}' is not a hub id of the form org/name", local.capitalize())
    if isinstance(e, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return QloraError(
            f"{name} is not in the cache and HF_HUB_OFFLINE is set", f"Unset it, or {local}"
        )
    if full := no_room(e, constants.HF_HUB_CACHE, then=", or set HF_HUB_CACHE to a folder on a larger disk"):
        return full
    reason = (str(e).splitlines() or [""])[0]
    return QloraError(
        f"the hub cannot be reached for {name} ({type(e).__name__}: {reason})",
        f"Check the network or HF_ENDPOINT and try again, or {local}",
    )
