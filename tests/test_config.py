import dataclasses
import json
import math
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pytest

from clip_jax import config as room
from clip_jax import overrides
from clip_jax.config import differences, from_data, require, to_data
from clip_jax.overrides import load_config, override


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViT:
    """Vision transformer tower."""

    width: int = 128
    """Token width in channels."""
    pool: Literal["cls", "gap", "map"] = "cls"

    def __post_init__(self):
        if self.width % 64:
            raise ValueError(f"width {self.width} is no multiple of 64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet:
    width: int = 64
    stages: tuple[int, int, int, int] = (3, 4, 6, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    b1: float = 0.9
    """Decay of the mean of gradients."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd:
    nesterov: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    method: Adam | Sgd = dataclasses.field(default_factory=Adam)
    learning_rate: float
    """Peak learning rate."""
    clip_norm: float | None = 1.0
    warmup: int | float = 0.1
    rates: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    split: str = "test"
    """Where the pairs are."""
    at: tuple[int, ...] = (1, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot:
    split: str = "test"
    templates: tuple[str, ...] = ("a photo of a {}.",)
    unseen: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shards:
    root: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """One experiment."""

    image: ViT | ResNet
    optim: Optim
    evals: dict[str, Retrieval | ZeroShot] = dataclasses.field(default_factory=dict)
    sources: tuple[Shards, ...] = ()
    mixture: tuple[tuple[str, float], ...] = ()
    mesh: dict[str, int | None] = dataclasses.field(default_factory=lambda: {"data": -1})
    resume: Shards | str | None = None
    tower: ViT | ResNet | None = None
    axes: Mapping[str, str | tuple[str, ...] | None] = dataclasses.field(default_factory=dict)
    names: list[str] = dataclasses.field(default_factory=list)
    size: int | tuple[int, int] = 224
    steps: int = 100
    """Updates in all."""
    remat: bool = False
    extra: Any = None

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


@dataclasses.dataclass(frozen=True)
class Odd:
    act: Callable | None = None
    table: dict = dataclasses.field(default_factory=dict)
    value: Any = None
    derived: int = dataclasses.field(default=3, init=False)


SMALL = Train(image=ViT(), optim=Optim(learning_rate=1e-3))
FULL = Train(
    image=ResNet(stages=(1, 2, 3, 4)),
    optim=Optim(method=Sgd(nesterov=True), learning_rate=0.1, clip_norm=None, rates={"a/*": 0.0}),
    evals={"in1k": ZeroShot(templates=()), "coco": Retrieval(at=(1,))},
    sources=(Shards(root="x"), Shards(root="y", weight=2.5)),
    mixture=(("x", 1.0), ("y", 2.0)),
    mesh={"data": -1, "model": None},
    resume=Shards(root="z"),
    tower=ViT(width=64),
    axes={"batch": ("replica", "data"), "width": "data", "length": None},
    names=["a", "b"],
    size=(96, 64),
    extra={"free": [1, "x", None]},
)


def faults(kind, data, where="config"):
    with pytest.raises(ValueError) as error:
        from_data(kind, data, where)
    return str(error.value).split("\n")


# Plain data.


@pytest.mark.parametrize("config", [SMALL, FULL], ids=["small", "full"])
def test_a_config_survives_json(config):
    data = json.loads(json.dumps(to_data(config), allow_nan=False))
    assert from_data(Train, data) == config


def test_data_names_classes_and_holds_nothing_but_json():
    assert to_data(Optim(learning_rate=0.5)) == {
        "type": "Optim",
        "method": {"type": "Adam", "b1": 0.9},
        "learning_rate": 0.5,
        "clip_norm": 1.0,
        "warmup": 0.1,
        "rates": {},
    }


def test_derived_fields_are_left_out():
    assert to_data(Odd()) == {"type": "Odd", "act": None, "table": {}, "value": None}
    assert from_data(Odd, to_data(Odd())) == Odd()


def test_everything_json_cannot_hold_is_named():
    config = Odd(act=len, table={1: math.nan, "b": [math.inf]}, value=np.float32(1.5))
    with pytest.raises(ValueError) as error:
        to_data(config)
    assert str(error.value).split("\n") == [
        "config.act: <built-in function len> cannot be kept as JSON",
        "config.table: key 1 is not a text",
        "config.table.1: nan cannot be kept as JSON",
        "config.table.b.0: inf cannot be kept as JSON",
        "config.value: np.float32(1.5) cannot be kept as JSON",
    ]


def test_fields_left_out_take_their_defaults_and_types_may_be_left_out_where_clear():
    data = {"image": {"type": "ViT"}, "optim": {"learning_rate": 1e-3}}
    assert from_data(Train, data) == SMALL


def test_integers_are_taken_for_floats_but_keep_their_type_in_a_union():
    optim = from_data(Optim, {"learning_rate": 1, "warmup": 20, "rates": {"a": 0}})
    assert (optim.learning_rate, type(optim.learning_rate)) == (1.0, float)
    assert (optim.warmup, type(optim.warmup)) == (20, int)
    assert type(optim.rates["a"]) is float
    assert type(from_data(float | int, 2)) is int
    assert type(from_data(float | None, 2)) is float
    assert type(from_data(int | str | bool, True)) is bool


def test_all_faults_are_reported_at_once_with_their_paths():
    data = to_data(FULL)
    data["optim"]["learnng_rate"] = 1
    del data["optim"]["learning_rate"]
    data["optim"]["clip_norm"] = "much"
    data["image"]["type"] = "Resnet"
    data["evals"]["coco"]["splt"] = "x"
    data["evals"]["in1k"]["unseen"] = 1
    data["sources"][1]["weight"] = None
    data["mixture"][0] = ["x"]
    data["steps"] = 2.0
    data["remat"] = "False"
    assert faults(Train, data) == [
        "config.image: 'type' is 'Resnet', not one of ViT, ResNet (nearest: 'ResNet')",
        "config.optim: Optim has no field 'learnng_rate' (nearest: 'learning_rate'); "
        "it has method, learning_rate, clip_norm, warmup, rates",
        "config.optim: Optim needs the field 'learning_rate'",
        "config.optim.clip_norm: 'much' is not float | None",
        "config.evals.in1k.unseen: 1 is not bool",
        "config.evals.coco: Retrieval has no field 'splt' (nearest: 'split'); it has split, at",
        "config.sources.1.weight: None is not float",
        "config.mixture.0: length 1, not 2",
        "config.steps: 2.0 is not int",
        "config.remat: 'False' is not bool",
    ]


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (int, True, "config: True is not int"),
        (float, False, "config: False is not float"),
        (float, "1e-3", "config: '1e-3' is not float"),
        (str, None, "config: None is not str"),
        (bool, 0, "config: 0 is not bool"),
        (str | None, 3, "config: 3 is not str | None"),
        (Literal["cls", "gap"], "gp", "config: 'gp' is none of ['cls', 'gap'] (nearest: 'gap')"),
        (Literal["cls"] | None, "cl", "config: 'cl' is none of ['cls'] (nearest: 'cls')"),
        (Literal[1, 2], True, "config: True is none of [1, 2]"),
        (dict[str, int], [1], "config: [1] is not dict[str, int]"),
        (dict[str, int] | None, {"a": "x"}, "config.a: 'x' is not int"),
        (dict[str, dict[str, int]], {"a": {"b": 1.5}}, "config.a.b: 1.5 is not int"),
        (tuple[int, ...], {"a": 1}, "config: {'a': 1} is not tuple[int, ...]"),
        (tuple[int, int], [1, 2, 3], "config: length 3, not 2"),
        (list[int], [1, "b"], "config.1: 'b' is not int"),
        (Adam | Sgd, 3, "config: 3 is not Adam | Sgd"),
        (Adam | Sgd, {"b1": 0.5}, "config: 'type' is None, not one of Adam, Sgd"),
        (Adam, {"type": "Sgd"}, "config: a Sgd is not Adam"),
        (Adam | None, {"b1": "x"}, "config.b1: 'x' is not float"),
        (Retrieval, "x" * 99, "config: '" + "x" * 56 + "... is not Retrieval"),
        (ViT, {"width": 65}, "config: width 65 is no multiple of 64"),
        (Callable, None, "config: None is not Callable"),
        (pathlib.Path, "x", "config: 'x' is not Path"),
    ],
)
def test_each_fault_has_its_message(kind, data, message):
    assert faults(kind, data) == [message]


def test_a_refused_value_is_reported_beside_the_faults_of_others():
    data = to_data(SMALL)
    data["image"]["width"] = 65
    data["steps"] = "many"
    assert faults(Train, data) == [
        "config.image: width 65 is no multiple of 64",
        "config.steps: 'many' is not int",
    ]


def test_the_caller_says_where_the_data_is_from():
    assert faults(Optim, {}, "run.optim") == ["run.optim: Optim needs the field 'learning_rate'"]


def test_a_dict_beside_classes_in_a_union_stays_a_dict():
    kind = Adam | dict[str, int]
    assert from_data(kind, {"type": "Adam", "b1": 0.5}) == Adam(b1=0.5)
    assert from_data(kind | Sgd, {"a": 1}) == {"a": 1}


def test_data_cannot_name_a_class_outside_the_hints():
    for name in ("pathlib.Path", "os.system", "Odd", "builtins.object"):
        data = {"type": name}
        assert "is" in faults(Adam | Sgd, data)[0]
        assert from_data(Any, data) is data


def test_two_classes_of_one_name_are_not_guessed_between():
    other = dataclasses.make_dataclass("Adam", [("b1", float, 0.5)], frozen=True)
    assert faults(Adam | other, {"type": "Adam"}) == ["config: several classes are called 'Adam'"]


# Differences.


def test_equal_configs_do_not_differ():
    assert differences(to_data(FULL), to_data(FULL)) == []


def test_differing_leaves_are_listed_with_both_values():
    other = dataclasses.replace(
        SMALL,
        image=ViT(width=64),
        optim=Optim(method=Sgd(), learning_rate=3e-4, rates={"a": 0.5}),
        sources=(Shards(root="x"),),
        resume="here",
        mesh={},
    )
    assert differences(to_data(SMALL), to_data(other)) == [
        "image.width: 128 -> 64",
        "optim.method.type: 'Adam' -> 'Sgd'",
        "optim.method.b1: 0.9 -> absent",
        "optim.method.nesterov: absent -> False",
        "optim.learning_rate: 0.001 -> 0.0003",
        "optim.rates.a: absent -> 0.5",
        "sources.0.type: absent -> 'Shards'",
        "sources.0.root: absent -> 'x'",
        "sources.0.weight: absent -> 1.0",
        "mesh.data: -1 -> absent",
        "resume: None -> 'here'",
    ]


def test_differences_of_swapped_configs_are_swapped():
    forth = differences(to_data(SMALL), to_data(FULL))
    back = differences(to_data(FULL), to_data(SMALL))
    swapped = {re.sub(r"^(.*?): (.*) -> (.*)$", r"\1: \3 -> \2", line) for line in back}
    assert set(forth) == swapped and len(forth) > 15


def test_ignored_paths_are_patterns():
    a = {"run": "a", "steps": 1, "checkpoint": {"every": 1, "keep": {"n": 2}}, "seed": 0}
    b = {"run": "b", "steps": 2, "checkpoint": {"every": 3, "keep": {"n": 4}}, "seed": 1}
    assert differences(a, b, ignore=("run", "steps", "checkpoint.*")) == ["seed: 0 -> 1"]
    assert differences({"seed": 0}, {"checkpoint": {"every": 1}}, ignore=["*"]) == []
    assert differences({}, {"checkpoint": {"every": 1}}, ignore=["checkpoint.*"]) == []
    assert differences({"steps_a": 1}, {"steps_a": 2}, ignore=["steps"]) == ["steps_a: 1 -> 2"]


def test_empty_and_absent_parts_differ():
    assert differences({"a": {}}, {}) == ["a: {} -> absent"]
    assert differences({"a": []}, {"a": None}) == ["a: [] -> None"]
    assert differences([1, [2, 3]], [1, [2, 4, 5]]) == ["1.1: 3 -> 4", "1.2: absent -> 5"]


# Files.


def test_json_is_written_whole_and_read_back(tmp_path):
    path = tmp_path / "config.json"
    room.write_json(path, {"old": 1})
    room.write_json(str(path), to_data(FULL))
    assert from_data(Train, room.read_json(path)) == FULL
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_failed_write_keeps_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    room.write_json(path, {"old": 1})

    def full_disk(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(pathlib.Path(path)), "replace", full_disk)
    from etils import epath

    monkeypatch.setattr(type(epath.Path(path)), "replace", full_disk)
    with pytest.raises(OSError, match=rf"cannot write {path}: No space left on device"):
        room.write_json(path, {"new": 1})
    assert room.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_what_is_not_json_is_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(ValueError, match=rf"{path} is not JSON: .*line 2"):
        room.read_json(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        room.read_json(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="nan"):
        room.write_json(path, {"a": math.nan})
    with pytest.raises(OSError, match=rf"cannot write {tmp_path / 'no' / 'x.json'}"):
        room.write_json(tmp_path / "no" / "x.json", {})


def write_config(folder, name, body):
    path = folder / name
    path.write_text(body)
    return str(path)


LOCAL = '''
from __future__ import annotations
import dataclasses

@dataclasses.dataclass(frozen=True)
class Mine:
    """My own experiment."""

    steps: int = {steps}
    """How long it takes."""
    inner: Inner | None = None

@dataclasses.dataclass(frozen=True)
class Inner:
    x: float = 1.0

def get_config():
    return Mine(inner=Inner())
'''


def test_a_config_file_is_run_and_its_own_classes_work_everywhere(tmp_path, capsys):
    path = write_config(tmp_path, "mine.py", LOCAL.format(steps=5))
    config = load_config(path)
    assert config.steps == 5
    assert from_data(type(config), to_data(config)) == config
    assert override(config, ["--inner.x", "2"], "p").inner.x == 2.0
    with pytest.raises(SystemExit):
        override(config, ["--help"], "p")
    assert "How long it takes." in capsys.readouterr().out


def test_an_edit_counts_at_once_and_files_of_one_name_stay_apart(tmp_path):
    path = write_config(tmp_path, "mine.py", LOCAL.format(steps=5))
    (tmp_path / "other").mkdir()
    other = write_config(tmp_path / "other", "mine.py", LOCAL.format(steps=7))
    first, second = load_config(path), load_config(other)
    write_config(tmp_path, "mine.py", LOCAL.format(steps=6))
    assert (first.steps, second.steps, load_config(path).steps) == (5, 7, 6)
    assert sys.modules[type(second).__module__].__file__ == other


def test_a_missing_config_names_the_nearest_and_all_others(tmp_path):
    for name in ("digits.py", "flickr8k.py", "notes.txt"):
        write_config(tmp_path, name, "")
    with pytest.raises(FileNotFoundError) as error:
        load_config(str(tmp_path / "digts.py"))
    assert str(error.value) == (
        f"no config file {tmp_path}/digts.py (nearest: 'digits.py'); "
        f"in {tmp_path}: digits.py, flickr8k.py"
    )
    with pytest.raises(FileNotFoundError, match=r"is a folder, not a config file .*: digits.py, "):
        load_config(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path / 'no'}$"):
        load_config(str(tmp_path / "no" / "x.py"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"x.py; in .*empty: none$"):
        load_config(str(tmp_path / "empty" / "x.py"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def get_confg(): pass", "defines no function get_config (nearest: 'get_confg')"),
        ("get_config = 3", "defines no function get_config (nearest: 'get_config')"),
        ("", "defines no function get_config"),
        ("def get_config(): return {'a': 1}", "get_config() returned {'a': 1}, not a dataclass"),
        ("def get_config(): pass", "get_config() returned None, not a dataclass"),
        (
            "import dataclasses as d\nA = d.make_dataclass('A', [])\ndef get_config(): return A",
            "not a dataclass",
        ),
    ],
)
def test_a_file_that_is_no_config_says_why(tmp_path, body, message):
    path = write_config(tmp_path, "x.py", body)
    with pytest.raises(ValueError) as error:
        load_config(path)
    assert str(error.value).startswith(path) and message in str(error.value)


def test_an_error_inside_the_file_is_its_own(tmp_path):
    path = write_config(tmp_path, "x.py", "def get_config(: pass")
    with pytest.raises(SyntaxError) as error:
        load_config(path)
    assert error.value.filename == path


# Command line.


def refused(config, argv, capsys):
    """What is printed, its line breaks and frames taken out, when `argv` ends the program."""
    with pytest.raises(SystemExit) as ended:
        override(config, argv, "train.py x.py")
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", err).split())


@pytest.mark.parametrize("config", [SMALL, FULL], ids=["small", "full"])
def test_no_arguments_change_nothing(config):
    assert override(config, [], "train.py") == config


def test_fields_are_replaced_by_path_and_type():
    line = (
        "--optim.learning-rate 3e-4 --optim.method.no-nesterov --optim.clip_norm 2 "
        "--optim.rates.a/* 0.5 --optim.warmup 20 --evals.coco.split val --evals.coco.at 1 10 "
        "--sources.1.root here --image.stages 1 1 1 1 --resume.root there --mesh.data 8 "
        "--names x y z --size 64 --steps=7 --remat --evals.in1k.no-unseen"
    )
    changed = override(FULL, line.split(), "train.py")
    assert differences(to_data(FULL), to_data(changed)) == [
        "image.stages.1: 2 -> 1",
        "image.stages.2: 3 -> 1",
        "image.stages.3: 4 -> 1",
        "optim.method.nesterov: True -> False",
        "optim.learning_rate: 0.1 -> 0.0003",
        "optim.clip_norm: None -> 2.0",
        "optim.warmup: 0.1 -> 20",
        "optim.rates.a/*: 0.0 -> 0.5",
        "evals.in1k.unseen: True -> False",
        "evals.coco.split: 'test' -> 'val'",
        "evals.coco.at.1: absent -> 10",
        "sources.1.root: 'y' -> 'here'",
        "mesh.data: -1 -> 8",
        "resume.root: 'z' -> 'there'",
        "names.0: 'a' -> 'x'",
        "names.1: 'b' -> 'y'",
        "names.2: absent -> 'z'",
        "size: [96, 64] -> 64",
        "steps: 100 -> 7",
        "remat: False -> True",
    ]
    assert type(changed.optim.warmup) is int
    assert override(SMALL, ["--optim.rates", "image/*", "0"], "p").optim.rates == {"image/*": 0.0}
    assert override(SMALL, ["--optim.clip-norm", "None"], "p").optim.clip_norm is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nested:
    """Objects that may be absent, in all that may hold them."""

    alone: Train | None = None
    by_name: dict[str, Train] = dataclasses.field(default_factory=dict)
    in_order: tuple[Train, ...] = ()
    needed: Shards | None = None

    def __post_init__(self):
        if self.alone and not self.needed:
            raise ValueError("alone needs needed")


def test_objects_that_may_be_absent_are_left_out_on_request():
    config = Nested(by_name={"a_b": FULL, "c-d": FULL}, in_order=(SMALL, FULL))
    line = (
        "--in-order.1.tower None --by-name.a_b.resume=None --in_order.0.tower None --alone None "
        "--by-name.c-d.tower None --in-order.1.steps 5 --in-order.1.optim.clip-norm None"
    )
    assert override(config, line.split(), "p") == Nested(
        by_name={
            "a_b": dataclasses.replace(FULL, resume=None),
            "c-d": dataclasses.replace(FULL, tower=None),
        },
        in_order=(SMALL, dataclasses.replace(FULL, tower=None, steps=5)),
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--by-name.a.optim None", "config.by_name.a.optim: None is not Optim"),
        ("--needed None", "config: alone needs needed"),
        ("--by-name.a.towr None", "no field --by-name.a.towr (nearest: '--by-name.a.tower"),
        ("--needed None --needed.root y --alone None", "no field --needed.root"),
        ("--in-order None", "--in-order"),
    ],
)
def test_what_cannot_be_left_out_says_why(argv, message, capsys):
    config = Nested(alone=SMALL, by_name={"a": FULL}, needed=Shards(root="x"))
    assert message in refused(config, argv.split(), capsys)


def test_a_dict_keeps_keys_with_underscores():
    config = dataclasses.replace(SMALL, evals={"unseen_images": ZeroShot(), "b-c": Retrieval()})
    changed = override(config, ["--evals.unseen_images.split", "x", "--evals.b-c.split", "y"], "p")
    assert changed.evals == {"unseen_images": ZeroShot(split="x"), "b-c": Retrieval(split="y")}


@pytest.mark.parametrize(
    ("argv", "wrong", "near"),
    [
        (["--optim.learning-rte", "1"], "--optim.learning-rte", "--optim.learning-rate"),
        (["--optim.learning_rte=1"], "--optim.learning_rte", "--optim.learning-rate"),
        (["--stps", "1"], "--stps", "--steps"),
        (["--evals.coc.split", "x"], "--evals.coc.split", "--evals.coco.split"),
        (["--sources.2.root", "x"], "--sources.2.root", "--sources.1.root"),
        (["--image.depth", "3"], "--image.depth", "--image.width"),
        (["--optim.method.b1", "3"], "--optim.method.b1", "--optim.method.nesterov"),
        (["--lerning-rate", "3"], "--lerning-rate", "--optim.learning-rate"),
    ],
)
def test_a_misspelt_field_is_answered_with_the_nearest(argv, wrong, near, capsys):
    assert refused(FULL, argv, capsys) == (
        f"train.py x.py: no field {wrong} (nearest: '{near}') train.py x.py --help lists all fields"
    )


def test_all_misspelt_fields_are_reported(capsys):
    message = refused(FULL, ["--stps", "1", "--seed", "-3", "--steps", "4"], capsys)
    assert "no field --stps (nearest: '--steps')" in message
    assert "no field --seed" in message


def test_a_stray_value_is_shown(capsys):
    message = refused(SMALL, ["--remat", "False"], capsys)
    assert "'False' belongs to no field; a switch is --name or --no-name" in message


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (["--steps", "1.5"], ["--steps", "1.5", "INT"]),
        (["--optim.learning-rate", "fast"], ["--optim.learning-rate", "fast", "FLOAT"]),
        (["--image.pool", "gp"], ["--image.pool", "'gp'", "'cls', 'gap', 'map'"]),
        (["--optim.clip-norm", "much"], ["--optim.clip-norm", "much", "{None}|FLOAT"]),
        (["--steps"], ["--steps"]),
        (["--image.width", "65"], ["image: width 65 is no multiple of 64"]),
        (["--steps", "0"], ["steps must be at least 1, got 0"]),
    ],
)
def test_a_wrong_value_names_its_field(argv, texts, capsys):
    message = refused(SMALL, argv, capsys)
    assert all(text in message for text in texts), message


def test_help_lists_every_field_with_its_documentation(capsys):
    with pytest.raises(SystemExit) as ended:
        override(FULL, ["--help"], "train.py x.py")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: train.py x.py")
    assert all(flag in text for flag in overrides._flags(FULL, "-"))
    for words in ("One experiment.", "Peak learning rate.", "Updates in all.", "(default: 100)"):
        assert words in text


# Checks of a config's own fields.


def test_required_conditions_are_all_reported():
    vit = ViT(width=64)
    require(vit, ("width", True, "even"))
    with pytest.raises(ValueError) as error:
        require(vit, ("width", False, "odd"), ("pool", True, "x"), ("pool", False, "'map'"))
    assert str(error.value) == "ViT.width must be odd, got 64; ViT.pool must be 'map', got 'cls'"


def test_the_command_line_library_is_loaded_only_on_use():
    import subprocess

    code = (
        "import clip_jax.overrides, sys; print(sorted({'tyro', 'jax', 'etils'} & set(sys.modules)))"
    )
    root = pathlib.Path(room.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
