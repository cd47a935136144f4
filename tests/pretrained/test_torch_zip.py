"""Files of torch.save and torch.jit.save: which tensors are the weights, and their numbers."""

import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from clip_jax.pretrained.arrays import open_weights, write_torch

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def expected(golden):
    with np.load(golden / "torch_files.npz") as file:
        whole = dict(file)

    def of(part):
        return {n.removeprefix(f"{part}/"): a for n, a in whole.items() if n.startswith(f"{part}/")}

    return of


def assert_same(found, expected):
    assert set(found.arrays) == set(expected)
    for name, stored in found.arrays.items():
        array, wanted = stored.read(), expected[name]
        assert (array.shape, array.dtype) == (stored.shape, stored.dtype), name
        assert array.flags.c_contiguous and array.flags.writeable, name
        if stored.dtype == ml_dtypes.bfloat16:
            array = array.astype(np.float32)
        assert array.dtype == wanted.dtype, name
        np.testing.assert_array_equal(array, wanted, err_msg=name)


def test_a_state_dict_of_every_dtype_and_kind_of_view(golden, expected):
    found = open_weights(golden / "torch_state.pt")
    assert_same(found, expected("state"))
    assert found.kind == "torch" and found.extras == {}
    assert found.arrays["bfloat16"].dtype == ml_dtypes.bfloat16
    assert found.arrays["transposed"].shape == (6, 4)
    assert found.arrays["scalar"].shape == ()


def test_a_training_checkpoint_gives_its_state_dict_alone(golden, expected):
    found = open_weights(golden / "torch_checkpoint.pt")
    assert_same(found, expected("checkpoint"))
    assert found.kind == "torch"
    assert found.extras == {
        "epoch": 3,
        "name": "run",
        "global_step": 120,
        "samples_seen": 10**10,
    }


def test_torchscript_gives_the_names_of_its_state_dict(golden, expected):
    found = open_weights(golden / "torchscript.pt")
    assert_same(found, expected("script"))
    assert found.kind == "torchscript"
    assert found.arrays["visual.blocks.0.weight"].dtype == np.float16
    assert found.extras == {
        "scale": 0.5,
        "visual.input_resolution": 8,
        "visual.conv1.transposed": False,
    }


def test_what_is_read_may_be_written_to(golden):
    found = open_weights(golden / "torch_state.pt").arrays
    for name in ("whole", "window", "repeated", "bool"):
        before = found[name].read()
        found[name].read()[...] = 1
        np.testing.assert_array_equal(found[name].read(), before)
    repeated = found["repeated"].read()
    repeated[0, 0] = 7
    assert repeated[1, 0] == 0, "rows have memory of their own"


def both(asm, **more):
    return {"weight": asm.tensor(), "bias": asm.tensor((3,), (1,), 3), **more}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "m."])
def test_wrappers_are_stripped_where_all_names_carry_them(asm, tmp_path, prefix):
    state = {prefix + name: value for name, value in both(asm).items()}
    found = open_weights(asm.write(tmp_path / "m.pt", state)).arrays
    kept = "m." if prefix == "m." else ""
    assert list(found) == [f"{kept}weight", f"{kept}bias"]
    state["other"] = asm.tensor()
    found = open_weights(asm.write(tmp_path / "m.pt", state)).arrays
    assert list(found) == [*[f"{prefix}weight", f"{prefix}bias"], "other"]


def test_one_name_that_is_a_wrapper_stays(asm, tmp_path):
    path = asm.write(tmp_path / "m.pt", {"module.": asm.tensor()})
    assert list(open_weights(path).arrays) == ["module."]


@pytest.mark.parametrize("key", ["model", "module", "net", "state_dict"])
def test_the_one_dict_of_tensors_is_taken(asm, tmp_path, key):
    root = {
        "epoch": 2,
        key: both(asm, depth=12),
        "optimizer": {"exp_avg": asm.tensor()},
        "args": {"lr": 0.1},
        "loss": 0.25,
        "flag": True,
        "nothing": None,
    }
    found = open_weights(asm.write(tmp_path / "m.pt", root))
    assert list(found.arrays) == ["weight", "bias"]
    assert found.extras == {"epoch": 2, "depth": 12, "loss": 0.25, "flag": True}


