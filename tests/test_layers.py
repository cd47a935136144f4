"""Imports point downwards only: a room may use the rooms below it, never its own level across."""

import ast
import pathlib
import subprocess
import sys

import clip_jax

ROOT = pathlib.Path(clip_jax.__file__).parent
LEVELS = [
    {"tree", "config", "overrides", "sharding"},
    {"losses", "models", "tokenizers", "preprocess"},
    {"checkpoint", "pretrained", "optim", "data"},
    {"train", "eval"},
    {"plan", "search", "guide"},
    {"api"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
ALLOWED = {("config", "tree"), ("sharding", "tree"), ("overrides", "config")}
"""Within the lowest level: paths of a pytree serve all, and a user's config is one."""
COMPOSES = ("train/config.py", "train/experiment.py")
"""A run holds its evaluations, and drives them."""


def imported_rooms(source):
    """Rooms of clip_jax that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("clip_jax."))


def faults(files):
    for name, source in files:
        room = pathlib.PurePath(name).with_suffix("").parts[0]
        if room == "__init__":
            continue
        for other in imported_rooms(source):
            across = other != room and LEVEL[other] >= LEVEL[room]
            composes = name in COMPOSES and other == "eval"
            if across and not composes and (room, other) not in ALLOWED:
                yield f"{name} imports {other}"


def test_imports_point_downwards():
    files = [(str(p.relative_to(ROOT)), p.read_text()) for p in ROOT.rglob("*.py")]
    assert len(files) > 40
    assert list(faults(files)) == []


def test_this_test_sees_imports_that_point_upwards():
    bad = [
        ("models/vit.py", "def f():\n    from clip_jax.train import loop"),
        ("losses/softmax.py", "import clip_jax.models.clip"),
        ("data/feed.py", "from clip_jax import cli"),
    ]
    assert list(faults(bad)) == [
        "models/vit.py imports train",
        "losses/softmax.py imports models",
        "data/feed.py imports cli",
    ]


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, clip_jax, clip_jax.tokenizers; "
        "print([m for m in ('jax', 'torch', 'tensorflow', 'matplotlib', 'sklearn', 'grain', "
        "'orbax', 'tokenizers', 'sentencepiece', 'PIL') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() in ("[]", "['jax']"), ran.stdout
