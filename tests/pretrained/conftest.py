import pathlib
import struct
import types
import zipfile

import pytest


class Raw(bytes):
    """Pickle opcodes that stand for a value."""


def ops(value):
    """Opcodes (protocol 2) that push a value."""
    match value:
        case Raw():
            return bytes(value)
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case tuple():
            return b"(" + b"".join(map(ops, value)) + b"t"
        case list():
            return b"](" + b"".join(map(ops, value)) + b"e"
        case dict():
            return b"}(" + b"".join(ops(k) + ops(v) for k, v in value.items()) + b"u"
    raise TypeError(value)


def name(module, attribute):
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function, *arguments):
    return Raw(ops(function) + ops(arguments) + b"R")


def storage(key="0", kind="FloatStorage", elements=6):
    identity = ("storage", name("torch", kind), key, "cpu", elements)
    return Raw(ops(identity) + b"Q")


def tensor(shape=(2, 3), strides=(3, 1), offset=0, at=None, extra=()):
    function = name("torch._utils", "_rebuild_tensor_v2")
    arguments = (storage() if at is None else at, offset, shape, strides, False, None, *extra)
    return call(function, *arguments)


def script(class_name, attributes):
    return Raw(ops(name("__torch__", class_name)) + b")\x81" + ops(attributes) + b"b")


def pickled(value):
    return b"\x80\x02" + ops(value) + b"."


NUMBERS = struct.pack("<6f", *range(6))


def write_zip(path, value, storages=None, members=None, compression=zipfile.ZIP_STORED):
    """A file of torch.save made by hand; `value` may also be a whole pickle."""
    data = value if isinstance(value, bytes) and value.startswith(b"\x80") else pickled(value)
    all_members = {"data.pkl": data, "version": b"3\n", **(members or {})}
    for key, content in ({"0": NUMBERS} if storages is None else storages).items():
        all_members[f"data/{key}"] = content
    with zipfile.ZipFile(path, "w", compression) as file:
        for member, content in all_members.items():
            file.writestr(f"model/{member}", content)
    return path


@pytest.fixture(scope="session")
def asm():
    """An assembler of pickles and of the zip files around them."""
    return types.SimpleNamespace(
        Raw=Raw,
        call=call,
        name=name,
        ops=ops,
        pickled=pickled,
        script=script,
        storage=storage,
        tensor=tensor,
        write=write_zip,
    )


@pytest.fixture(scope="session")
def golden():
    return pathlib.Path(__file__).parents[1] / "golden"