def test_state_dict_goes_before_all_else(asm, tmp_path):
    root = {"ema": {"x": asm.tensor()}, "state_dict": both(asm), "logit": asm.tensor()}
    assert list(open_weights(asm.write(tmp_path / "m.pt", root)).arrays) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("root", "fault"),
    [
        ("two", "holds 0 tensors and these dicts of tensors: 'model' (2), 'model_ema' (2); which"),
        ("mixed", "holds 1 tensors and these dicts of tensors: 'model' (2); which are the weights"),
        ("none", "holds no dict of tensors; its entries: 'epoch' (int), 'optimizer' (dict)"),
        ("nothing", "holds no dict of tensors; its entries: none"),
        ("barren", "holds no tensors under 'state_dict'; its entries there: 'a' (int)"),
        ("list", "holds a list instead of a dict of named tensors"),
        ("bare", "holds a Tensor instead of a dict of named tensors"),
        ("numbered", "names tensors by other things than text: [0, 1]"),
        ("object", "holds an object of __torch__.M without tensors"),
        ("stateless", "holds an object of __torch__.M without tensors"),
    ],
)
def test_it_must_be_clear_which_are_the_weights(asm, tmp_path, root, fault):
    roots = {
        "two": {"model": both(asm), "model_ema": both(asm)},
        "mixed": {"model": both(asm), "scale": asm.tensor()},
        "none": {"epoch": 1, "optimizer": both(asm)},
        "nothing": {},
        "barren": {"state_dict": {"a": 1}, "model": both(asm)},
        "list": [asm.tensor()],
        "bare": asm.tensor(),
        "numbered": {0: asm.tensor(), 1: asm.tensor()},
        "object": asm.script("M", {"training": True}),
        "stateless": asm.Raw(b"c__torch__\nM\n)\x81"),
    }
    path = asm.write(tmp_path / "m.pt", roots[root])
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    assert str(caught.value).startswith(f"{path}: {fault}")


def test_helpers_of_torchscript_leave_plain_values(asm, tmp_path):
    pickle = "torch.jit._pickle"
    attributes = {
        "weight": asm.tensor(),
        "sizes": asm.call(asm.name(pickle, "build_intlist"), [1, 2]),
        "scales": asm.call(asm.name(pickle, "build_doublelist"), [1.0]),
        "flags": asm.call(asm.name(pickle, "build_boollist"), [True]),
        "tensors": asm.call(asm.name(pickle, "build_tensorlist"), [asm.tensor()]),
        "map": asm.call(asm.name(pickle, "restore_type_tag"), {"a": 1}, "Dict[str, int]"),
        "pair": asm.call(asm.name("__torch__", "Pair"), 1, asm.tensor()),
        "size": asm.call(asm.name("torch", "Size"), [2, 3]),
        "dtype": asm.name("torch", "float16"),
        "half_training": 3,
        "training": True,
        "inner": asm.script("Inner", {"training": False, "0": asm.script("N", both(asm))}),
    }
    found = open_weights(asm.write(tmp_path / "m.pt", asm.script("M", attributes)))
    assert list(found.arrays) == ["weight", "inner.0.weight", "inner.0.bias"]
    assert found.extras == {"half_training": 3}


