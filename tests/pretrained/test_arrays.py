"""Any file of weights opens by its content; what is written comes back the same."""

import gzip
import io
import json
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from clip_jax.pretrained.archive import Archive
from clip_jax.pretrained.arrays import open_weights, write_npz, write_safetensors, write_torch

WRITERS = {"safetensors": write_safetensors, "torch": write_torch, "npz": write_npz}
DTYPES = [
    "float64", "float32", "float16", "bfloat16",
    "int64", "int32", "int16", "int8", "uint8", "bool",
]  # fmt: skip


@pytest.fixture(params=WRITERS)
def kind(request):
    return request.param


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def samples():
    """Every dtype in shapes that are easily got wrong; every memory layout."""
    found = {}
    for name in DTYPES:
        values = np.array([0, 1, 2, 3, 5, 7]).astype(dtype_of(name)).reshape(2, 3)
        if np.issubdtype(values.dtype, np.floating) or name == "bfloat16":
            values[0, 0], values[1, 2] = np.inf, -0.0
        found |= {
            f"{name}/matrix": values,
            f"{name}/scalar": values[1, 1],
            f"{name}/scalar_array": np.array(values[1, 1]),
            f"{name}/one": values[:1, :1],
            f"{name}/none": values[:0],
            f"{name}/none_inside": values.reshape(2, 3, 1)[:, :, :0],
            f"{name}/transposed": values.T,
            f"{name}/reversed": values[::-1, ::-1],
            f"{name}/strided": values[:, ::2],
            f"{name}/repeated": np.broadcast_to(values[0], (4, 3)),
            f"{name}/many_axes": values.reshape((1,) * 6 + (2, 3, 1)),
        }
    return {name: np.asarray(array) for name, array in found.items()}


def assert_same(path, expected):
    found = open_weights(path).arrays
    assert set(found) == set(expected)
    for name, stored in found.items():
        array, wanted = stored.read(), expected[name]
        native = wanted.dtype.newbyteorder("=") if not wanted.dtype.isnative else wanted.dtype
        assert stored.shape == array.shape == wanted.shape, name
        assert stored.dtype == array.dtype == native, name
        assert array.tobytes() == wanted.astype(native).tobytes(), name
        assert array.flags.c_contiguous and array.flags.writeable, name


def test_everything_comes_back_to_the_bit(kind, tmp_path):
    path = tmp_path / "weights"
    WRITERS[kind](path, samples())
    assert open_weights(path).kind == kind
    assert_same(path, samples())


def test_big_endian_arrays_are_written_as_this_machine_has_them(kind, tmp_path):
    arrays = {"w": np.arange(6, dtype=">f4").reshape(2, 3), "n": np.arange(3, dtype=">i8")}
    WRITERS[kind](tmp_path / "weights", arrays)
    assert_same(tmp_path / "weights", arrays)


@pytest.mark.parametrize(
    "names", [["file"], ["a", "a.npy", "a/b", "a.b"], ["ключ ü 🤗"], ["x" * 300]]
)
def test_any_name_may_be_had(kind, tmp_path, names):
    arrays = {name: np.full(3, i, np.float32) for i, name in enumerate(names)}
    WRITERS[kind](tmp_path / "weights", arrays)
    assert_same(tmp_path / "weights", arrays)


