import io
import json
import subprocess
import sys

import pytest

from clip_jax.cli import models
from clip_jax.models.presets import PRESETS
from clip_jax.pretrained.catalog import list_models, published


def run(capsys, *argv):
    status = models.main(list(argv))
    said = capsys.readouterr()
    assert status == 0 and said.err == ""
    return said.out


def test_in_a_pipe_every_row_is_one_whole_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = run(capsys).splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(PRESETS)
    assert "…" not in "".join(lines)
    row = next(line for line in lines if line.startswith("ViT-B-32 "))
    assert row.split() == ["ViT-B-32", "151.28", "8.82", "5.96", "224", "77", "openai", "+21"]
    row = next(line for line in lines if line.startswith("ViT-S-32 "))
    assert row.split() == ["ViT-S-32", "63.09", "2.29", "3.38", "224", "77"]
    assert max(map(len, lines)) <= 100


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", [80, 100, 200])
def test_on_a_terminal_a_row_is_one_line_and_only_its_end_is_cut(width, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    assert models.main([]) == 0
    lines = terminal.getvalue().splitlines()[2:]  # What follows the heading has no escape codes.
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if line.startswith("ViT-B-32-256 "))
    assert row.split()[:6] == ["ViT-B-32-256", "151.29", "11.50", "5.96", "256", "77"]
    assert ("…" in terminal.getvalue()) == (width == 80)


def test_weights_are_listed_with_their_home(capsys):
    lines = run(capsys, "--tags").splitlines()[2:]
    assert sorted(line.split()[0] for line in lines) == sorted(published())
    assert [line.split()[0] for line in lines[:3]] == ["RN50/openai", "RN50/yfcc15m", "RN50/cc12m"]
    line = next(line for line in lines if line.startswith("ViT-H-14-378/dfn5b "))
    assert line.split() == [
        "ViT-H-14-378/dfn5b",
        "986.71",
        "378",
        "apple/DFN5B-CLIP-ViT-H-14-378",
    ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("siglip2-naflex", ["ViT-B-16-SigLIP2-NaFlex", "ViT-SO400M-16-SigLIP2-NaFlex"]),
        ("vit-?-32", ["ViT-S-32", "ViT-M-32", "ViT-B-32"]),
        ("RN50x[46]*", ["RN50x4", "RN50x4-quickgelu", "RN50x64", "RN50x64-quickgelu"]),
    ],
)
def test_a_pattern_chooses(capsys, pattern, names):
    found = json.loads(run(capsys, pattern, "--json"))
    assert [row["name"] for row in found] == names


def test_json_is_exact(capsys):
    rows = json.loads(run(capsys, "--json"))
    assert len(rows) == len(PRESETS)
    for row, listed in zip(rows, list_models(), strict=True):
        assert {**row, "tags": tuple(row["tags"])} == vars(listed)
    (weights,) = json.loads(run(capsys, "ViT-B-32/openai", "--tags", "--json"))
    assert weights == {
        "name": "ViT-B-32/openai",
        "hub": "timm/vit_base_patch32_clip_224.openai",
        "preset": "ViT-B-32-quickgelu",
        "parameters": 151277313,
        "image_size": 224,
    }


def test_no_name_fits(capsys):
    assert models.main(["ViT-B/32"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == ("error: no name fits 'ViT-B/32'; nearest: ViT-B-32, ViT-S-32, ViT-M-32\n")


def test_help_loads_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys; from clip_jax.cli import models; "
        "models.parser().format_help(); "
        "print([m for m in ('jax', 'flax', 'rich', 'huggingface_hub') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_reader_who_has_enough_ends_the_command_quietly():
    code = "from clip_jax.cli import main; main(['models', '--json'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # As `head` does after its lines.
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), said) == (141, b"")
