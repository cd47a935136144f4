"""Pickles that attack, and pickles that are damaged: refused, and never run."""

import copyreg
import pickle
import random
import zipfile

import numpy as np
import pytest

from clip_jax.pretrained.arrays import open_weights


def attacks(asm, command):
    """By name: opcodes that run a shell command when Python unpickles them, and what they ask."""
    text, code = asm.ops(command), asm.ops(f"__import__('os').system({command!r})")
    short = b"\x8c" + bytes([len(command)]) + command.encode()
    import_os = asm.call(asm.name("importlib", "import_module"), "os")
    function = asm.call(asm.name("builtins", "getattr"), import_os, "system")
    mapped = b"cbuiltins\nmap\n" + asm.ops((asm.name("builtins", "eval"), [asm.Raw(code)]))
    setstate = b"ctypes\nSimpleNamespace\n)\x81}" + asm.ops("__setstate__") + b"cos\nsystem\nsb"
    return {
        "reduce": (b"cos\nsystem\n(" + text + b"tR", "os.system"),
        "posix": (b"cposix\nsystem\n" + text + b"\x85R", "posix.system"),
        "eval": (b"cbuiltins\neval\n" + code + b"\x85R", "builtins.eval"),
        "stack_global": (b"\x8c\x02os\x8c\x06system\x93" + short + b"\x85R", "os.system"),
        "inst": (b"(" + text + b"ios\nsystem\n", "os.system"),
        "obj": (b"(cos\nsystem\n" + text + b"o", "os.system"),
        "getattr": (asm.call(function, command), "builtins.getattr"),
        "newobj": (b"cbuiltins\nbytes\n" + mapped + b"\x81\x85\x81", "builtins.bytes"),
        "build": (setstate + text + b"b", "types.SimpleNamespace"),
        "dotted": (b"\x8c\x06shutil\x8c\x09os.system\x93" + short + b"\x85R", "shutil.os.system"),
    }


ATTACKS = (
    "reduce", "posix", "eval", "stack_global", "inst", "obj", "getattr", "newobj", "build", "dotted"
)  # fmt: skip


@pytest.fixture
def ran(tmp_path):
    """The file that an attack would make."""
    return tmp_path / "ran"


@pytest.fixture(params=ATTACKS)
def attack(request, asm, ran):
    return attacks(asm, f"touch {ran}")[request.param]


def test_the_attacks_are_real(attack, ran):
    opcodes, _ = attack
    pickle.loads(b"\x80\x04" + opcodes + b".")
    assert ran.exists()


def test_all_attacks_are_listed(asm):
    assert set(attacks(asm, "")) == set(ATTACKS)


def refusal(path):
    with pytest.raises(ValueError, match="asks for ") as caught:
        open_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: asks for ")
    assert "refused; nothing in it was run" in message
    return message.removeprefix(f"{path}: asks for ").split(": refused")[0]


@pytest.mark.parametrize("place", ["root", "value", "optimizer", "key", "hooks", "storage"])
def test_an_attack_is_refused_wherever_it_is(asm, attack, ran, tmp_path, place):
    opcodes, asked = attack
    raw = asm.Raw(opcodes)
    value = {
        "root": raw,
        "value": {"weight": asm.tensor(), "other": raw},
        "optimizer": {"state_dict": {"weight": asm.tensor()}, "optimizer": {"state": [raw]}},
        "key": asm.Raw(b"}" + opcodes + b"Ns"),
        "hooks": {"weight": asm.tensor(extra=(raw,))},
        "storage": {"weight": asm.tensor(at=asm.Raw(opcodes + b"Q"))},
    }[place]
    path = asm.write(tmp_path / "model.pt", value)
    assert refusal(path) == asked
    assert not ran.exists()


@pytest.mark.parametrize("member", ["data.pkl", "constants.pkl"])
def test_an_attack_in_torchscript_is_refused(asm, attack, ran, tmp_path, member):
    opcodes, asked = attack
    module = asm.script("M", {"weight": asm.tensor(), "training": True})
    bad = asm.script("M", {"training": False, "state": asm.Raw(opcodes)})
    pickles = {"data.pkl": asm.pickled(module), "constants.pkl": asm.pickled(())}
    pickles[member] = asm.pickled(bad)
    path = asm.write(tmp_path / "model.pt", pickles["data.pkl"], members=pickles)
    assert refusal(path) == asked
    assert not ran.exists()


def test_code_of_torchscript_is_not_looked_at(asm, ran, tmp_path):
    module = asm.script("M", {"weight": asm.tensor()})
    code = {
        "code/__torch__.py": f"import os; os.system('touch {ran}')".encode(),
        "code/__torch__.py.debug_pkl": b"cos\nsystem\n(X\x04\0\0\0truetR.",
    }
    path = asm.write(tmp_path / "model.pt", module, members=code)
    np.testing.assert_array_equal(open_weights(path).arrays["weight"].read().ravel(), range(6))
    assert not ran.exists()