def test_equal_arrays_give_equal_bytes_and_a_path_may_be_text(kind, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    WRITERS[kind](str(first), samples())
    WRITERS[kind](second, samples())
    assert first.read_bytes() == second.read_bytes()
    assert_same(str(first), samples())


def test_format_is_told_by_content_whatever_the_suffix(tmp_path):
    suffixes = (".pt", ".bin", ".safetensors", ".npz", ".json", "")
    for kind, write in WRITERS.items():
        for suffix in suffixes:
            path = tmp_path / f"weights{suffix}"
            write(path, {"w": np.ones(3, np.float32)})
            assert open_weights(path).kind == kind
            assert_same(path, {"w": np.ones(3, np.float32)})


def test_a_header_that_looks_like_a_pickle_is_safetensors(tmp_path):
    """The length of the header comes first: 0x280 begins as pickle protocol 2 does."""
    path = tmp_path / "weights"
    header = json.dumps({"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(struct.pack("<Q", 0x280) + header.ljust(0x280) + b"\5\6")
    assert path.read_bytes().startswith(b"\x80\x02")
    np.testing.assert_array_equal(open_weights(path).arrays["w"].read(), [5, 6])
    path.write_bytes(struct.pack("<Q", 0x7B) + header.ljust(0x7B) + b"\5\6")
    assert path.read_bytes().startswith(b"{")
    np.testing.assert_array_equal(open_weights(path).arrays["w"].read(), [5, 6])


def test_metadata_of_safetensors_are_extras(tmp_path):
    path = tmp_path / "weights"
    write_safetensors(path, {"w": np.ones(1)}, {"format": "pt"})
    assert open_weights(path).extras == {"format": "pt"}
    write_safetensors(path, {"w": np.ones(1)})
    assert open_weights(path).extras == {}


def test_others_can_read_what_is_written(tmp_path):
    expected = samples()
    write_safetensors(tmp_path / "weights", expected)
    found = safetensors.numpy.load_file(tmp_path / "weights")
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes(), name
    write_npz(tmp_path / "weights.npz", expected)
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as file:
        for name, array in expected.items():
            stored = "V2" if array.dtype == ml_dtypes.bfloat16 else array.dtype
            assert file[name].dtype == stored
            assert file[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_numpy(tmp_path, save):
    path = tmp_path / "weights.npz"
    kept = {
        "params/img/kernel": np.arange(24.0).reshape(2, 3, 4).astype(np.float32),
        "column_major": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">i2"),
        "unsigned": np.arange(3, dtype=np.uint32),
        "scalar": np.array(2.5),
        "bfloat16": np.arange(3).astype(ml_dtypes.bfloat16),
        "bfloat16_column_major": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16, order="F"),
        "large": np.zeros((300, 1000)),
    }
    save(path, **kept)
    assert open_weights(path).kind == "npz"
    assert_same(path, kept)
    with np.load(path) as file:
        assert file["bfloat16"].dtype == "V2", "as in the files of big_vision"


def npy(array, **kwargs):
    out = io.BytesIO()
    np.save(out, array, **kwargs)
    return out.getvalue()


def test_npz_members_that_are_no_numbers_are_listed(tmp_path):
    path = tmp_path / "weights.npz"
    whole = npy(np.arange(6.0))
    members = {
        "good": whole,
        "objects": npy(np.array([{}], object), allow_pickle=True),
        "text": npy(np.array(["a"])),
        "records": npy(np.zeros(2, [("a", "f4")])),
        "void": npy(np.zeros(2, "V3")),
        "short": whole[:-1],
        "header": whole.replace(b"(6,)", b"(6.)"),
        "claims": whole.replace(b"(6,), ", b"(2**9)"),
        "nothing": b"",
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: holds what is not read: ")
    for name in members:
        assert (f"'{name}.npy' has " in message) == (name != "good"), (name, message)
    assert "'objects.npy' has dtype object: not numbers (and objects would be code)" in message
    assert "'short.npy' has 47 bytes for shape (6,) of float64" in message


def test_only_the_array_asked_for_is_read_from_npz(tmp_path):
    path = tmp_path / "weights.npz"
    good, bad = np.full(5000, 3.25), np.full(5000, 5.5)
    write_npz(path, {"good": good, "bad": bad})
    path.write_bytes(path.read_bytes().replace(bad.tobytes(), bytes(40_000)))
    found = open_weights(path).arrays
    np.testing.assert_array_equal(found["good"].read(), good)
    with pytest.raises(ValueError, match=r"weights\.npz: 'bad\.npy' is damaged \(its CRC differs"):
        found["bad"].read()


def test_opening_reads_little_of_a_compressed_npz(tmp_path, monkeypatch):
    path = tmp_path / "weights.npz"
    np.savez_compressed(path, w=np.zeros(3_000_000), v=np.ones(3))
    inflated = []
    inflate = Archive._inflate

    def count(self, member, size):
        inflated.append(size)
        return inflate(self, member, size)

    monkeypatch.setattr(Archive, "_inflate", count)
    found = open_weights(path).arrays
    assert found["w"].shape == (3_000_000,)
    assert sum(inflated) < 40_000
    found["v"].read()
    assert sum(inflated) < 50_000


# Files that are something else


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty: the download or the copy of it failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
        (b"<!doctype html><html>", "is a web page or XML"),
        (b"\n<?xml version='1.0'?>", "is a web page or XML"),
        (gzip.compress(b"x"), "is compressed by gzip"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"Not Found", "is no file of weights: it begins with b'Not Found'. Read are safetens"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a bare pickle, as torch.save wrote bef"),
        (b"\x80\x04cos\nsystem\n.", "is a bare pickle"),
        (b'{"error": "Not Found"}', "is JSON, but no index of weights"),
        (b'{"weight_map": {}}', "is JSON, but no index of weights"),
        (b'{"weight_map": ', "looks like JSON, but is damaged"),
        (b'{"a":' * 100_000, "looks like JSON, but is damaged"),
        (b"PK\3\4", "is a zip file that was cut off or damaged"),
        (b"\x10\0\0\0\0\0\0\0{", "is cut off or damaged (Error"),
        (b"\xff\xff\xff\x7f\0\0\0\0{}", "is no file of weights"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, fault):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    assert str(caught.value).startswith(f"{path}: {fault}")


def test_an_old_file_of_torch_says_how_to_save_it_anew(tmp_path):
    path = tmp_path / "old.pt"
    path.write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match=r"torch\.save\(torch\.load\(OLD, weights_only=True\), N"):
        open_weights(path)


@pytest.mark.parametrize("cut", [1, 5, 50])
def test_safetensors_cut_off(tmp_path, cut):
    path = tmp_path / "model.pt"
    write_safetensors(path, {"w": np.ones(20)})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    assert str(caught.value).startswith(f"{path}: is cut off or damaged (")


def test_safetensors_of_other_dtypes_are_listed(tmp_path):
    path = tmp_path / "model.pt"
    safetensors.numpy.save_file({"a": np.ones(2), "b": np.ones(2, np.uint16)}, path)
    with pytest.raises(ValueError, match=r"dtypes that are not read: b \(U16\); read are F64, "):
        open_weights(path)


def test_paths_that_are_no_file(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError) as caught:
        open_weights(tmp_path / "modle.safetensor")
    assert str(caught.value) == (
        f"{tmp_path}/modle.safetensor: no such file (nearest: 'model.safetensors')"
    )
    with pytest.raises(FileNotFoundError, match=f"no such file, nor the folder {tmp_path}/none"):
        open_weights(tmp_path / "none" / "model.pt")
    with pytest.raises(ValueError, match="is a folder; name a file of weights in it"):
        open_weights(tmp_path)


# Writing whole or not at all


def test_arrays_without_a_place_are_all_named(kind, tmp_path):
    arrays = {"a": np.ones(2, np.complex64), "b": np.array(["x"]), "c": np.ones(2), "d": np.ones(2)}
    with pytest.raises(ValueError) as caught:
        WRITERS[kind](tmp_path / "weights", arrays)
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path}/weights: dtypes with no place in it: a (complex64), b (<U1); has bfloat16, "
    )
    with pytest.raises(ValueError, match=r"no place in it: '', 'a\\x00', '__metadata__'"):
        names = ("", "a\0", "__metadata__", "fine")
        WRITERS[kind](tmp_path / "weights", {name: np.ones(1) for name in names})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_what_was_there(kind, tmp_path, monkeypatch):
    path = tmp_path / "weights"
    WRITERS[kind](path, {"w": np.ones(3)})
    before = path.read_bytes()

    def full(self, target):
        assert self.stat().st_size > len(before)
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", full)
        with pytest.raises(OSError, match="no space left"):
            WRITERS[kind](path, {"w": np.ones(30)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    WRITERS[kind](path, {"w": np.zeros(30)})
    assert_same(path, {"w": np.zeros(30)})
    assert list(tmp_path.iterdir()) == [path]


def test_there_must_be_a_folder_to_write_into(kind, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        WRITERS[kind](tmp_path / "none" / "weights", {"w": np.ones(3)})
    assert str(caught.value) == (
        f"{tmp_path}/none/weights: there is no folder {tmp_path}/none to write into"
    )


def test_arrays_read_while_their_file_is_replaced_are_the_old_ones(tmp_path):
    """Load a model, train, save under the same name: nothing of the old is pulled away."""
    path = tmp_path / "weights"
    write_torch(path, {"w": np.ones(3)})
    array = open_weights(path).arrays["w"].read()
    write_torch(path, {"w": np.zeros(3)})
    np.testing.assert_array_equal(array, np.ones(3))
