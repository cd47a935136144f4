import gc
import itertools
import json
import logging
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
from collections import Counter, deque

import numpy as np
import pytest

from clip_jax.config import from_data, to_data
from clip_jax.data import DatasetConfig, tar_cache, tar_files, tar_folder
from clip_jax.data.order import locate, near
from clip_jax.data.pipeline import Pipeline, train_batches
from clip_jax.data.sample import BadSampleError
from clip_jax.data.tar_shards import TarShards, Window
from clip_jax.preprocess.augment import Augment
from clip_jax.preprocess.recipe import Recipe

SIZES = (3, 5, 2, 6, 4, 4, 1, 7, 4, 4)
"""Samples of the shards 0.tar, 1.tar, ...; 40 in all."""


class Words:
    """The caption "picture 3 1" is the number 301."""

    context_length = 1
    vocab_size = 10_000

    def tokenize(self, texts):
        pairs = [map(int, text.split()[1:]) for text in texts]
        rows = [[100 * shard + number] for shard, number in pairs]
        return np.array(rows, np.int32).reshape(-1, 1), np.zeros(len(texts), bool)

    def __call__(self, texts):
        return self.tokenize(texts)[0]


@pytest.fixture(scope="session")
def tars(tmp_path_factory, write_tar, png):
    """A folder of shards, never written to (so their indexes are those of the first test)."""
    folder = tmp_path_factory.mktemp("tars")
    for shard, size in enumerate(SIZES):
        members = []
        for i in range(size):
            members += [(f"{i}.png", png(i)), (f"{i}.txt", f"picture {shard} {i}")]
        write_tar(folder / f"{shard}.tar", members)
    return folder


@pytest.fixture
def web(server, tars, waits, tmp_path):
    """Opens the shards at a server, in windows; forgets what was asked while they were indexed."""
    for path in tars.glob("*.tar"):
        server.files[path.name] = path.read_bytes()

    def make(shards=2, **window):
        window = Window(shards=shards, cache=str(tmp_path / "cache"), **window)
        root = f"{server.url}/{{0..{len(SIZES) - 1}}}.tar"
        source = TarShards(root=root, window=window).open("train")
        server.asked.clear()
        return source

    return make


def open_batches(source, batch=4, **changes):
    fields = {
        "seed": 0,
        "recipe": Recipe(size=4),
        "augment": Augment(),
        "tokenizer": Words(),
        "pipeline": Pipeline(threads=0),
    }
    return train_batches(source, batch=batch, **{**fields, **changes})


def take(batches, count):
    """Numbers of the samples, a row a batch, and the bad ones by reason and shard."""
    taken = [next(batches) for _ in range(count)]
    skipped = [skip for batch in taken for skip in batch["skipped"]]
    return [b["tokens"][:, 0].tolist() for b in taken], skipped


def whole(server):
    """How often each shard was asked for from its first byte to its last; nothing else was."""
    for name, span in server.asked:
        assert span == f"bytes=0-{len(server.files[name]) - 1}"
    return Counter(name for name, _ in server.asked)


def kept(tmp_path):
    """Shards on the disk."""
    return [p for p in tmp_path.glob("cache/clip_jax-shards-*/*") if not p.suffix]


def settle(source):
    """Wait until nothing is being fetched, or about to be."""
    fetcher = source._cache._fetcher()
    with fetcher._changed:
        assert fetcher._changed.wait_for(lambda: not fetcher._queue and not fetcher._busy, 30)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("shards", [1, 3, 50])
def test_an_epoch_fetches_each_shard_once_and_whole(web, server, tars, tmp_path, shards, threads):
    window = Window(shards=shards)
    local = open_batches(TarShards(root=str(tars), window=window).open("train"))
    expected, _ = take(local, 10)
    local.close()
    assert sorted(itertools.chain(*expected)) == [
        100 * s + i for s in range(10) for i in range(SIZES[s])
    ]
    source = web(shards=shards)
    batches = open_batches(source, pipeline=Pipeline(threads=threads, prefetch=0))
    assert take(batches, 10) == (expected, [])
    asked = whole(server)
    # Then the next epoch begins, with a window that is fetched ahead; threads are two chunks ahead.
    assert len(asked) == len(SIZES) and max(asked.values()) <= 2
    assert asked.total() <= len(SIZES) + shards * (1 if threads == 0 else 10)
    if shards == 50:
        assert set(asked.values()) == {1}
    batches.close()
    assert not any(tmp_path.glob("cache/clip_jax-shards-*"))


