import io
import json
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image


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
