import contextlib
import io
import os
import pathlib
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clip_jax.cli import pack
from clip_jax.data import ArrayRecords
from clip_jax.preprocess.geometry import decode


@pytest.fixture
def photos(tmp_path):
    """Five captioned photographs, the last of which is broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG")
        whole = data.getvalue()
        (folder / f"{i}.jpg").write_bytes(whole if i < 4 else whole[:300])
        (folder / f"{i}.txt").write_text(f"photo {i}")
    return folder


def run(*args):
    return pack.main([str(arg) for arg in args])


def test_a_folder_is_packed_and_verified(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos, out, "--size", 20, "--shards", 2, "--encoding", "webp") == 0
    shown = capsys.readouterr()
    assert re.fullmatch(
        rf"written and verified: {out} \(split train: 4 samples in 2 files, 0.3 MB\)\n"
        rf"left out: 1, for example sample '4.jpg': cannot decode .* \(all are in {out}/train.json"
        r"\)\n",
        shown.out,
    )
    assert shown.err == ""
    source = ArrayRecords(root=str(out)).open("train")
    assert [source[i].key for i in range(len(source))] == [f"{i}.jpg" for i in range(4)]
    assert decode(source[0].image).shape == (20, 26, 3) and source[0].image[:4] == b"RIFF"
    assert run(out, "--verify") == 0
    said = f"verified: {out} (split train: 4 samples in 2 files, 0.3 MB)\n"
    assert capsys.readouterr().out == said


def test_the_same_command_again_keeps_what_is_there(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos, out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    assert len(before) == 1
    assert run(photos, out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")} == before
    capsys.readouterr()
    assert run(photos, out, "--size", 9) == 1
    assert "error: " in (said := capsys.readouterr().err) and "resize.size: absent -> 9" in said


def test_damage_is_reported_for_all_splits(photos, tmp_path, capsys):
    out = tmp_path / "out"
    for split in ("train", "val"):
        (photos / split).mkdir()
        for path in photos.glob("[0-3].*"):
            (photos / split / path.name).write_bytes(path.read_bytes())
        assert run(photos, out, "--split", split) == 0
        (out / f"{split}-00000-of-00001.array_record").write_bytes(b"")
    capsys.readouterr()
    assert run(out, "--verify") == 1
    said = capsys.readouterr().err
    for split in ("train", "val"):
        assert f"{split}-00000-of-00001.array_record: no whole ArrayRecord file: " in said
    assert run(out, "--verify", "--split", "val") == 1
    assert "train-0" not in capsys.readouterr().err


def test_a_config_file_whose_data_lies_elsewhere(photos, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "import dataclasses\nfrom clip_jax.data import Folder\n\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Config:\n    data: Folder\n\n\n"
        "def get_config():\n    return Config(data=Folder(root='unset'))\n"
    )
    assert run(config, tmp_path / "out", "--data.root", photos) == 0
    assert "4 samples in 1 file," in capsys.readouterr().out
    assert run(photos, tmp_path / "out", "--data.root", photos) == 1
    assert "only a config file takes overrides" in capsys.readouterr().err


def test_wrong_arguments_are_explained(photos, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        run(photos)
    assert left.value.code == 2 and "OUT is missing" in capsys.readouterr().err
    assert run(tmp_path / "no", tmp_path / "out") == 1
    assert "no does not exist; give a config file" in capsys.readouterr().err
    assert run(photos, "--verify") == 1
    assert f"error: {photos} holds nothing that clip-jax pack wrote" in capsys.readouterr().err
    assert run(photos, tmp_path / "out", "--size", 0) == 1
    assert "Resize.size must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_shows_both_uses(capsys):
    with pytest.raises(SystemExit) as left:
        run("--help")
    shown = capsys.readouterr().out
    assert left.value.code == 0
    assert "clip-jax pack SOURCE OUT" in shown and "clip-jax pack OUT --verify" in shown


def test_a_bar_is_shown_on_a_terminal(photos, tmp_path):
    ours, theirs = pty.openpty()
    code = "import sys; from clip_jax.cli import pack; sys.exit(pack.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(photos), str(tmp_path / "out")]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # The other end is closed.
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait() == 0
    assert b"packing" in shown or b"verifying" in shown
    assert pathlib.Path(tmp_path / "out" / "train.json").is_file()
