"""Published weights: which exist, where they lie, and how they come onto this machine.

    path = resolve("kecam/davit_t_imagenet")    # the cached file, or downloaded and checked

Files are cached in `cache_dir("weights")` as `kecam/davit_t_imagenet.h5` and
`timm/davit_tiny.msft_in1k/model.safetensors`; a file put there by hand counts as downloaded.

Environment: `GLOMJAX_OFFLINE=1` or `HF_HUB_OFFLINE=1` forbids downloads, `GLOMJAX_KECAM_URL` and
`HF_ENDPOINT` replace the two base addresses, `GLOMJAX_CACHE` moves the cache.
"""

import dataclasses
import difflib
import functools
import http.client
import os
import pathlib
import queue
import re
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from glomjax import checkpoints
from glomjax.errors import UserError, quoted, shown
from glomjax.files import cache_dir, checksum

CROSSVAL = "crossval.json"  # what a folder of a cross-validation begins with

_KECAM_URL = "https://github.com/leondgarse/keras_cv_attention_models/releases/download/davit"
_HF_ENDPOINT = "https://huggingface.co"
CITATION = (
    "Ding M, Xiao B, Codella N, Luo P, Wang J, Yuan L: DaViT: dual attention vision transformers. "
    "ECCV 2022"
)
"""Of the networks whose published weights are known here."""
_SHA256 = re.compile("[0-9a-f]{64}")
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ANSWER_SECONDS = 4.0  # for name look-up, connection and headers together
_STALL_SECONDS = 20.0  # without a byte in the middle of a file
_ATTEMPTS = 5

_T = TypeVar("_T")


