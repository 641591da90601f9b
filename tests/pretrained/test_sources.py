"""Published ids and downloads, against a server on this machine alone."""

import dataclasses
import hashlib
import http.server
import json
import socket
import struct
import threading
import time

import pytest
from huggingface_hub import constants as hub_constants

from glomjax.errors import UserError
from glomjax.pretrained import PUBLISHED, WeightsUnavailable, default_source, resolve, sources

BODY = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 4000
_HEADER = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
TENSORS = struct.pack("<Q", len(_HEADER)) + _HEADER + bytes(16)
KECAM_ID, TIMM_ID = "kecam/davit_t_imagenet", "timm/davit_tiny.msft_in1k"


class Server(http.server.ThreadingHTTPServer):
    """Serves `body` for every path; `cut` bytes of it at most per answer; notes each Range."""

    body = BODY
    cut = len(BODY)
    ranges = True
    content_type = "application/octet-stream"
    etag = '"1"'
    status = 200

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.command, self.path, asked))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        rest = server.body[start:]
        self.send_response(server.status if not start else 206)
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", server.etag)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if with_body:
            self.wfile.write(rest[: server.cut])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("GLOMJAX_KECAM_URL", running.url)
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    md5 = hashlib.md5(BODY).hexdigest()
    monkeypatch.setitem(PUBLISHED, KECAM_ID, dataclasses.replace(PUBLISHED[KECAM_ID], md5=md5))
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("GLOMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("GLOMJAX_OFFLINE", "HF_HUB_OFFLINE", "GLOMJAX_KECAM_URL", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "weights"


def with_etag(body):
    """What a server has for a file whose sha256 it tells, as the hub does."""
    return {"body": body, "etag": f'"{hashlib.sha256(body).hexdigest()}"'}


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- names


def test_an_existing_path_is_returned_as_it_is(tmp_path):
    path = tmp_path / "mine.h5"
    path.write_bytes(b"x")
    assert resolve(path) == resolve(str(path)) == path


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("kecam/davit_t_imagnet", r"nearest: kecam/davit_t_imagenet"),
        ("no/such/file.h5", "does not exist: it is neither a file or folder nor a published id"),
        (".", "is a folder"),
    ],
)
def test_what_is_neither_a_file_nor_an_id_is_an_error(source, words):
    with pytest.raises(UserError, match=words) as caught:
        resolve(source)
    assert not isinstance(caught.value, WeightsUnavailable)


def test_the_default_source_follows_model_and_preset():
    assert default_source("davit_tiny", "kecam") == "kecam/davit_t_imagenet"
    assert default_source("davit_tiny", "msft") == "timm/davit_tiny.msft_in1k"
    assert default_source("davit_base", "kecam") == "kecam/davit_b_imagenet"
    for name in ("davit_giant", "alexnet_mini"):
        with pytest.raises(UserError, match=f"no weights are published for '{name}'"):
            default_source(name, "kecam")


def test_the_published_addresses():
    assert PUBLISHED[KECAM_ID].url == (
        "https://github.com/leondgarse/keras_cv_attention_models/releases/download/davit/"
        "davit_t_imagenet.h5"
    )
    assert PUBLISHED[TIMM_ID].url == (
        "https://huggingface.co/timm/davit_tiny.msft_in1k/resolve/main/model.safetensors"
    )


# --- downloads


def test_a_kecam_download_is_checked_cached_and_not_repeated(server, cache):
    path = resolve(KECAM_ID)
    assert path == cache / "kecam" / "davit_t_imagenet.h5"
    assert path.read_bytes() == BODY
    assert files_in(cache) == [path]
    assert resolve(KECAM_ID) == path
    assert server.requests == [("GET", "/davit_t_imagenet.h5", None)]


def test_a_broken_download_goes_on_where_it_ended(server, cache):
    server.cut = 400_000
    assert resolve(KECAM_ID).read_bytes() == BODY
    assert [asked for _, _, asked in server.requests] == [None, "bytes=400000-", "bytes=800000-"]
    assert files_in(cache) == [cache / "kecam" / "davit_t_imagenet.h5"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cut": 5000, "ranges": False}, r"broke off after 5000 of \d+ bytes"),
        ({"cut": 0}, r"broke off after 0 of \d+ bytes"),
        (
            {"body": b"<!DOCTYPE html>Sign in", "content_type": "text/html"},
            "answers with text/html, not with an HDF5 file",
        ),
        ({"body": BODY[:-1] + b"?"}, r"has md5 [0-9a-f]{32} instead of [0-9a-f]{32}"),
        ({"status": 404}, "the server answers 404"),
        ({"body": b""}, "broke off"),
    ],
    ids=["truncated", "nothing", "html", "md5", "404", "empty"],
)
def test_a_bad_kecam_download_is_refused_and_leaves_the_cache_clean(server, cache, changes, words):
    for name, value in changes.items():
        setattr(server, name, value)
    with pytest.raises(WeightsUnavailable, match=words) as caught:
        resolve(KECAM_ID)
    assert "\n" not in str(caught.value)
    assert files_in(cache) == []