def test_a_host_fetches_the_shards_of_its_streams_only(web, server):
    for host in range(2):
        source = web(shards=1)
        own = {"process_index": host, "process_count": 2, "streams": 4}
        batches = open_batches(source, 8, **own)
        take(batches, 4)
        visits = [locate(source, 0, p, s, 4) for p in range(12) for s in (2 * host, 2 * host + 1)]
        shards = {source[index].shard for _, index in visits}
        batches.close()
        asked = {
            f"{server.url}/{name}" for name, span in server.asked if span.startswith("bytes=0-")
        }
        assert asked <= shards
        assert len(shards) < len(SIZES)


def test_a_run_goes_on_in_mid_window(web):
    batches = open_batches(web(shards=3), 4, streams=2)
    take(batches, 3)
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 12)
    batches.close()
    again = open_batches(web(shards=3), 4, streams=2, pipeline=Pipeline(threads=2))
    again.set_state(state)
    assert take(again, 12) == expected
    again.close()


def test_the_disk_holds_two_windows_a_stream(web, tmp_path):
    source = web(shards=1)
    batches = open_batches(source, 2, streams=2)
    recent = deque(maxlen=4)  # Of visits whose threads may not have ended.
    for visit in range(50):
        take(batches, 1)
        settle(source)
        places = range(visit, visit + 1)
        both = [near(source, 0, places, stream, 2) for stream in range(2)]
        recent.append({shard for (found,) in both for shard in found.now + found.then})
        assert len(recent[-1]) <= 2 * 2
        assert len(kept(tmp_path)) == len(set.union(*recent)) <= 4 * 2
    batches.close()


def test_samples_of_shards_that_are_not_near_are_read_where_they_are(web, server, tars, tmp_path):
    source, local = web(), TarShards(root=str(tars)).open("train")
    for index in (0, 7, 39):
        assert source[index].texts == local[index].texts
    assert len(server.asked) == 3 and not kept(tmp_path)
    with source.near([0]):
        assert [source[i].image for i in range(3)] == [local[i].image for i in range(3)]
        assert source[5].texts == local[5].texts
    assert Counter(name for name, _ in server.asked)["0.tar"] == 2 and len(server.asked) == 5
    assert len(kept(tmp_path)) == 1


def test_processes_of_a_run_share_what_is_fetched(web, server, tmp_path):
    source = web()
    other = pickle.loads(pickle.dumps(source))
    assert other._cache.folder == source._cache.folder
    with source.near([0, 1, 2]), other.near([1, 2, 3]):
        seen, threads = [], []
        for one in (source, other) * 3:
            threads.append(threading.Thread(target=lambda one=one: seen.append(one[4].texts)))
            threads[-1].start()
        for thread in threads:
            thread.join()
        assert seen == [("picture 1 1",)] * 6
        for one in (source, other):
            settle(one)
        assert whole(server) == {f"{n}.tar": 1 for n in range(4)}
    for _ in range(5):
        with source.near([5]):
            settle(source)
    assert len(kept(tmp_path)) == 4  # 1, 2 and 3 are near to the other.
    for _ in range(5):
        with other.near([5]):
            settle(other)
    assert len(kept(tmp_path)) == 1
    source.close()
    assert len(kept(tmp_path)) == 1
    other.close()
    assert not any(tmp_path.glob("cache/clip_jax-shards-*"))
    with source.near([0]):  # As threads may do that have not ended yet.
        assert source[0].texts == ("picture 0 0",)
    assert not any(tmp_path.glob("cache/clip_jax-shards-*"))
    source.open()
    with source.near([0]):
        assert source[0].texts == ("picture 0 0",)
        assert len(kept(tmp_path)) == 1
    del source, other, one
    assert not any(tmp_path.glob("cache/clip_jax-shards-*"))


