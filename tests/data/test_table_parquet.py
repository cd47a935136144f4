import logging
import pickle
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.data import Table, table_parquet
from clip_jax.data.sample import BadSampleError


@pytest.fixture
def pictures(tmp_path, png):
    """Pictures 0.png to 9.png, in a folder below that of the tables."""
    (tmp_path / "img").mkdir()
    for i in range(10):
        (tmp_path / "img" / f"{i}.png").write_bytes(png(i))
    return tmp_path


def write_parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def captions(source):
    return [source[i].texts for i in range(len(source))]


def bad(source, index):
    with pytest.raises(BadSampleError) as caught:
        source[index]
    return str(caught.value)


def parquet_columns(png):
    files = [png(i) for i in range(10)]
    return {
        "binary": pa.array(files, pa.binary()),
        "large": pa.array(files, pa.large_binary()),
        "struct": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(files)],
        "named": [{"bytes": None, "path": f"img/{i}.png"} for i in range(10)],
        "path": [f"img/{i}.png" for i in range(10)],
        "coded": pa.array([f"img/{i}.png" for i in range(10)]).dictionary_encode(),
    }


@pytest.mark.parametrize("column", ["binary", "large", "struct", "named", "path", "coded"])
@pytest.mark.parametrize("small_row", [0, 1 << 20])
def test_parquet_holds_pictures_in_many_ways(pictures, png, monkeypatch, column, small_row):
    monkeypatch.setattr(table_parquet, "_SMALL_ROW", small_row)
    columns = {**parquet_columns(png), "title": [[f"{i}", f"no. {i}"] for i in range(10)]}
    path = write_parquet(pictures / "a.parquet", columns, row_group_size=4)
    source = Table(path=path, image_key=column).open("train")
    copy = pickle.loads(pickle.dumps(source))
    for i in np.random.default_rng(0).permutation(10):
        assert source[int(i)].image == copy[int(i)].image == png(i)
        assert source[int(i)].texts == (f"{i}", f"no. {i}")
    in_memory = source.tables[0]._table is not None
    assert in_memory == (column in ("path", "coded") or small_row > 0)


def test_parquet_rows_without_picture_or_caption_are_bad(pictures, png):
    columns = {
        "image": [{"bytes": b"", "path": None}, None, {"bytes": png(1), "path": None}],
        "title": ["a", "b", None],
    }
    source = Table(path=write_parquet(pictures / "a.parquet", columns), image_key="image")
    source = source.open("train")
    reasons = ["it has no picture", "it has no picture", "it has no caption"]
    assert [bad(source, i).rpartition(": ")[2] for i in range(3)] == reasons


def test_pictures_of_parquet_are_not_kept(pictures, png, monkeypatch):
    monkeypatch.setattr(table_parquet, "_SMALL_ROW", 0)
    columns = {"image": [png(i) for i in range(10)], "title": list("abcdefghij")}
    for i in range(20):
        write_parquet(pictures / f"{i}.parquet", columns, row_group_size=1)
    source = Table(path=str(pictures / "*.parquet"), image_key="image").open("train")
    assert len(source) == 200 and [source[i].texts for i in range(200)] == [*captions(source)]
    assert table_parquet._read_group.cache_info().currsize <= 4
    (pictures / "19.parquet").write_bytes(b"")
    assert bad(source, 199).endswith("19.parquet has changed since it was opened")


def test_large_row_groups_are_warned_of(pictures, png, monkeypatch, caplog):
    monkeypatch.setattr(table_parquet, "_SMALL_ROW", 0)
    monkeypatch.setattr(table_parquet, "_LARGE_GROUP", 1000)
    columns = {"image": [png(i % 10) for i in range(100)], "title": ["a"] * 100}
    with caplog.at_level(logging.WARNING):
        for rows in (2, 100):
            path = write_parquet(pictures / f"{rows}.parquet", columns, row_group_size=rows)
            Table(path=path, image_key="image").open("train")
    assert [r.getMessage().split(" has ")[0] for r in caplog.records] == [path]


def test_parquet_columns_of_other_types_are_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"filepath": [[1, 2]], "title": ["a"]})
    with pytest.raises(ValueError, match=r"a.parquet: column 'filepath' is of type list<.*>; pict"):
        Table(path=path).open("train")
    path = write_parquet(tmp_path / "b.parquet", {"filepath": ["a"], "title": [{"en": "a"}]})
    assert bad(Table(path=path).open("train"), 0).endswith("neither a text nor a list of texts")


def test_a_table_without_rows_is_refused_whatever_its_columns(tmp_path):
    for kind in (pa.string(), pa.binary()):
        none = pa.array([], kind)
        path = write_parquet(tmp_path / "a.parquet", {"filepath": none, "title": none})
        with pytest.raises(ValueError, match=f"^no row in {re.escape(path)}$"):
            Table(path=path).open("train")


def test_a_damaged_row_group_costs_its_rows_alone(pictures, monkeypatch):
    monkeypatch.setattr(table_parquet, "_SMALL_ROW", 0)
    files = [bytes([65 + i]) * 4000 for i in range(4)]
    columns = {"image": files, "title": list("abcd")}
    path = pictures / "a.parquet"
    options = {"row_group_size": 2, "compression": "gzip", "use_dictionary": False}
    write_parquet(path, columns, **options)
    place = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 40] = bytes(40)
    path.write_bytes(data)
    source = Table(path=str(path), image_key="image").open("train")
    assert [source[i].image for i in range(2)] == files[:2]
    assert all(bad(source, i).startswith(f"{path}: row {i + 1}: ") for i in (2, 3))