def test_extension_opcodes_are_refused(asm, ran, tmp_path):
    copyreg.add_extension("os", "system", 240)
    try:
        opcodes = b"\x82\xf0" + asm.ops(f"touch {ran}") + b"\x85R"
        pickle.loads(b"\x80\x02" + opcodes + b".")
        assert ran.exists(), "the attack is real, and has filled Python's cache"
        ran.unlink()
        for extension in (b"\x82\xf0", b"\x83\xf0\0", b"\x84\xf0\0\0\0"):
            value = asm.Raw(opcodes.replace(b"\x82\xf0", extension))
            path = asm.write(tmp_path / "model.pt", value)
            assert refusal(path) == "extension 240 of Python's copyreg"
        assert not ran.exists()
    finally:
        copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize(
    "asked",
    [
        "torch.load",
        "torch.hub.load",
        "torch.storage._load_from_bytes",
        "torch._utils._rebuild_tensor_v2.__globals__",
        "torch.FloatStorage.mro",
        "torch.nn.modules.linear.Linear",
        "open_clip.model.CLIP",
        "collections.Counter",
        "copyreg._reconstructor",
        "__builtin__.dict",
        "_codecs.encode",
        "numpy.core.multiarray.scalar",
        "FloatStorage",
        "__torch__",
    ],
)
def test_other_names_are_refused_by_name(asm, tmp_path, asked):
    module, _, attribute = asked.rpartition(".")
    path = asm.write(tmp_path / "model.pt", {"w": asm.tensor(), "x": asm.name(module, attribute)})
    assert refusal(path) in (asked, f".{asked}")


def test_names_cannot_write_to_the_terminal_or_fill_it(asm, tmp_path):
    path = asm.write(tmp_path / "model.pt", asm.name("os\x1b[2J", "s" * 10_000))
    asked = refusal(path)
    assert asked.startswith("os?[2J.sss") and len(asked) < 300


def test_what_is_known_can_still_not_be_misused(asm, tmp_path):
    ordered = asm.name("collections", "OrderedDict")
    rebuild = asm.name("torch._utils", "_rebuild_tensor_v2")
    made = asm.call(ordered)
    misuses = {
        "a call of torch.FloatStorage": asm.call(asm.name("torch", "FloatStorage"), 3),
        "a call of torch.float32": asm.call(asm.name("torch", "float32")),
        "a call of a value of type dict": asm.call(made),
        "a call of a value of type str": asm.call("os.system", "true"),
        "an object of collections.OrderedDict": asm.Raw(bytes(ordered) + b")\x81"),
        "an object of a value of type int": asm.Raw(b"K\1)\x81"),
        "setting the state of collections.OrderedDict": asm.Raw(bytes(ordered) + b"}b"),
        "setting the state of torch._utils._rebuild_tensor_v2": asm.Raw(bytes(rebuild) + b"}b"),
        "setting the state of a value of type Tensor": asm.Raw(asm.ops(asm.tensor()) + b"}b"),
        "setting the state of a value of type dict": asm.Raw(asm.ops(made) + b"K\1b"),
        "the pickle opcode EMPTY_SET": asm.Raw(b"\x8f"),
        "the pickle opcode NEXT_BUFFER": asm.Raw(b"\x97"),
        "the pickle opcode PERSID": asm.Raw(b"Pstorage\n"),
    }
    for asked, value in misuses.items():
        assert refusal(asm.write(tmp_path / "model.pt", {"w": asm.tensor(), "x": value})) == asked


def faulty(asm, path, value, **kwargs):
    asm.write(path, value, **kwargs)
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    "window",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": True},
        {"offset": 2**70},
        {"strides": (3, 2)},
        {"strides": (4, 1)},
        {"strides": (-3, 1)},
        {"strides": (2**63, 1)},
        {"strides": (3,)},
        {"shape": (2, 4)},
        {"shape": (-2, -3)},
        {"shape": (2, 3, 1)},
        {"shape": (2.0, 3.0)},
        {"shape": [2, 3]},
        {"shape": (2**40, 2**40), "strides": (0, 0)},
        {"shape": (1,) * 33, "strides": (1,) * 33},
        {"shape": (0,), "strides": (1,), "offset": 7},
        {"shape": None},
    ],
)
def test_tensors_stay_inside_their_storage(asm, tmp_path, window):
    message = faulty(asm, tmp_path / "m.pt", {"w": asm.tensor(**window)})
    assert message.startswith("has a tensor "), message


