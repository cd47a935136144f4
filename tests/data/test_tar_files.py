import pickle

import pytest

from clip_jax.data import tar_files
from clip_jax.data.sample import BadSampleError
from clip_jax.data.tar_shards import TarShards


@pytest.fixture
def web(server, folder, waits):
    """The training shards of `folder` at a server, opened."""
    for path in (folder / "train").glob("*.tar"):
        server.files[path.name] = path.read_bytes()
    return TarShards(root=f"{server.url}/{{0,2,10}}.tar").open("train")


def test_shards_at_a_web_server_read_as_local_ones(server, web, folder, waits, home):
    local = TarShards(root=str(folder)).open("train")
    assert [web[i] for i in range(9)] == [local[i] for i in range(9)]
    assert pickle.loads(pickle.dumps(web))[4] == local[4]
    assert waits == []
    assert len(list((home / ".cache" / "clip_jax" / "tar_index").iterdir())) == 3
    server.asked.clear()
    TarShards(root=f"{server.url}/{{0,2,10}}.tar").open("train")
    assert sorted(server.asked) == [(f"{n}.tar", "bytes=0-0") for n in (0, 10, 2)]
    server.asked.clear()
    assert web[4].key == "2/s0021" and len(server.asked) == 1


@pytest.mark.parametrize("status", [503, 429, 500, 0])
def test_a_server_that_fails_twice_is_asked_again_later_each_time(server, web, waits, status):
    server.refusals = [status, status, 200]
    assert web[0].texts == ("picture 0 0",)
    assert len(waits) == 2 and 0.5 <= waits[0] <= 1 <= waits[1] <= 2
    again = list(waits)
    waits.clear()
    server.refusals = [status, status, 200]
    assert web[0].texts == ("picture 0 0",) and waits == again


def test_a_server_that_stays_away_is_waited_for_once(server, web, waits):
    server.refusals = [503]
    server.asked.clear()
    with pytest.raises(
        BadSampleError, match=r"0.tar: sample '0/s0000': the server says 503"
    ) as told:
        web[0]
    assert (told.value.reason, told.value.shard) == ("unreadable", f"{server.url}/0.tar")
    assert len(waits) == 3 and len(server.asked) == 4
    for _ in range(64):
        with pytest.raises(BadSampleError) as told:
            web[1]
    assert "and 64 reads in a row have failed" not in str(told.value)
    assert len(waits) == 3 and len(server.asked) == 4 + 7
    server.refusals = []
    assert web[3].texts == ("picture 2 0",)
    for _ in range(63):
        with pytest.raises(BadSampleError, match=r"503 .*reads in a row have failed"):
            web[1]
    assert web[1].texts == web[1].texts == ("picture 0 1",)


def test_a_server_that_is_away_from_the_start_is_told(server, waits):
    server.refusals = [502]
    with pytest.raises(
        ValueError, match=r"/0.tar: cannot be read: the server says 502 Bad Gateway"
    ):
        TarShards(root=f"{server.url}/0.tar").open("train")
    assert len(waits) == 3


def test_nobody_there(server, web, waits):
    web._remote = {
        s: tar_files.RemoteFile(tar_files.Url("http://127.0.0.1:9/0.tar")) for s in web._remote
    }
    with pytest.raises(BadSampleError, match="refused") as told:
        web[0]
    assert told.value.reason == "unreadable" and len(waits) == 3


def test_a_server_that_ignores_range_is_told_and_not_asked_again(server, web, waits):
    server.ignores = True
    with pytest.raises(ValueError, match=r"0.tar: cannot be read: the server cannot read parts of"):
        TarShards(root=f"{server.url}/0.tar").open("train")
    with pytest.raises(BadSampleError, match="it ignores the header Range"):
        web[0]
    assert waits == []


@pytest.mark.parametrize(
    "status, reason", [(404, "vanished"), (410, "vanished"), (403, "unreadable")]
)
def test_what_the_server_refuses_is_not_asked_again(server, web, waits, status, reason):
    server.refusals = [status]
    for _ in range(4):
        with pytest.raises(BadSampleError, match=f"the server says {status}") as told:
            web[0]
        assert told.value.reason == reason
    assert waits == []


def test_missing_addresses_are_named(server, waits):
    with pytest.raises(FileNotFoundError, match=r"/7.tar: cannot be read: the server says 404"):
        TarShards(root=f"{server.url}/{{7..8}}.tar").open("train")


def test_a_shard_that_changes_at_the_server_makes_bad_samples(server, web):
    server.etag = '"2"'
    with pytest.raises(BadSampleError, match="has changed since it was indexed") as told:
        web[3]
    assert told.value.reason == "changed"
    server.files["2.tar"] = server.files["2.tar"][:520]
    with pytest.raises(BadSampleError, match="cut off while in use") as told:
        web[3]
    assert told.value.reason == "truncated"
    again = TarShards(root=f"{server.url}/{{0,10}}.tar").open("train")
    assert again[3].texts == ("picture 10 0",)


@pytest.fixture
def store(folder):
    """The shards of `folder` in a store of objects."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*.tar"):
        memory.pipe(f"/bucket/{path.relative_to(folder)}", path.read_bytes())
    yield memory
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("root", ["", "/", "/train", "/train/*.tar", "/{split}/{0,2,10}.tar"])
def test_shards_in_an_object_store_read_as_local_ones(store, folder, root, home):
    local = TarShards(root=str(folder)).open("train")
    source = TarShards(root=f"memory://bucket{root}").open("train")
    assert [source[i] for i in range(9)] == [local[i] for i in range(9)]
    assert pickle.loads(pickle.dumps(source))[8] == local[8]
    assert len(list((home / ".cache" / "clip_jax" / "tar_index").iterdir())) == 3


def test_objects_that_change_or_vanish_make_bad_samples(store, waits):
    source = TarShards(root="memory://bucket").open("train")
    store.pipe("/bucket/train/2.tar", store.cat("/bucket/train/2.tar"))
    store.rm("/bucket/train/10.tar")
    for index, reason in ((3, "changed"), (6, "vanished")):
        with pytest.raises(BadSampleError) as told:
            source[index]
        assert told.value.reason == reason
    assert source[0].texts == ("picture 0 0",) and waits == []


def test_an_object_store_that_fails_twice_is_asked_again(store, waits, monkeypatch):
    source = TarShards(root="memory://bucket").open("train")
    read, faults = type(store).cat_file, [RuntimeError("busy"), OSError("reset")]

    def fail(*args, **options):
        if faults:
            raise faults.pop()
        return read(*args, **options)

    monkeypatch.setattr(type(store), "cat_file", fail)
    assert source[0].texts == ("picture 0 0",) and len(waits) == 2


def test_an_object_store_without_shards_or_its_package_is_told(store):
    with pytest.raises(FileNotFoundError, match="no shard of the split 'validation'"):
        TarShards(root="memory://bucket").open("validation")
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/train/7.tar: cannot be read"):
        TarShards(root="memory://bucket/train/7.tar").open("train")