class WeightsUnavailable(UserError):
    """Published weights that are neither cached nor to be had now; the message has the ways out."""


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights somebody published: for which of our models, under which preset."""

    id: str
    model: str
    preset: str
    license: str
    md5: str = ""  # of the whole file; the hub gives a checksum with each answer instead

    @property
    def url(self) -> str:
        name = self.id.partition("/")[2]
        if self.preset == "kecam":
            base = os.environ.get("GLOMJAX_KECAM_URL") or _KECAM_URL
            return f"{base.rstrip('/')}/{name}.h5"
        base = os.environ.get("HF_ENDPOINT") or _HF_ENDPOINT
        return f"{base.rstrip('/')}/{self.id}/resolve/main/model.safetensors"

    @property
    def cached(self) -> pathlib.Path:
        """Where the file lies, or would lie, on this machine."""
        file = f"{self.id}.h5" if self.preset == "kecam" else f"{self.id}/model.safetensors"
        return cache_dir("weights") / file

    def is_whole(self) -> bool:
        """Whether the cached file is the published one, by its md5; of the hub's, which tells its
        checksum with a download alone, whether it is a whole safetensors file."""
        if self.md5:
            return checksum(self.cached, "md5") == self.md5
        import safetensors

        try:
            with safetensors.safe_open(self.cached, framework="numpy"):
                return True
        except (safetensors.SafetensorError, OSError):
            return False


PUBLISHED = {
    entry.id: entry
    for entry in (
        Published(
            "kecam/davit_t_imagenet",
            "davit_tiny",
            "kecam",
            "MIT",
            "040a215cbcf1c0ce06db665cdcf6f9ac",
        ),
        Published(
            "kecam/davit_s_imagenet",
            "davit_small",
            "kecam",
            "MIT",
            "b95558071c639815f4ab2e9d09a4141f",
        ),
        Published(
            "kecam/davit_b_imagenet",
            "davit_base",
            "kecam",
            "MIT",
            "89e50de7a70ea7b2404f8f57369d8015",
        ),
        Published("timm/davit_tiny.msft_in1k", "davit_tiny", "msft", "Apache-2.0"),
        Published("timm/davit_small.msft_in1k", "davit_small", "msft", "Apache-2.0"),
        Published("timm/davit_base.msft_in1k", "davit_base", "msft", "Apache-2.0"),
    )
}
"""The published weights that are known here, by id."""


def default_source(model_name: str, preset: str) -> str:
    """The id of the ImageNet weights published for a model; UserError where there are none."""
    for entry in PUBLISHED.values():
        if (entry.model, entry.preset) == (model_name, preset):
            return entry.id
    known = ", ".join(f"{e.model} ({e.preset})" for e in PUBLISHED.values())
    raise UserError(
        f"no weights are published for {model_name!r} with preset {preset!r} (there are some for "
        f"{known}): pass a weight file, or train from random initialisation "
        "(the configuration davit:scratch)"
    )


def name_of(source: str | os.PathLike[str], sha256: str = "") -> str:
    """What an artefact may say of where weights came from: a published id, or the checksum of a
    file or checkpoint, whose name and folders can be those of a user or a patient."""
    text = os.fspath(source)
    if text in PUBLISHED:
        return text
    return f"sha256 {sha256}" if sha256 else "unpublished"


def resolve(source: str | os.PathLike[str]) -> pathlib.Path:
    """The weight file or checkpoint folder behind a path or a published id, downloaded if need be.

    A run's folder stands for its best checkpoint.

    Raises:
      UserError: neither an existing file, nor a checkpoint, nor a published id.
      WeightsUnavailable: a published id whose file is not cached and cannot be fetched (within
        5 s when there is no network), or whose download is not what was published.
    """
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise UserError(
            f"the weight source is {source!r}; it is the path of a weight file, run or checkpoint, "
            "or a published id"
        )
    path = os.path.expanduser(os.fspath(source))
    if os.path.isfile(path):
        return pathlib.Path(path)
    if os.path.isdir(path):
        inside = (".", "best", "checkpoints/best")
        for folder in (pathlib.Path(path, part) for part in inside):
            if checkpoints.exists(folder):
                return folder
        if os.path.isfile(os.path.join(path, CROSSVAL)):
            raise UserError(
                f"weight source {shown(str(source))} is a cross-validation, of several networks: "
                f"name one of its folds, such as {os.path.join(path, 'repeat_0', 'fold_0')}"
            )
        files = sorted(f for f in os.listdir(path) if f.endswith((".safetensors", ".h5")))
        raise UserError(
            f"weight source {shown(str(source))} is a folder without a checkpoint: name a run's "
            f"folder, its checkpoints/best, or a weight file"
            f"{', such as ' + quoted(files) if files else ''}"
        )
    entry = PUBLISHED.get(os.fspath(source))
    if entry is None:
        near = difflib.get_close_matches(os.fspath(source), PUBLISHED, n=1, cutoff=0.6)
        hint = f" (nearest: {near[0]})" if near else ""
        raise UserError(
            f"weight source {shown(str(source))} does not exist: it is neither a file or folder "
            f"nor a published id{hint}; the ids are {', '.join(PUBLISHED)}"
        )
    cached = entry.cached
    note = ""
    if cached.is_file():
        if not entry.md5 or entry.is_whole():
            return cached
        note = f"the cached {cached} has another md5 than the published file, and "
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the weight cache {cached.parent} cannot be made ({error.strerror}); set "
            "GLOMJAX_CACHE to a folder that can be written"
        ) from error
    try:
        return _fetch_kecam(entry) if entry.preset == "kecam" else _fetch_timm(entry)
    except (_Failed, OSError) as failed:
        raise WeightsUnavailable(
            f"the published weights {entry.id} cannot be had: {note}{failed}; download {entry.url} "
            f"on another machine and put the file at {cached}, or pass a weight file as the "
            "source, or train from random initialisation (the configuration davit:scratch)"
        ) from failed


class _Failed(Exception):
    """Why a download came to nothing, as a clause."""


def _fetch_kecam(entry: Published) -> pathlib.Path:
    """Downloads to a name of its own beside the cached one; only a checked file gets that name."""
    _refuse_offline()
    target = entry.cached
    with tempfile.NamedTemporaryFile(
        dir=target.parent, prefix=f".{target.name}.", delete=False
    ) as file:
        partial = pathlib.Path(file.name)
        try:
            _download(entry.url, file)
            file.close()
            if (found := checksum(partial, "md5")) != entry.md5:
                raise _Failed(f"the download has md5 {found} instead of {entry.md5}")
            partial.chmod(0o644)
            os.replace(partial, target)
        except OSError as error:
            raise _Failed(f"writing {target.parent} failed ({error})") from error
        finally:
            partial.unlink(missing_ok=True)
    return target


def _download(url: str, file: Any) -> None:
    """Writes the body of `url` into an empty file, going on where a broken connection ended."""
    total = 0
    for _ in range(_ATTEMPTS):
        start = file.tell()
        headers = {"Range": f"bytes={start}-"} if start else {}
        request = urllib.request.Request(url, headers=headers)
        with _answer(functools.partial(_open, request)) as body:
            if start and body.status != 206:  # no ranges here: from the beginning
                file.seek(0)
                file.truncate()
            total = file.tell() + int(body.headers.get("Content-Length") or 0)
            while chunk := _next_chunk(body):
                if file.tell() == 0 and not chunk.startswith(_HDF5_MAGIC):
                    kind = body.headers.get("Content-Type", "unknown content")
                    raise _Failed(f"{url} answers with {kind}, not with an HDF5 file")
                file.write(chunk)
                _show_progress(url, file.tell(), total)
        if file.tell() >= total or file.tell() <= start:
            break
    if file.tell() < total or total == file.tell() == 0:
        raise _Failed(f"the download from {url} broke off after {file.tell()} of {total} bytes")


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    return urllib.request.urlopen(request, timeout=_STALL_SECONDS)


def _next_chunk(body: http.client.HTTPResponse) -> bytes:
    """The next bytes; none at the end and where the connection broke, which the length tells."""
    try:
        return body.read(1 << 18)
    except (OSError, http.client.HTTPException):
        return b""


def _fetch_timm(entry: Published) -> pathlib.Path:
    import huggingface_hub as hub

    name = "model.safetensors"
    in_hub_cache = hub.try_to_load_from_cache(entry.id, name)
    if isinstance(in_hub_cache, str) and _is_as_named(pathlib.Path(in_hub_cache)):
        return pathlib.Path(in_hub_cache)
    _refuse_offline()
    endpoint = os.environ.get("HF_ENDPOINT") or _HF_ENDPOINT
    # One bounded question first: the download itself would retry for half a minute.
    published = _answer(
        lambda: hub.get_hf_file_metadata(entry.url, timeout=_ANSWER_SECONDS, endpoint=endpoint)
    )
    if not _SHA256.fullmatch(sha256 := published.etag or ""):
        raise _Failed(f"{entry.url} gives no sha256 by which a download could be checked")
    target = entry.cached
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
        try:
            path = hub.hf_hub_download(
                entry.id,
                name,
                local_dir=folder,
                endpoint=endpoint,
                force_download=True,  # not from the hub's own cache, where it may be damaged
            )
        except Exception as error:  # the hub client raises from several libraries
            raise _Failed(f"{entry.url}: {_cause(error)}") from error
        _check_hub_file(pathlib.Path(path), sha256)
        os.replace(path, target)
    return target


def _is_as_named(path: pathlib.Path) -> bool:
    """Whether a file of the hub's own cache, which calls a large one by its sha256, is whole; where
    that has no links, files have their own names, which tell nothing."""
    name = path.resolve().name
    return not _SHA256.fullmatch(name) or checksum(path) == name


def _check_hub_file(path: pathlib.Path, sha256: str) -> None:
    """A large file's etag on the hub is its sha256."""
    if (found := checksum(path)) != sha256:
        raise _Failed(f"the download has sha256 {found} instead of {sha256}")
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise _Failed(f"the download is not a safetensors file ({error})") from error


def _answer(ask: Callable[[], _T]) -> _T:
    """What `ask` returns, within `_ANSWER_SECONDS`, a hanging name look-up included."""
    answers: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except BaseException as error:
            answers.put((None, error))

    # A thread, since no timeout reaches the system's resolver; daemon, so that it never holds exit.
    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = answers.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        raise _Failed(f"no answer within {_ANSWER_SECONDS:g} s") from None
    if error is not None:
        raise _Failed(_cause(error)) from error
    return value  # type: ignore[return-value]


def _cause(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    return f"{type(error).__name__} ({(str(error).splitlines() or [''])[0]})"


def _refuse_offline() -> None:
    for name in ("GLOMJAX_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            raise _Failed(f"{name}={os.environ[name]} forbids downloads")


def _show_progress(url: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(
            f"\r{url.rpartition('/')[2]}: {done / 1e6:.1f} of {total / 1e6:.1f} MB",
            end=end,
            file=sys.stderr,
        )
