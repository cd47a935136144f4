import pathlib
import re
import subprocess

import pytest

from clip_jax.data.tar_paths import expand_braces, find_shards, shard_names
from clip_jax.data.tar_shards import TarShards


@pytest.mark.parametrize(
    "pattern",
    [
        "x",
        "{a,b}",
        "{00..10}.tar",
        "{9..11}",
        "{11..9}",
        "{0..10..3}",
        "{10..1..4}",
        "{08..8}",
        "{1..010}",
        "{a..e}",
        "{c..a}",
        "p{a,b{1..3},}s{x,y}",
        "{{a,b},{1..2}}/{c}",
        "{a{1..2}b}",
        "{a",
        "a}b",
        "{a,b",
        "{a,{b,c}",
        "x{}y",
        "{1..}",
        "{1..2..3..4}",
        "{5..5}",
    ],
)
def test_braces_mean_what_bash_says(pattern):
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True
    )
    assert expand_braces(pattern) == said.stdout.split("\n")[:-1]


@pytest.mark.parametrize("pattern", ["{0..99999999999}", "{0..999}{0..999}{0..9}"])
def test_braces_without_measure_are_refused(pattern):
    with pytest.raises(ValueError, match="over 1,000,000 shards"):
        expand_braces(pattern)


@pytest.fixture
def sources(tmp_path, write_tar, png):
    for name in ("cc3m/00000", "cc3m/00001", "cc12m/00000", "test/7"):
        write_tar(tmp_path / f"{name}.tar", [("a.png", png(0)), ("a.txt", name)])
    return tmp_path


def texts(root, split="train"):
    source = TarShards(root=root).open(split)
    samples = [source[i] for i in range(len(source))]
    assert len({sample.key for sample in samples}) == len(samples)
    return [(sample.key, *sample.texts) for sample in samples]


@pytest.mark.parametrize(
    "root, keys",
    [
        ("{}/cc3m/{{00000..00001}}.tar", ["00000/a", "00001/a"]),
        ("{}/cc3m/*.tar", ["00000/a", "00001/a"]),
        ("{}/{{cc3m,test}}/*.tar", ["00000/a", "00001/a", "7/a"]),
        ("{}/cc3m::{0}/cc12m", ["cc3m/00000/a", "cc3m/00001/a", "cc12m/00000/a"]),
        ("{}/cc3m/00001.tar::{0}/test/{{7..7}}.tar", ["00001/a", "7/a"]),
        ("{}/{{cc12m,cc3m}}/{{00000..00000}}.tar", ["cc12m/00000/a", "cc3m/00000/a"]),
        ("{}/{{cc12m,cc3m}}", ["cc12m/00000/a", "cc3m/00000/a", "cc3m/00001/a"]),
    ],
)
def test_patterns_and_several_sources(sources, root, keys):
    root = root.replace("{}", "{0}").format(sources)
    found = texts(root)
    assert [key for key, _ in found] == keys
    assert all(text.endswith(key[:-2]) for key, text in found)


def test_a_pattern_has_a_split_where_it_says_so(sources):
    assert texts(f"{sources}/{{split}}/*.tar", "test") == [("7/a", "test/7")]
    assert texts(f"{sources}/{{split}}", "cc12m") == [("00000/a", "cc12m/00000")]
    with pytest.raises(FileNotFoundError, match=r"\*.tar has no split 'test'; it has 'train'$"):
        texts(f"{sources}/cc3m/*.tar", "test")


def test_a_folder_with_braces_in_its_name_is_that_folder(tmp_path, write_tar, png):
    write_tar(tmp_path / "{a,b}::[c]*" / "0.tar", [("a.png", png(0)), ("a.txt", "x")])
    assert texts(str(tmp_path / "{a,b}::[c]*")) == [("0/a", "x")]


def test_missing_shards_of_a_pattern_are_all_named(sources):
    told = rf"^{sources}/cc3m/2.tar: cannot be read: No such.*; {sources}/cc3m/3.tar: [^;]*$"
    with pytest.raises(FileNotFoundError, match=told):
        texts(f"{sources}/cc3m/{{00000,00001,2,3}}.tar")
    source = TarShards(root=f"{sources}/cc3m/{{00000,00001,2}}.tar", bad_shards=0.4).open("train")
    assert len(source) == 2


@pytest.mark.parametrize(
    "root, message",
    [
        ("{0}/cc3m::{0}/cc3m/00000.tar", "names 1 shards twice, the first {0}/cc3m/00000.tar: "),
        ("{0}/cc3m::", "has an empty part; `::` stands between two roots"),
        ("pipe:aws s3 cp s3://x/0.tar -", "commands are not run; give the path or address itself"),
        ("https://x.org/data/", "a web server cannot be asked what it has; name the shards, as in"),
        ("nowhere://x/0.tar", "nowhere://x/0.tar: Protocol not known: nowhere"),
    ],
)
def test_roots_that_mean_nothing_are_refused(sources, root, message):
    with pytest.raises(ValueError, match=re.escape(message.format(sources))):
        texts(root.format(sources))


def test_a_pattern_without_a_match_is_named(sources):
    with pytest.raises(FileNotFoundError, match=rf"^no file matches {sources}/cc3m/x\*.tar$"):
        texts(f"{sources}/cc3m/x*.tar")


def test_addresses_keep_their_colons_and_their_order():
    found = find_shards("http://[::1]:80/{a,b}.tar?x=1::https://y.org/0.tar", "train")
    assert [*map(str, found)] == [
        "http://[::1]:80/a.tar?x=1",
        "http://[::1]:80/b.tar?x=1",
        "https://y.org/0.tar",
    ]
    assert shard_names(found) == ["a", "b", "0"]


def test_names_stay_apart():
    paths = [pathlib.Path(p) for p in ("/x/a.tar", "/x/a/a.tar", "/y/a.tar")]
    assert shard_names(paths) == ["x/a", "x/a/a", "y/a"]