def test_members_may_be_compressed(asm, tmp_path):
    stored = asm.write(tmp_path / "a.pt", both(asm))
    deflated = asm.write(tmp_path / "b.pt", both(asm), compression=zipfile.ZIP_DEFLATED)
    for path in (stored, deflated):
        arrays = open_weights(path).arrays
        np.testing.assert_array_equal(arrays["weight"].read(), SIX)
        np.testing.assert_array_equal(arrays["bias"].read(), SIX[1])
    packed = asm.write(tmp_path / "c.pt", both(asm), compression=zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match=r"'model/data\.pkl' is compressed by method 12"):
        open_weights(packed)


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int64", "bool", "bfloat16"])
def test_big_endian_numbers_are_turned_around(asm, tmp_path, kind):
    dtype = np.dtype(getattr(ml_dtypes, kind) if kind == "bfloat16" else kind)
    names = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long"}
    storage_kind = {"bool": "Bool", "bfloat16": "BFloat16"} | names
    values = np.array([0, 1, 2, 300, -5, 7]).astype(dtype)
    content = values.view(f"u{dtype.itemsize}").byteswap().tobytes()
    weight = asm.tensor(at=asm.storage(kind=f"{storage_kind[kind]}Storage"))
    path = asm.write(
        tmp_path / "m.pt", {"w": weight}, storages={"0": content}, members={"byteorder": b"big"}
    )
    found = open_weights(path).arrays["w"]
    np.testing.assert_array_equal(found.read(), values.reshape(2, 3))
    assert found.read().dtype == found.dtype == dtype


def test_an_unknown_byte_order_is_refused(asm, tmp_path):
    path = asm.write(tmp_path / "m.pt", both(asm), members={"byteorder": b"middle"})
    with pytest.raises(ValueError, match="its byte order is 'middle'"):
        open_weights(path)


def test_bools_other_than_0_and_1_are_true(asm, tmp_path):
    weight = asm.tensor(at=asm.storage(kind="BoolStorage"))
    path = asm.write(tmp_path / "m.pt", {"w": weight}, storages={"0": b"\0\1\2\xff\0\0"})
    assert open_weights(path).arrays["w"].read().tobytes() == b"\0\1\1\1\0\0"


def damage(path, old, new):
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def test_only_the_array_asked_for_is_read(tmp_path):
    path = tmp_path / "m.pt"
    first, second = np.full(50, 3.25, np.float32), np.full(50, 5.5, np.float32)
    write_torch(path, {"first": first, "second": second})
    damage(path, second.tobytes(), bytes(200))
    arrays = open_weights(path).arrays
    np.testing.assert_array_equal(arrays["first"].read(), first)
    with pytest.raises(ValueError) as caught:
        arrays["second"].read()
    assert str(caught.value) == (
        f"{path}: 'archive/data/1' is damaged (its CRC differs); get it again"
    )


def test_a_file_without_checksums_is_read(tmp_path):
    """As after torch.serialization.set_crc32_options(False)."""
    path = tmp_path / "m.pt"
    write_torch(path, {"w": SIX})
    with zipfile.ZipFile(path) as file:
        sums = [struct.pack("<I", member.CRC) for member in file.infolist()]
    data = path.read_bytes()
    for crc in sums:
        data = data.replace(crc, bytes(4))
    path.write_bytes(data)
    with zipfile.ZipFile(path) as file:
        assert {member.CRC for member in file.infolist()} == {0}
    np.testing.assert_array_equal(open_weights(path).arrays["w"].read(), SIX)


def test_a_file_that_shrank_since_it_was_opened(tmp_path):
    path = tmp_path / "m.pt"
    write_torch(path, {"a": SIX, "w": np.zeros(5000)})
    arrays = open_weights(path).arrays
    path.write_bytes(path.read_bytes()[:20_000])
    np.testing.assert_array_equal(arrays["a"].read(), SIX)
    with pytest.raises(ValueError, match=r"'archive/data/1' ends \d+ bytes early"):
        arrays["w"].read()
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="'archive/data/0' is not where the contents list puts it"):
        arrays["a"].read()


@pytest.mark.parametrize("cut", [4, 30, 100, 1000, -1, -20, -100, -500])
def test_a_file_cut_off_says_so(golden, tmp_path, cut):
    path = tmp_path / "m.pt"
    path.write_bytes((golden / "torchscript.pt").read_bytes()[:cut])
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    assert str(caught.value).startswith(f"{path}: is a zip file that was cut off or damaged (")


def test_members_named_twice_are_refused(asm, tmp_path):
    path = asm.write(tmp_path / "m.pt", both(asm))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("model/data/0", bytes(24))
        file.writestr("model/data.pkl", asm.pickled({}))
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    twice = "'model/data.pkl' is there 2 times; 'model/data/0' is there 2 times"
    assert str(caught.value) == f"{path}: is no weight file to trust: {twice}"