@pytest.mark.parametrize(
    ("storage", "fault"),
    [
        ({"key": "1"}, "lacks the member of storage '1'"),
        ({"key": "../version"}, "lacks the member of storage '../version'"),
        ({"elements": 7}, "claims 7 float32 in storage '0', which has 24 bytes"),
        ({"elements": -1}, "claims -1 float32"),
        ({"elements": 2**300}, "claims 2037"),
        ({"kind": "DoubleStorage"}, "claims 6 float64 in storage '0', which has 24 bytes"),
        ({"key": 0}, "has a persistent id that is not that of a storage"),
        ({"kind": "float32"}, "has a persistent id that is not that of a storage"),
        ({"elements": 6.0}, "has a persistent id that is not that of a storage"),
    ],
)
def test_storages_are_those_of_the_archive(asm, tmp_path, storage, fault):
    message = faulty(asm, tmp_path / "m.pt", {"w": asm.tensor(at=asm.storage(**storage))})
    assert message.startswith(fault)


@pytest.mark.parametrize("identity", ["0", ("storage",), ("module", 1, 2, 3, 4), 5, None, ()])
def test_other_persistent_ids_are_refused(asm, tmp_path, identity):
    value = asm.Raw(asm.ops(identity) + b"Q")
    message = faulty(asm, tmp_path / "m.pt", {"w": asm.tensor(at=value)})
    assert message == "has a persistent id that is not that of a storage"


def test_tensors_need_tensors(asm, tmp_path):
    parameter = asm.call(asm.name("torch._utils", "_rebuild_parameter"), 3, True, None)
    assert "without a storage" in faulty(asm, tmp_path / "m.pt", {"w": asm.tensor(at=3)})
    assert "without a tensor" in faulty(asm, tmp_path / "m.pt", {"w": parameter})
    negated = asm.tensor(extra=({"neg": True},))
    assert "in a form that is not read" in faulty(asm, tmp_path / "m.pt", {"w": negated})
    few = asm.call(asm.name("torch._utils", "_rebuild_tensor_v2"), asm.storage())
    assert "holds a damaged pickle" in faulty(asm, tmp_path / "m.pt", {"w": few})


def test_endless_structures_end(asm, tmp_path):
    path = tmp_path / "m.pt"
    deep = asm.Raw(b"]" * 20_000 + b"a" * 19_999)
    asm.write(path, {"w": asm.tensor(), "deep": deep})
    assert list(open_weights(path).arrays) == ["w"]
    inside = asm.Raw(b"}q\1X\1\0\0\0sh\1s")
    asm.write(path, {"w": asm.tensor(), "self": inside})
    assert list(open_weights(path).arrays) == ["w"]
    looped = asm.Raw(b"c__torch__\nM\n)\x81q\1}X\1\0\0\0mh\1sb")
    assert "one inside itself" in faulty(asm, path, looped)
    tuples = asm.Raw(b"}" + b")" + b"\x85" * 20_000 + b"Ns")
    assert "type tuple as the key of a dict" in faulty(asm, path, tuples)
    # Forty modules, each twice in the next: 2^40 names.
    doubled = asm.script("M", {"w": asm.tensor()})
    for number in range(40):
        kept = asm.Raw(bytes(doubled) + bytes([ord("q"), number]))
        doubled = asm.script("M", {"a": kept, "b": asm.Raw(bytes([ord("h"), number]))})
    assert "attributes" in faulty(asm, path, doubled)


def test_pickles_out_of_order_are_damaged(asm, tmp_path):
    broken = {
        "empty": b"\x80\x02.",
        "two values": b"\x80\x02NN.",
        "no stop": b"\x80\x02N",
        "no mark": b"\x80\x02t.",
        "no memo": b"\x80\x02h\1.",
        "no operand": b"\x80\x02\x86.",
        "odd items": b"\x80\x02}(Nu.",
        "not an opcode": b"\x80\x02\xff.",
        "cut text": b"\x80\x02X\xff\xff\0\0abc.",
        "text that is not UTF-8": b"\x80\x02X\1\0\0\0\xffN.",
        "a mark left": b"\x80\x02}(.",
    }
    for what, data in broken.items():
        assert faulty(asm, tmp_path / "m.pt", data).startswith("holds a damaged pickle"), what


def test_damage_anywhere_is_a_value_error_or_harmless(asm, tmp_path, golden):
    """Hundreds of files with a few bytes changed or cut: read, or refused by name."""
    chance = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for name in ("torch_checkpoint.pt", "torchscript.pt", "torch_state.pt"):
        whole = (golden / name).read_bytes()
        with zipfile.ZipFile(golden / name) as file:
            root = next(n for n in file.namelist() if n.endswith("/data.pkl"))
            start = whole.index(file.read(root)[:60])
            stop = start + file.getinfo(root).file_size
        for number in range(150):
            data = bytearray(whole)
            first, last = (start, stop) if number % 2 else (0, len(data))
            for _ in range(chance.randint(1, 3)):
                data[chance.randrange(first, last)] = chance.randrange(256)
            if number % 10 == 0:
                data = data[: chance.randrange(len(data))]
            path = tmp_path / "damaged.pt"
            path.write_bytes(data)
            try:
                for array in open_weights(path).arrays.values():
                    array.read()
                outcomes["read"] += 1
            except ValueError as fault:
                assert str(fault).startswith(f"{path}: ")
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes
