import io
import pathlib
import subprocess
import tarfile
import tempfile

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.sample import BadSampleError
from clip_jax.data.tar_members import scan
from clip_jax.data.tar_shards import TarShards
from clip_jax.preprocess.augment import Augment

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
REASONS = {"missing image", "missing caption", "empty caption", "bad caption", "truncated"}


def steady(examples):
    return hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def picture(number, kind="PNG", size=8):
    data = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 20 * number, np.uint8)).save(data, kind)
    return data.getvalue()


PICTURES = [picture(number) for number in range(6)]
CAPTIONS = [f"picture {number:03d} of six." for number in range(6)]


@st.composite
def tars(draw):
    """A tar of up to six pairs, whole, in any order; some members dropped, doubled or sparse."""
    pad = draw(st.sampled_from([0, 0, 89, 110, 300]))
    form = draw(st.sampled_from(FORMATS[1:] if pad > 100 else FORMATS))
    members = []
    for number in range(draw(st.integers(1, 6))):
        # The number stands at both ends, so that one wrong byte never makes another's name.
        key = f"{number:03d}{'x' * pad}{number:03d}"
        members += [(f"{key}.png", PICTURES[number]), (f"{key}.txt", CAPTIONS[number].encode())]
        if draw(st.booleans()):
            members.append((f"{key}.json", b'{"caption": "of nobody"}'))
    members = draw(st.permutations(members)) if draw(st.booleans()) else members
    dropped = draw(st.sets(st.integers(0, len(members) - 1), max_size=2))
    members = [member for i, member in enumerate(members) if i not in dropped] or members
    if draw(st.integers(0, 9)) == 0:
        members.append(draw(st.sampled_from(members)))
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if draw(st.integers(0, 15)) == 0:
                info.type = draw(st.sampled_from([b"S", b"1", b"2", b"5", b"6", b"7", b"\0", b"Z"]))
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    return data.getvalue()[: end + 1024]


@st.composite
def mangled(draw):
    """Such a tar with wrong bytes (one in a block at most), a wrong size, or its end cut off."""
    data = bytearray(draw(tars()))
    blocks = draw(st.sets(st.integers(0, len(data) // 512 - 1), max_size=3))
    for block in blocks:
        at = 512 * block + draw(
            st.one_of(st.integers(0, 511), st.sampled_from([124, 148, 156, 482]))
        )
        data[at] ^= draw(st.integers(1, 255))
    if draw(st.integers(0, 3)) == 0:
        at = 512 * draw(st.integers(0, len(data) // 512 - 1))
        size = draw(st.one_of(st.integers(0, 2000), st.integers(2**32, 2**40), st.just(-512)))
        field = b"%011o\0" % size if 0 <= size < 2**33 else size.to_bytes(12, "big", signed=True)
        if size >= 2**33:
            field = b"\x80" + field[1:]
        data[at + 124 : at + 136] = field
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


def read_all(data, **fields):
    """(Picture, caption) of every good sample; the documented errors and no others may come."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "0.tar"
        path.write_bytes(data)
        try:
            source = TarShards(root=str(path), **fields).open("train")
        except ValueError as fault:
            assert str(path) in str(fault)
            return None
        pairs = []
        for index in range(len(source)):
            try:
                sample = source[index]
            except BadSampleError as fault:
                assert fault.reason in REASONS and fault.shard == str(path)
            else:
                pairs.append((sample.image, *sample.texts))
        return pairs


def check(pairs):
    """Where both are as they were written, they belong together; returns how many are."""
    whole = 0
    for image, *texts in pairs or ():
        numbers = {PICTURES.index(image)} if image in PICTURES else set()
        told = {CAPTIONS.index(text) for text in texts if text in CAPTIONS}
        if numbers and told:
            assert numbers == told
            whole += 1
    return whole


@steady(300)
@hypothesis.given(mangled(), st.sampled_from([{}, {"caption_keys": {".txt": 1.0}}]))
def test_a_mangled_shard_never_pairs_wrongly_and_only_documented_errors_come(data, fields):
    check(read_all(data, **fields))


@steady(60)
@hypothesis.given(tars())
def test_members_are_those_that_tarfile_finds(data):
    """A link's contents that do not belong there end both; tarfile says nothing of it. A sparse
    file here lacks its map, which it does not mind."""
    found, damage = scan(lambda offset, size: data[offset : offset + size], len(data))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        try:
            members = tar.getmembers()
        except tarfile.ReadError:
            assert damage is not None
            return
    hypothesis.assume(not any(member.type == b"S" for member in members))
    sound = all(member.isreg() or member.type == b"Z" for member in members)
    assert damage is None or not sound
    assert [tuple(member) for member in found] == [
        (member.name.encode(), member.offset_data, member.size)
        for member in members
        if member.isreg() and not member.issparse()
    ]


@steady(100)
@hypothesis.given(tars(), st.floats(0, 1))
def test_of_a_cut_shard_all_complete_pairs_are_read(data, share):
    kept = data[: int(share * len(data))]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        try:
            members = tar.getmembers()
        except tarfile.ReadError:
            return
    names = [member.name for member in members]
    hypothesis.assume(len(names) == len(set(names)))
    hypothesis.assume(all(member.isreg() and not member.issparse() for member in members))
    whole = {m.name for m in members if m.offset_data + m.size <= len(kept)}
    pairs = sum(n[:-3] + "txt" in whole for n in whole if n.endswith(".png"))
    assert check(read_all(kept)) == pairs


@steady(100)
@hypothesis.given(st.binary(max_size=3000), st.booleans())
def test_any_bytes_are_a_shard_or_a_documented_error(data, valid):
    if valid:  # As the header of something else: its own checksum makes it be read further.
        block = bytearray(data.ljust(512, b"\0"))
        block[124:136], block[148:156] = b"00000001000\0", b" " * 8
        block[148:156] = b"%06o\0 " % sum(block[:512])
        data = bytes(block)
    read_all(data)


def header(name, size, kind):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_ten_thousand_extra_headers_in_a_row_are_read_through(kind):
    """tarfile gives up after some hundreds: it calls itself for each."""
    records = {b"x": b"13 comment=x\n", b"g": b"13 comment=x\n"}.get(kind, b"000000.png\0")
    one = header("extra", len(records), kind) + records.ljust(512, b"\0")
    data = one * 10_000 + header("000000.png", 3, b"0") + b"abc".ljust(512, b"\0") + bytes(1024)
    found, damage = scan(lambda offset, size: data[offset : offset + size], len(data))
    assert [tuple(member) for member in found] == [(b"000000.png", len(data) - 1536, 3)]
    assert damage is None


@pytest.mark.parametrize(
    "records",
    [
        b"7 size=\n",
        b"9 size=-1\n",
        b"11 size=1_0\n",
        b"99 path=a.png\n",
        b"0 path=a.png\n",
        b"999999999999999999999 path=a\n",
        b"path=a.png\n",
        b"12 path=a.png",
        b"6 =ab\n",
    ],
)
def test_wrong_pax_records_are_damage(records):
    data = header("pax", len(records), b"x") + records.ljust(512, b"\0")
    data += header("a.png", 3, b"0") + b"abc".ljust(512, b"\0") + bytes(1024)
    found, damage = scan(lambda offset, size: data[offset : offset + size], len(data))
    assert found == [] and damage == 0


def test_real_sparse_files_are_left_out_and_what_follows_is_found(tmp_path):
    """As GNU tar writes them, in its own format (with a continued map) and in pax."""
    with (tmp_path / "s.png").open("wb") as file:
        for number in range(30):
            file.seek(100_000 * number)
            file.write(b"x" * 5000)
    (tmp_path / "t.png").write_bytes(PICTURES[1])
    (tmp_path / "t.txt").write_text(CAPTIONS[1])
    for form in ("gnu", "pax"):
        command = ["tar", "-S", f"--format={form}", "-cf", f"{form}.tar", "s.png", "t.png", "t.txt"]
        subprocess.run(command, cwd=tmp_path, check=True)
        data = (tmp_path / f"{form}.tar").read_bytes()
        assert len(data) < 1_000_000
        assert read_all(data) == [(PICTURES[1], CAPTIONS[1])]


@steady(150)
@hypothesis.given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_a_mangled_picture_is_decoded_or_a_value_error(kind, wrong, share):
    data = bytearray(picture(4, kind, size=40))
    for place, byte in wrong:
        data[int(place * len(data))] = byte
    data = bytes(data[: int(share * len(data))])
    try:
        found = Augment()(data, 16, np.random.default_rng(0))
    except ValueError:
        return
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