def test_the_folder_is_deleted_when_no_reader_fetches_any_more(web, tmp_path, monkeypatch):
    source = web()
    fetcher, events, seen = source._cache._fetcher(), [], []
    begun, deleted = threading.Event(), threading.Event()
    fetcher._count = 0  # The reader itself fetches.
    read, delete, fetch = tar_cache.RemoteFile.read, tar_cache.delete_if_left, fetcher._fetch

    def waits_for_close(*args):
        begun.set()
        with fetcher._changed:
            assert fetcher._changed.wait_for(lambda: fetcher._closed, 30)
        deleted.wait(0.2)  # It must not come; and if it comes later, the order shows it, too.
        return read(*args)

    def fetches(*args, **options):
        fetch(*args, **options)
        events.append("fetched")

    def deletes(folder):
        if folder == source._cache.folder:  # And not of another test's, collected just now.
            events.append("deleted")
        delete(folder)
        deleted.set()

    monkeypatch.setattr(tar_cache, "_PATIENCE_S", 60.0)
    monkeypatch.setattr(tar_cache.RemoteFile, "read", waits_for_close)
    monkeypatch.setattr(fetcher, "_fetch", fetches)
    monkeypatch.setattr(tar_cache, "delete_if_left", deletes)
    with source.near([0]):
        reader = threading.Thread(target=lambda: seen.append(source[0].texts))
        reader.start()
        assert begun.wait(30)
        source.close()
    reader.join()
    assert events == ["fetched", "deleted"] and seen == [("picture 0 0",)]
    assert not any(tmp_path.glob("cache/clip_jax-shards-*"))


def as_garbage(source):
    """Nothing but a cycle holds it, as after an exception with a trace."""
    held = [source]
    held.append(held)


@pytest.mark.parametrize("who", ["fetcher", "joiner"])
def test_a_cache_may_be_collected_by_who_waits_or_is_waited_for(web, tmp_path, monkeypatch, who):
    source, other = web(fetches=1), web(fetches=1)
    read, delete, collected = tar_cache.RemoteFile.read, tar_folder.delete_if_left, []
    begun, released = threading.Event(), threading.Event()

    def collects():
        if not collected:
            collected.append(threading.current_thread().name)
            gc.collect()

    def slow(*args):
        begun.set()
        assert released.wait(30)
        if threading.current_thread().name == "fetch":
            collects()
        return read(*args)

    def deletes(folder):
        collects()  # Amid `join`, whose lock it is that closing takes.
        return delete(folder)

    gc.collect()
    gc.disable()
    try:
        if who == "fetcher":
            monkeypatch.setattr(tar_cache.RemoteFile, "read", slow)
            with source.near([0]):
                assert begun.wait(30)
            (thread,) = source._cache._fetcher()._threads
            as_garbage(source)
            del source
            released.set()
            thread.join(30)
        else:
            with source.near([0]):
                assert source[0].texts == ("picture 0 0",)
            as_garbage(source)
            del source
            monkeypatch.setattr(tar_folder, "delete_if_left", deletes)
            with other.near([0]):
                assert other[0].texts == ("picture 0 0",)
    finally:
        gc.enable()
    assert collected == [{"fetcher": "fetch", "joiner": threading.current_thread().name}[who]]
    other.close()
    assert not any(tmp_path.glob("cache/clip_jax-shards-*"))


def test_a_forked_child_that_lives_on_keeps_no_folder(web, tmp_path):
    source = web()
    reading, writing = os.pipe()
    with source.near([0]):
        assert source[0].texts == ("picture 0 0",)
        settle(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
    if pid == 0:
        os.read(reading, 1)
        os._exit(0)
    try:
        source.close()
        left = list(tmp_path.glob("cache/clip_jax-shards-*"))
    finally:
        os.write(writing, b"x")
        os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)
    assert left == []


def test_workers_share_what_is_fetched_and_leave_nothing(web, server, tmp_path):
    source = web(shards=3)
    expected = take(open_batches(web(shards=3)), 20)
    server.asked.clear()
    batches = open_batches(source, pipeline=Pipeline(threads=1, prefetch=1, workers=2))
    assert take(batches, 20) == expected
    asked = whole(server)
    assert len(asked) == len(SIZES) and max(asked.values()) <= 4
    batches.close()
    assert not any(tmp_path.glob("cache/clip_jax-shards-*"))


