import json

import pytest
from PIL import Image

from clip_jax.cli import data


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        place = tmp_path / "photos" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (30 + number, 20), (60 * number, 0, 0)).save(place)
        place.with_suffix(".txt").write_text(f"picture [bold] number {number}")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (tmp_path / "photos" / "broken.txt").write_text("a broken one")
    return tmp_path / "photos"


def test_a_folder_is_told_as_a_table_and_drawn(folder, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert data.main([str(folder), "--sheet", str(sheet)]) == 0
    said = capsys.readouterr().out
    assert "5 samples, 1 broken" in said and "broken: broken.jpg: cannot decode" in said
    assert "0 of 4 captions (0.0%) exceed 77 tokens" in said
    with Image.open(sheet) as image:
        assert min(image.size) > 200
        colours = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
        assert {(60, 0, 0), (120, 0, 0), (180, 0, 0)} <= colours


def test_figures_as_json(folder, tmp_path, capsys):
    argv = [str(folder), "--json", "--limit", "3", "--sheet", str(tmp_path / "sheet.png")]
    assert data.main(argv) == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert (found["samples"], found["looked_at"]) == (5, 3)
    assert found["height"] == [20] * 5 and found["captions_cut"] == 0
    assert "picture: " in out.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere does not exist; give a config file"),
        (["."], "."),
        (["x.py", "--limit", "0"], "--limit starts at 1, got 0"),
    ],
)
def test_what_cannot_be_looked_at_is_said(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert data.main(argv) == 1
    assert message in capsys.readouterr().err
