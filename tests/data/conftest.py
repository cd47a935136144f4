import http.server
import io
import json
import pathlib
import re
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from clip_jax.data import tar_files


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """No test may write to the user's own cache."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def shared():
    folder = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data sets are absent")
    return folder


@pytest.fixture(scope="session")
def png():
    """A tiny encoded picture, plain, of the given grey."""

    def encode(grey):
        data = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), grey, np.uint8)).save(data, "PNG")
        return data.getvalue()

    return encode


@pytest.fixture(scope="session")
def write_tar():
    """Write (name, content) pairs; contents may be bytes, text, or what JSON can hold."""

    def write(path, members):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in members:
                if not isinstance(content, bytes):
                    content = content if isinstance(content, str) else json.dumps(content)
                    content = content.encode()
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def folder(tmp_path, write_tar, png):
    """Two splits; the shards 2.tar and 10.tar, written in the wrong order."""
    for number in (10, 2, 0):
        members = []
        for i in range(3):
            key = f"s{number:03d}{i}"
            members += [(f"{key}.png", png(number + i)), (f"{key}.txt", f"picture {number} {i}")]
        write_tar(tmp_path / "train" / f"{number}.tar", members)
    write_tar(tmp_path / "test" / "0.tar", [("a.png", png(0)), ("a.cls", "7")])
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    return tmp_path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        name = self.path.partition("?")[0].lstrip("/")
        server.asked.append((name, self.headers["Range"]))
        if server.refusals:
            status = server.refusals.pop(0) if len(server.refusals) > 1 else server.refusals[0]
            if status == 0:
                span = self.headers["Range"].replace("=", " ") + "/99999"
                return self.answer(206, {"Content-Range": span, "Content-Length": "99"}, b"cut")
            if status != 200:
                return self.answer(status, {"Content-Length": "0"})
            server.refusals = []
        data = server.files.get(name)
        if data is None:
            return self.answer(404, {"Content-Length": "0"})
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        if server.ignores:
            return self.answer(200, {"Content-Length": str(len(data))}, data)
        if first >= len(data):
            return self.answer(
                416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"}
            )
        part = data[first : last + 1]
        span = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        headers = {"Content-Range": span, "Content-Length": str(len(part)), "ETag": server.etag}
        return self.answer(206, headers, part)

    def answer(self, status, headers, data=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64  # Shards are indexed many at once: who is not let in waits a second.


@pytest.fixture
def server(monkeypatch):
    """A web server for files: `refusals` are statuses to answer with first, the last one for ever
    (0: a connection that ends early, 200: no more); `asked` are names and ranges."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as made:
        made.files, made.asked, made.refusals, made.ignores, made.etag = {}, [], [], False, '"1"'
        made.url = f"http://127.0.0.1:{made.server_port}"
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def waits(monkeypatch):
    """Seconds that readers would have waited before they tried again."""
    found = []
    monkeypatch.setattr(tar_files, "_sleep", found.append)
    return found
