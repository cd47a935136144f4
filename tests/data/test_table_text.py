import csv
import io
import itertools

import numpy as np
import pytest

from clip_jax.data import Table, table_text
from clip_jax.data.sample import BadSampleError


@pytest.fixture
def pictures(tmp_path, png):
    """Pictures 0.png to 9.png, in a folder below that of the tables."""
    (tmp_path / "img").mkdir()
    for i in range(10):
        (tmp_path / "img" / f"{i}.png").write_bytes(png(i))
    return tmp_path


def captions(source):
    return [source[i].texts for i in range(len(source))]


def bad(source, index):
    with pytest.raises(BadSampleError) as caught:
        source[index]
    return str(caught.value)


def slow_csv(data, dialect):
    """What csv itself makes of the whole file; a row that it refuses is None."""
    records = csv.reader(io.StringIO(data.decode("latin-1"), newline="\n"), **dialect)
    found = []
    while True:
        try:
            if row := next(records):
                found.append(row)
        except csv.Error:
            found.append(None)
        except StopIteration:
            return found


@pytest.mark.parametrize("quote", ['"', "'", None])
def test_any_text_falls_into_the_rows_that_csv_sees(tmp_path, quote):
    rng = np.random.default_rng(0)
    path, refused, kept = tmp_path / "a.csv", 0, 0
    for _ in range(400):
        text = "".join(rng.choice(list("ab\t\n\"'\r ")) for _ in range(rng.integers(0, 40)))
        data = ("i\tc\n" + text).encode()
        path.write_bytes(data)
        rows = table_text.open_csv(path, ("i", "c"), "\t", quote)
        expected = slow_csv(data, table_text._dialect("\t", quote))[1:]
        assert len(rows) == len(expected)
        for row, cells in enumerate(expected):
            if cells is not None and len(cells) == 2:
                assert rows[row] == {"i": cells[0], "c": cells[1]}
                kept += 1
            else:
                with pytest.raises(ValueError, match=r"it cannot be read|it has \d cells"):
                    rows[row]
                refused += 1
    assert kept > 100 and refused > 100


@pytest.mark.parametrize("block", [1, 7, 1 << 24])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\n\r\n"])
def test_lines_are_found_in_blocks_of_any_size(tmp_path, monkeypatch, block, end):
    monkeypatch.setattr(table_text, "_BLOCK", block)
    lines = [b"one", b"", b"\r", b" ", b"x", b"", b"two words\r", b"\xc3\xa9"]
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines) + end)
    starts, data = table_text._line_starts(path, 3), path.read_bytes()
    found = [data[a:b].strip(b"\r\n") for a, b in itertools.pairwise(starts)]
    assert found == [b"one", b" ", b"x", b"two words", b"\xc3\xa9"] and starts[0] == 3


def test_a_bad_row_is_named_and_the_others_stay(pictures):
    path = pictures / "a.csv"
    path.write_bytes(
        b"filepath\ttitle\n"
        b"img/1.png\tone\n"
        b"img/2.png\ttwo\tcells more\n"
        b"img/3.png\n"
        b"img/4.png\tcaf\xe9\n"
        b'img/5.png\t"five" of\n'
        b"\n"
        b"img/6.png\t \n"
        b"\tseven\n"
        b"img/none.png\teight\n"
        b"img\tnine\n"
        b"https://a.b/c.jpg\tten\n"
        b"img/9.png\televen\n"
        b'img/9.png\t"twelve'
    )
    source = Table(path=str(path)).open("train")
    reasons = {
        1: "it has 3 cells, but the header has 2",
        2: "it has 1 cells, but the header has 2",
        3: "'utf-8' codec can't decode byte 0xe9 in position 13: invalid continuation byte",
        4: "it cannot be read: '\t' expected after '\"'",
        5: "it has no caption",
        6: "it has no picture",
        7: f"there is no file {pictures}/img/none.png",
        8: f"there is no file {pictures}/img",
        9: "https://a.b/c.jpg is not on a local disk: fetch pictures with img2dataset first",
        11: "it cannot be read: unexpected end of data",
    }
    assert len(source) == 12
    for row, reason in reasons.items():
        assert bad(source, row) == f"{path}: row {row + 1}: {reason}"
    assert [source[i].texts for i in (0, 10)] == [("one",), ("eleven",)]


def test_a_bad_line_of_json_is_named_and_the_others_stay(pictures):
    path = pictures / "a.jsonl"
    lines = [
        '{"filepath": "img/1.png", "title": "one"}',
        '{"filepath": "img/1.png", "title"',
        "[1]",
        "[" * 100_000,
        '{"title": "no picture"}',
        '{"filepath": "img/1.png"}',
        '{"filepath": "img/1.png", "title": 3}',
        '{"filepath": "img/1.png", "title": ["a", 3]}',
        '{"filepath": ["img/1.png"], "title": "two"}',
        '{"filepath": "img/\\u0000.png", "title": "two"}',
        '{"filepath": "img/2.png", "title": ["b", null, " ", " c "]}',
    ]
    path.write_text("\r\n".join(lines))
    source = Table(path=str(path)).open("train")
    reasons = {
        1: "it is not JSON: Expecting ':' delimiter",
        2: "it is not an object but list",
        3: "it is not JSON: maximum recursion depth",
        4: "it has no picture",
        5: "it has no caption",
        6: "its 'title' is neither a text nor a list of texts",
        7: "its 'title' is neither a text nor a list of texts",
        8: "it has no picture",
        9: "there is no file ",
    }
    assert len(source) == 11
    for row, reason in reasons.items():
        assert bad(source, row).startswith(f"{path}: row {row + 1}: {reason}")
    assert source[0].texts == ("one",) and source[10].texts == ("b", "c")


def test_without_quotes_every_line_is_a_row(pictures):
    path = pictures / "a.tsv"
    path.write_text('filepath\ttitle\nimg/1.png\t"open\nimg/2.png\ta 5" pipe\n')
    assert captions(Table(path=str(path), quote=None).open("train")) == [('"open',), ('a 5" pipe',)]