def test_a_forked_process_fetches_for_itself(web, tmp_path):
    source = web()
    with source.near([0]):
        assert source[0].texts == ("picture 0 0",)
        settle(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of threads that do not survive; it starts its own.
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with source.near([1]):
                    status = 0 if source[3].texts == ("picture 1 0",) else 2
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert source[1].texts == ("picture 0 1",)
    source.close()
    assert not any(tmp_path.glob("cache/clip_jax-shards-*"))


@pytest.mark.parametrize("status", [503, 0])
def test_a_fetch_that_fails_twice_is_tried_again(web, server, waits, status):
    source = web(fetches=1)
    server.refusals = [status, status, 200]
    with source.near([0]):
        assert source[0].texts == ("picture 0 0",) and len(waits) == 2
    assert len(server.asked) == 3


def test_a_piece_that_fails_is_tried_again_alone(web, server, waits, monkeypatch):
    monkeypatch.setattr(tar_cache, "_PIECE", 1000)
    source = web(fetches=1)
    server.refusals = [503, 200]
    with source.near([0]):
        assert source[0].texts == ("picture 0 0",) and len(waits) == 1
    spans = [span for _, span in server.asked]
    size = len(server.files["0.tar"])
    pieces = [f"bytes={i}-{min(i + 1000, size) - 1}" for i in range(0, size, 1000)]
    assert spans == [pieces[0], *pieces]


def test_a_shard_that_stays_away_is_asked_for_once_while_it_is_near(web, server, waits):
    source = web(fetches=1)
    server.refusals = [503]
    message = r"/0.tar: sample '0/\d': the server says 503"
    with source.near([0]):
        for index in (0, 1, 2, 0):
            with pytest.raises(BadSampleError, match=message) as told:
                source[index]
            assert told.value.reason == "unreadable"
            assert told.value.shard == f"{server.url}/0.tar"
    assert len(server.asked) == 4 and len(waits) == 3
    server.refusals = []
    for _ in range(5):
        with source.near([1]):
            settle(source)
    with source.near([0]):
        assert source[0].texts == ("picture 0 0",)


def test_a_run_goes_on_without_shards_that_vanish_or_change(web, server):
    source = web(shards=2)
    batches = open_batches(source, 1)
    _, skipped = take(batches, 40)
    assert not skipped
    server.asked.clear()
    del server.files["7.tar"]
    server.files["3.tar"] = server.files["3.tar"][:-512]
    taken, skipped = take(batches, 3 * 27)
    batches.close()
    reasons = Counter((skip.reason, skip.shard.rpartition("/")[2]) for skip in skipped)
    assert reasons.keys() == {("vanished", "7.tar"), ("changed", "3.tar")}
    # Of three epochs; but what was near when they changed was still there.
    assert 2 * (7 + 6) <= reasons.total() <= 4 * (7 + 6)
    others = Counter(n for n in itertools.chain(*taken) if n // 100 not in (3, 7))
    assert len(others) == 27 and set(others.values()) <= {2, 3}
    asked = Counter(name for name, _ in server.asked)
    assert 2 <= asked["7.tar"] <= 4 and 2 <= asked["3.tar"] <= 4


def test_a_shard_that_comes_short_is_never_taken_for_whole(
    web, server, waits, tmp_path, monkeypatch
):
    source = web(fetches=1)
    read = tar_files.RemoteFile.read
    monkeypatch.setattr(
        tar_files.RemoteFile, "read", lambda *args: (read(*args)[0][:-1], read(*args)[1])
    )
    with source.near([0]):
        with pytest.raises(BadSampleError, match=r"\d+ bytes came in place of \d+"):
            source[0]
        settle(source)
    assert not kept(tmp_path) and not list(tmp_path.rglob("*.partial"))


def test_where_no_shard_can_be_kept_it_is_read_where_it_is(web, server, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    source = web(fetches=1)
    monkeypatch.setattr(tar_cache, "claim", full)
    with caplog.at_level(logging.WARNING), source.near([0]):
        for _ in range(3):
            assert source[0].texts == ("picture 0 0",)
        settle(source)
    assert [r.getMessage() for r in caplog.records] == [
        f"{server.url}/0.tar: it cannot be kept in {source._cache.folder}: No space left on "
        "device; it is read where it is"
    ]
    assert not any(span.startswith("bytes=0-") for _, span in server.asked)


SLOW = """
    import sys, time
    from clip_jax.data import tar_cache, tar_files
    from clip_jax.data.tar_shards import TarShards, Window

    tar_cache._PIECE = 1000
    read, pieces = tar_files.RemoteFile.read, []

    def slow(self, offset, size):
        if pieces and {hang}:
            print("within", flush=True)
            time.sleep(600)
        pieces.append(offset)
        return read(self, offset, size)

    if __name__ == "__main__":
        source = TarShards(root={root!r}, window=Window(cache={cache!r}, fetches=1)).open("train")
        tar_cache.RemoteFile.read = slow
        with source.near([0]):
            print(source._cache.folder, source[0].texts, flush=True)
"""


def run(tmp_path, root, hang):
    script = tmp_path / "slow.py"
    fields = {"root": root, "cache": str(tmp_path / "cache"), "hang": hang}
    script.write_text(textwrap.dedent(SLOW).format(**fields))
    folder = pathlib.Path(tar_cache.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(tars, tmp_path):
    root = f"file://{tars}/{{0..9}}.tar"
    with run(tmp_path, root, hang=True) as process:
        assert process.stdout.readline() == "within\n"
        process.send_signal(signal.SIGKILL)
    (old,) = tmp_path.glob("cache/clip_jax-shards-*")
    (partial,) = old.glob("*.partial")
    assert not kept(tmp_path)
    window = Window(cache=str(tmp_path / "cache"))
    source = TarShards(root=root, window=window).open("train")
    joined = tar_cache.ShardCache([(s.shard, s.index.stamp) for s in source._shards], window, old)
    with joined.near([0]):  # Another process of the killed one's run.
        path = joined._fetcher().whole(0)
        assert path == partial.with_suffix("")
        assert path.read_bytes() == (tars / "0.tar").read_bytes()
        with source.near([0]):  # Another run: it leaves alone what is in use.
            assert source[0].texts == ("picture 0 0",)
            assert path.exists()
    joined.close()
    old.mkdir()
    for name in ("shard", "process.near"):
        (old / name).write_bytes(b"of a process that was killed")
    others = old.with_name(old.name[:-1])
    others.mkdir()
    (others / "shard").write_bytes(b"of somebody else")
    source.close()
    source.open()
    with source.near([0]):
        assert not old.exists()
    source.close()
    assert list(tmp_path.glob("cache/clip_jax-shards-*")) == [others]
    assert (others / "shard").read_bytes() == b"of somebody else"


def test_a_process_deletes_what_it_kept_when_it_ends(tars, tmp_path):
    with run(tmp_path, f"file://{tars}/{{0..9}}.tar", hang=False) as process:
        folder, texts = process.stdout.readline().split(maxsplit=1)
        assert process.wait() == 0
    assert texts == "('picture 0 0',)\n"
    assert not pathlib.Path(folder).exists() and pathlib.Path(folder).parent.is_dir()


def test_local_shards_are_read_ahead_where_they_are(tars, tmp_path, monkeypatch):
    advised = set()

    def advise(handle, offset, length, advice):
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_WILLNEED)
        advised.add(pathlib.Path(f"/proc/self/fd/{handle}").readlink().name)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    window = Window(shards=2, cache=str(tmp_path / "cache"))
    source = TarShards(root=str(tars), window=window).open("train")
    batches = open_batches(source)
    take(batches, 10)
    settle(source)
    assert advised == {f"{n}.tar" for n in range(10)}
    batches.close()
    assert not (tmp_path / "cache").exists()


def test_the_usual_folder_is_one_for_temporary_files(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = TarShards(root=f"file://{tars}/{{0..9}}.tar", window=Window()).open("train")
    with source.near([0]):
        assert source[0].texts == ("picture 0 0",)
        (path,) = tmp_path.glob("*/clip_jax-shards-*/*.near")
        assert path.stat().st_mode & 0o077 == path.parent.stat().st_mode & 0o077 == 0
    source.close()


def test_a_window_is_part_of_a_config():
    data = TarShards(root="x", window=Window(shards=3))
    assert from_data(DatasetConfig, json.loads(json.dumps(to_data(data)))) == data