def central(path, member, field, value):
    """Change a field of a member's entry in the contents list."""
    offset, form = {"flags": (8, "<H"), "packed": (20, "<I"), "size": (24, "<I")}[field]
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    while data[at + 46 : at + 46 + len(member)] != member.encode():
        at = data.index(b"PK\1\2", at + 1)
    struct.pack_into(form, data, at + offset, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("size", 2**31, "claims 2147483648 bytes in 24, uncompressed"),
        ("packed", 2**31, "claims 2147483648 bytes that are not in the file"),
        ("flags", 1, "is encrypted"),
    ],
)
def test_members_that_lie_are_refused(asm, tmp_path, field, value, fault):
    path = asm.write(tmp_path / "m.pt", both(asm))
    central(path, "model/data/0", field, value)
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    assert str(caught.value) == f"{path}: is no weight file to trust: 'model/data/0' {fault}"


def test_compressed_members_that_lie_are_refused(asm, tmp_path):
    """Huge claims cost no memory: what is inflated counts."""
    path = tmp_path / "m.pt"
    huge = asm.tensor(at=asm.storage(elements=2**28))
    asm.write(path, {"w": asm.tensor(), "x": huge}, compression=zipfile.ZIP_DEFLATED)
    central(path, "model/data/0", "size", 2**30)
    arrays = open_weights(path).arrays
    np.testing.assert_array_equal(arrays["w"].read(), SIX)
    all_of_it = asm.tensor((2**28,), (1,), at=asm.storage(elements=2**28))
    asm.write(path, {"w": all_of_it}, compression=zipfile.ZIP_DEFLATED)
    central(path, "model/data/0", "size", 2**30)
    with pytest.raises(ValueError, match="'model/data/0' ends 1073741800 bytes early"):
        open_weights(path).arrays["w"].read()
    asm.write(path, both(asm), compression=zipfile.ZIP_DEFLATED)
    central(path, "model/data.pkl", "size", 2**30)
    with pytest.raises(ValueError, match=r"'model/data\.pkl' claims 1073741824 bytes: no weights"):
        open_weights(path)


def test_repeats_are_honoured_while_they_stay_small(asm, tmp_path):
    path = asm.write(tmp_path / "m.pt", {"w": asm.tensor((1000, 6), (0, 1))})
    np.testing.assert_array_equal(
        open_weights(path).arrays["w"].read(), np.tile(SIX.ravel(), (1000, 1))
    )
    asm.write(path, {"w": asm.tensor((10**9, 6), (0, 1))})
    with pytest.raises(ValueError, match=r"repeats the 6 elements of storage '0' too often; save"):
        open_weights(path)


def test_archives_of_other_kinds_are_named(tmp_path):
    path = tmp_path / "m.pt"
    for names, fault in (
        (["a/data.pkl", "b/data.pkl"], "has 2 members FOLDER/data.pkl, needs one"),
        (["a/b/data.pkl"], "has 0 members FOLDER/data.pkl, needs one"),
        (["data.pkl", "x"], "is a zip file without weights; it holds 'data.pkl', 'x'"),
        ([], "is a zip file without weights; it holds nothing"),
    ):
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, b"\x80\x02}.")
        with pytest.raises(ValueError) as caught:
            open_weights(path)
        assert str(caught.value) == f"{path}: {fault}"


def test_what_is_written_is_aligned_for_memory_maps(tmp_path):
    path = tmp_path / "m.pt"
    arrays = {f"{'n' * i}": np.full(i + 1, i, np.int8) for i in range(1, 40)}
    write_torch(path, arrays)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        data = path.read_bytes()
        for i, array in enumerate(arrays.values()):
            at = file.getinfo(f"archive/data/{i}").header_offset
            name, extra = struct.unpack("<HH", data[at + 26 : at + 30])
            first = at + 30 + name + extra
            assert first % 64 == 0
            assert data[first : first + len(array)] == array.tobytes()