def test_a_damaged_cached_file_is_fetched_again_or_named(server, cache, monkeypatch):
    path = cache / "kecam" / "davit_t_imagenet.h5"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    monkeypatch.setenv("GLOMJAX_OFFLINE", "1")
    with pytest.raises(WeightsUnavailable, match="has another md5 than the published file"):
        resolve(KECAM_ID)
    monkeypatch.delenv("GLOMJAX_OFFLINE")
    assert resolve(KECAM_ID).read_bytes() == BODY


def test_a_timm_download_is_cached_and_not_repeated(server, cache):
    vars(server).update(with_etag(TENSORS))
    path = resolve(TIMM_ID)
    assert path == cache / "timm" / "davit_tiny.msft_in1k" / "model.safetensors"
    assert path.read_bytes() == TENSORS
    assert files_in(cache) == [path]
    asked = len(server.requests)
    assert resolve(TIMM_ID) == path
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (with_etag(b"<!DOCTYPE html>Sign in"), "is not a safetensors file"),
        (with_etag(TENSORS[:-4]), "is not a safetensors file"),
        (with_etag(TENSORS) | {"body": TENSORS[:-1] + b"?"}, r"sha256 \w{64} instead of \w{64}"),
        ({"body": TENSORS}, "gives no sha256 by which a download could be checked"),
        ({"status": 500}, "HfHubHTTPError"),
    ],
    ids=["html", "truncated", "sha256", "no sha256", "500"],
)
def test_a_bad_timm_download_is_refused_and_leaves_the_cache_clean(server, cache, changes, words):
    for name, value in changes.items():
        setattr(server, name, value)
    with pytest.raises(WeightsUnavailable, match=words):
        resolve(TIMM_ID)
    assert files_in(cache) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_in_the_hub_s_own_cache_is_taken_if_it_is_whole(server, tmp_path, damaged):
    """Links from names to files that are called by their sha256, as the hub's client makes them."""
    vars(server).update(with_etag(TENSORS))
    folder = tmp_path / "hub" / "models--timm--davit_tiny.msft_in1k"
    blob = folder / "blobs" / hashlib.sha256(TENSORS).hexdigest()
    link = folder / "snapshots" / ("0" * 40) / "model.safetensors"
    for file in (blob, link, folder / "refs" / "main"):
        file.parent.mkdir(parents=True)
    blob.write_bytes(TENSORS[:-1] + b"?" if damaged else TENSORS)
    link.symlink_to(blob)
    (folder / "refs" / "main").write_text("0" * 40)
    path = resolve(TIMM_ID)
    assert path.read_bytes() == TENSORS
    assert (path == link) is not damaged
    assert bool(server.requests) is damaged


# --- no network


def refused_within(seconds, source):
    start = time.monotonic()
    with pytest.raises(WeightsUnavailable) as caught:
        resolve(source)
    assert time.monotonic() - start < seconds
    message = str(caught.value)
    assert source in message
    assert "\n" not in message
    assert str(PUBLISHED[source].cached) in message
    assert "davit:scratch" in message
    return message


@pytest.mark.parametrize("source", [KECAM_ID, TIMM_ID])
@pytest.mark.parametrize("variable", ["GLOMJAX_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_mode_refuses_at_once(monkeypatch, source, variable):
    monkeypatch.setenv(variable, "1")
    assert f"{variable}=1 forbids downloads" in refused_within(1.0, source)


@pytest.mark.parametrize("source", [KECAM_ID, TIMM_ID])
def test_a_refused_connection_is_reported_at_once(monkeypatch, source):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("GLOMJAX_KECAM_URL", address)
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert "refused" in refused_within(3.0, source)


@pytest.mark.parametrize("source", [KECAM_ID, TIMM_ID])
@pytest.mark.parametrize("where", ["resolver", "server"])
def test_what_hangs_is_given_up_in_time(monkeypatch, source, where):
    monkeypatch.setattr(sources, "_ANSWER_SECONDS", 0.5)  # 4 s in the product: below 5 s
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        if where == "resolver":
            address = "http://weights.invalid"
            monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(3))
        monkeypatch.setenv("GLOMJAX_KECAM_URL", address)
        monkeypatch.setenv("HF_ENDPOINT", address)
        refused_within(1.5, source)


def test_the_wait_for_an_answer_stays_below_the_promised_five_seconds():
    assert sources._ANSWER_SECONDS < 5
