import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from clip_jax.pretrained import hub

COMMIT = "c" * 40
OPEN_CLIP = {
    "open_clip_config.json": b'{"model_cfg": {}}',
    "config.json": b'{"model_type": "clip"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "merges.txt": b"a b",
    "spiece.model": b"model",
    "README.md": b"words",
    "onnx/config.json": b"{}",
    "onnx/model.safetensors": b"onnx",
    "flax_model.msgpack": b"flax",
    "tf_model.h5": b"tf",
    "model.safetensors": b"image tower",
    "pytorch_model.bin": b"image tower",
    "open_clip_pytorch_model.bin": b"pickle",
    "open_clip_model.safetensors": bytes(range(256)) * 64,
}
WANTED = {
    "open_clip_config.json",
    "config.json",
    "tokenizer.json",
    "merges.txt",
    "spiece.model",
    "open_clip_model.safetensors",
}


class FakeHub(http.server.ThreadingHTTPServer):
    """Repositories as the hub serves them: one commit each, on branch main."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}
        self.refused = {}
        """Name of a repository: status and error code."""
        self.breaks = set()
        """Files whose download breaks off half-way, then fails."""
        self.gets = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        found = re.fullmatch(
            r"/(?:api/models/)?([^/]+/[^/]+)/(revision|tree|resolve)/([^/?]+)/?([^?]*)(?:\?.*)?",
            self.path,
        )
        if not found:
            return self.reply(404)
        name, what, revision, file = found.groups()
        if name in self.server.refused:
            status, code = self.server.refused[name]
            return self.reply(status, headers={"X-Error-Code": code})
        files = self.server.repositories.get(name)
        if files is None:
            return self.reply(404, headers={"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            return self.reply(200, json.dumps({"id": name, "sha": COMMIT}).encode())
        if what == "tree":
            rows = [
                {"type": "file", "oid": etag(data), "size": len(data), "path": path}
                for path, data in files.items()
            ]
            return self.reply(200, json.dumps(rows).encode())
        return self.send_file(file, files[file])

    def send_file(self, file, data):
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT}
        if self.command == "GET":
            self.server.gets.append(file)
            if self.server.gets.count(file) > 1 and file in self.server.breaks:
                return self.reply(500)
        self.reply(200, data, headers, cut=file in self.server.breaks)

    def reply(self, status, data=b"", headers=None, cut=False):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if cut else data)


def etag(data):
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def server(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with FakeHub() as hub_server:
        threading.Thread(target=hub_server.serve_forever, args=(0.01,), daemon=True).start()
        template = hub_server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub_server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield hub_server
        hub_server.shutdown()


def contents(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def gone(server):
    server.shutdown()
    server.server_close()


def test_fetches_the_useful_files_alone(server):
    server.repositories["org/clip"] = OPEN_CLIP
    folder = hub.fetch("org/clip")
    assert contents(folder) == WANTED == set(server.gets)
    for name in WANTED:
        assert (folder / name).read_bytes() == OPEN_CLIP[name]


def test_the_second_time_nothing_is_downloaded_and_without_the_hub_it_works(server):
    server.repositories["org/clip"] = OPEN_CLIP
    folder = hub.fetch("org/clip")
    assert len(server.gets) == len(WANTED)
    assert hub.fetch("org/clip") == folder
    assert hub.fetch("org/clip", revision=COMMIT) == folder
    assert len(server.gets) == len(WANTED)
    gone(server)
    assert hub.fetch("org/clip") == folder
    assert hub.fetch("org/clip", offline=True) == folder
    assert contents(folder) == WANTED


def test_offline_asks_nobody(server, monkeypatch):
    from huggingface_hub import constants

    server.repositories["org/clip"] = OPEN_CLIP
    with pytest.raises(FileNotFoundError, match="org/clip is not whole in the cache"):
        hub.fetch("org/clip", offline=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="org/clip is not whole in the cache"):
        hub.fetch("org/clip")
    assert server.gets == []


def test_a_tokenizer_comes_without_weights(server):
    server.repositories["org/clip"] = OPEN_CLIP
    folder = hub.fetch("org/clip", weights=False)
    assert contents(folder) == WANTED - {"open_clip_model.safetensors"}
    # Half of the files is no model, also when nobody can be asked.
    with pytest.raises(FileNotFoundError, match=r"1 file\(s\) are missing \(open_clip_model.saf"):
        hub.fetch("org/clip", offline=True)
    assert hub.fetch("org/clip", weights=False, offline=True) == folder


@pytest.mark.parametrize("broken", ["open_clip_model.safetensors", "tokenizer.json"])
def test_an_interrupted_download_is_never_taken_for_whole_and_goes_on(server, broken, tmp_path):
    server.repositories["org/clip"] = {**OPEN_CLIP, broken: b"0123456789" * 1000}
    server.breaks = {broken}
    with pytest.raises(ConnectionError, match=r"http://127.*/org/clip: Server error '500"):
        hub.fetch("org/clip")
    server.refused["org/clip"] = 503, "Busy"
    for offline in (True, False):
        with pytest.raises(FileNotFoundError, match="org/clip is not whole in the cache"):
            hub.fetch("org/clip", offline=offline)
    snapshot = tmp_path / "hub" / "models--org--clip" / "snapshots" / COMMIT
    assert broken not in contents(snapshot)
    server.breaks, server.refused = set(), {}
    server.gets.clear()
    folder = hub.fetch("org/clip")
    assert contents(folder) == WANTED
    assert (folder / broken).read_bytes() == b"0123456789" * 1000
    assert server.gets.count(broken) == 1
    assert len(server.gets) <= len(WANTED)


def test_another_process_finds_it_without_the_hub(server, tmp_path):
    server.repositories["org/clip"] = OPEN_CLIP
    folder = hub.fetch("org/clip")
    gone(server)
    code = "from clip_jax.pretrained import hub; print(hub.fetch('org/clip'))"
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": server.url}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.stderr) == (str(folder), "")


def test_what_another_program_put_into_the_cache_file_by_file_is_enough(server):
    from huggingface_hub import hf_hub_download

    server.repositories["org/clip"] = OPEN_CLIP
    for name in ("open_clip_config.json", "open_clip_pytorch_model.bin"):
        hf_hub_download("org/clip", name, token=False)
    folder = hub.fetch("org/clip", offline=True)
    assert contents(folder) == {"open_clip_config.json", "open_clip_pytorch_model.bin"}
    # With the hub within reach the better format is fetched.
    assert contents(hub.fetch("org/clip")) == WANTED | {"open_clip_pytorch_model.bin"}


def test_a_hub_that_hangs_up_is_no_hindrance_once_all_is_there(server, monkeypatch):
    server.repositories["org/clip"] = OPEN_CLIP
    folder = hub.fetch("org/clip")
    monkeypatch.setattr(Handler, "do_GET", lambda self: None)
    assert hub.fetch("org/clip") == folder
    with pytest.raises(ConnectionError, match=r"/org/other: RemoteProtocolError: Server disconn"):
        hub.fetch("org/other")


def test_no_network_and_nothing_cached_says_what_to_do(server, tmp_path):
    gone(server)
    with pytest.raises(FileNotFoundError) as caught:
        hub.fetch("org/clip")
    said = str(caught.value)
    assert said.startswith(
        f"org/clip is not whole in the cache {tmp_path / 'hub'} and cannot be had from "
        f"{server.url} now: load it once with a connection, set HF_HOME to where that was done, "
        "or give the folder of a copy (Got: ConnectError: "
    )
    assert "\n" not in said


def test_what_the_hub_refuses_is_explained(server):
    server.repositories["org/clip"] = OPEN_CLIP
    server.refused = {"org/gated": (403, "GatedRepo"), "org/private": (401, "RepoNotFound")}
    with pytest.raises(PermissionError) as caught:
        hub.fetch("org/gated")
    assert str(caught.value) == (
        f"org/gated is gated: accept its conditions at {server.url}/org/gated, then log in "
        "(`hf auth login`, or set HF_TOKEN)"
    )
    for name in ("org/nothing", "org/private"):
        with pytest.raises(FileNotFoundError) as caught:
            hub.fetch(name)
        assert str(caught.value) == (
            f"there is no {server.url}/{name}; if it is private, log in (`hf auth login`, or set "
            "HF_TOKEN)"
        )
    with pytest.raises(FileNotFoundError) as caught:
        hub.fetch("org/clip", revision="mian")
    assert str(caught.value) == (
        f"org/clip has no branch, tag or commit 'mian'; see {server.url}/org/clip/tree/main"
    )


@pytest.mark.parametrize("name", ["a/b/c", "with space/x", "", "../up"])
def test_what_is_no_name_is_never_asked_for(server, name):
    with pytest.raises(ValueError, match=rf"^{name!r} is no repository's name \(organisation/name"):
        hub.fetch(name)


def test_a_repository_without_anything_useful_says_so(server):
    server.repositories["org/flax"] = {"flax_model.msgpack": b"flax", "config.json": b"{}"}
    with pytest.raises(FileNotFoundError) as caught:
        hub.fetch("org/flax")
    assert str(caught.value) == (
        "org/flax has no weights that clip_jax reads (.safetensors, .bin, .pt, .npz), only "
        "config.json, flax_model.msgpack"
    )
    server.repositories["org/words"] = {"README.md": b"words"}
    with pytest.raises(FileNotFoundError, match=r"org/words has no file \*\.json or \*\.model"):
        hub.fetch("org/words", weights=False)


SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["open_clip_pytorch_model.bin", "model.safetensors"], ["open_clip_pytorch_model.bin"]),
        (["pytorch_model.bin", "model.safetensors"], ["model.safetensors"]),
        (["pytorch_model.bin", "flax_model.msgpack", "tf_model.h5"], ["pytorch_model.bin"]),
        ([*SHARDS, "pytorch_model-00001-of-00001.bin"], SHARDS),
        (["model.safetensors", *SHARDS], ["model.safetensors"]),
        (["siglip2_b16_naflex.npz", "config.json"], ["siglip2_b16_naflex.npz"]),
        (["ViT-B-32.pt", "fp16/model.safetensors"], ["ViT-B-32.pt"]),
    ],
)
def test_one_set_of_weights_in_one_format(names, chosen):
    assert hub.choose_weights(names, "org/x") == chosen
    assert hub.choose_weights(reversed(names), "org/x") == chosen


def test_weights_that_are_ambiguous_or_in_part_are_refused():
    with pytest.raises(
        ValueError, match=r"^org/x has several weights, a\.npz, b\.npz: download one"
    ):
        hub.choose_weights(["b.npz", "a.npz"], "org/x")
    with pytest.raises(
        FileNotFoundError, match=r"^of the 3 parts of org/x there are 2: model-00001"
    ):
        hub.choose_weights([SHARDS[0], SHARDS[2], "model.safetensors.index.json"], "org/x")


def test_progress_is_shown_on_a_terminal_alone(server, monkeypatch, capsys):
    server.repositories.update({"org/a": OPEN_CLIP, "org/b": OPEN_CLIP})
    hub.fetch("org/a")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    hub.fetch("org/b")
    assert "Fetching 1 files: 100%" in capsys.readouterr().err
    hub.fetch("org/b")
    assert capsys.readouterr().err == ""
