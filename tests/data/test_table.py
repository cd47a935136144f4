import csv
import dataclasses
import json
import os
import pickle
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.config import from_data, to_data
from clip_jax.data import DatasetConfig, Table
from clip_jax.data.sample import BadSampleError, Dataset, Source
from clip_jax.overrides import override

ODD = [
    "plain",
    'she said "no"',
    'five 5" pipes',
    "two\nlines",
    "windows\r\nlines",
    "a\ttab, a comma; a bar | all",
    "naïve café 東京 🐈",
    "next\u0085line \u2028 and \x0b \x1c end",
    '"',
    '""quoted""',
]


@pytest.fixture
def pictures(tmp_path, png):
    """Pictures 0.png to 9.png, in a folder below that of the tables."""
    (tmp_path / "img").mkdir()
    for i in range(10):
        (tmp_path / "img" / f"{i}.png").write_bytes(png(i))
    return tmp_path


def write_csv(path, rows, **dialect):
    with path.open("w", encoding=dialect.pop("encoding", "utf-8"), newline="") as file:
        csv.writer(file, **{"delimiter": "\t", **dialect}).writerows(rows)
    return str(path)


def write_json(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def write_parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def captions(source):
    return [source[i].texts for i in range(len(source))]


def bad(source, index):
    with pytest.raises(BadSampleError) as caught:
        source[index]
    return str(caught.value)


def test_the_contracts_are_kept(pictures):
    table = Table(path=write_csv(pictures / "a.csv", [["filepath", "title"], ["img/1.png", "one"]]))
    assert isinstance(table, Dataset) and isinstance(table.open("train"), Source)
    weighted = dataclasses.replace(table, caption_key={"title": 0.7, "long": 0.3}, separator=",")
    for config in (table, weighted):
        assert from_data(DatasetConfig, json.loads(json.dumps(to_data(config)))) == config


def test_the_command_line_sets_columns(pictures):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        data: DatasetConfig

    def changed(*args):
        return override(Config(data=Table(path="a.csv")), args, prog="train").data

    assert changed("--data.caption-key", "text", "--data.separator", ",") == Table(
        path="a.csv", caption_key="text", separator=","
    )
    assert changed("--data.path", "{split}.csv").path == "{split}.csv"


@pytest.mark.parametrize("name, separator", [("a.csv", "\t"), ("a.csv", ","), ("b.TSV", ";")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_odd_cells_come_back(pictures, png, name, separator, end, encoding, quoting):
    rows = [[f"img/{i}.png", i, text] for i, text in enumerate(ODD)]
    path = write_csv(
        pictures / name,
        [["filepath", "n", "title"], *rows],
        delimiter=separator,
        lineterminator=end,
        encoding=encoding,
        quoting=quoting,
    )
    source = Table(path=path).open("train")
    assert captions(source) == [(text,) for text in ODD]
    assert [source[i].image for i in range(10)] == [png(i) for i in range(10)]
    assert [source[i].key for i in (0, 9)] == [f"{name}:1", f"{name}:10"]
    assert source[0].label is None


def test_all_kinds_of_tables_hold_the_same_samples(pictures):
    images = [f"img/{i}.png" for i in range(10)]
    labels = list(range(10))
    rows = list(zip(images, ODD, labels, strict=True))
    records = [dict(zip(("filepath", "title", "k"), row, strict=True)) for row in rows]
    columns = {"filepath": images, "title": ODD, "k": labels}
    paths = [
        write_csv(pictures / "a.csv", [["filepath", "title", "k"], *rows]),
        write_json(pictures / "a.jsonl", records),
        write_json(pictures / "a.json", records),
        write_parquet(pictures / "a.parquet", columns),
        write_parquet(pictures / "b.parquet", columns, row_group_size=3),
    ]
    made = []
    for path in paths:
        source = Table(path=path, label_key="k").open("train")
        samples = [source[i] for i in range(len(source))]
        made.append([(s.image, s.texts, s.label) for s in samples])
    assert made[0] == made[1] == made[2] == made[3] == made[4]
    assert [label for _, _, label in made[0]] == labels


def test_a_separator_is_found_by_the_columns_it_gives(pictures):
    path = pictures / "a.csv"
    path.write_text('"title, first";filepath\n"a, b | c";img/1.png\n')
    table = Table(path=str(path), caption_key="title, first")
    assert captions(table.open("train")) == [("a, b | c",)]
    with pytest.raises(ValueError, match=r"columns: none \(read with the separator ','\)$"):
        dataclasses.replace(table, separator=",").open("train")


def test_a_table_that_changes_is_noticed_and_pairs_nothing_wrongly(pictures):
    rows = [["filepath", "title"], *([f"img/{i}.png", f"{i}"] for i in range(10))]
    path = pictures / "a.csv"
    source = Table(path=write_csv(path, rows)).open("train")
    before = path.stat()
    write_csv(path, [rows[0], *rows[:0:-1]])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert bad(source, 3) == f"{path}: row 4: a.csv has changed since it was opened"
    path.unlink()
    assert bad(source, 3).endswith("No such file or directory: '" + str(path) + "'")


def test_paths_of_pictures_begin_at_the_root(pictures, png):
    (pictures / "deep").mkdir()
    path = write_csv(pictures / "deep" / "a.csv", [["filepath", "title"], ["img/7.png", "seven"]])
    assert "there is no file" in bad(Table(path=path).open("train"), 0)
    assert Table(path=path, root=str(pictures)).open("train")[0].image == png(7)
    absolute = [["filepath", "title"], [str(pictures / "img" / "7.png"), "seven"]]
    assert Table(path=write_csv(pictures / "deep" / "b.csv", absolute)).open("train")[0].image
    with pytest.raises(FileNotFoundError, match="root no is not a folder"):
        Table(path=path, root="no").open("train")


def test_labels_need_no_caption_but_must_be_numbers(pictures):
    cells = [["1", "a"], ["1", ""], [" 0 ", ""], ["-1", "a"], ["1.0", "a"], ["", "a"], ["٣", "a"]]
    rows = [["filepath", "k", "title"], *(["img/1.png", *cell] for cell in cells)]
    path = write_csv(pictures / "a.csv", rows)
    table = Table(path=path, label_key="k")
    source = table.open("train")
    assert [(source[i].label, source[i].texts) for i in range(3)] == [(1, ("a",)), (1, ()), (0, ())]
    for row, cell in zip(range(3, 7), cells[3:], strict=True):
        assert bad(source, row).endswith(f"must be a whole number from 0 on, not {cell[0]!r}")
    bare = Table(path=path, label_key="k", caption_key=None).open("train")
    assert bare[0].texts == () and bare[0].label == 1
    assert table.class_names("train") == ()
    (pictures / "classnames.txt").write_text("cat\ndog\n")
    assert table.class_names("train") == ("cat", "dog")
    assert Table(path=str(pictures), label_key="k").class_names("test") == ("cat", "dog")
    assert Table(path=path).class_names("train") == ()


def test_weighted_captions_have_their_shares_and_stay_with_their_sample(pictures):
    records = [
        {"filepath": "img/1.png", "web": f"w{i}", "made": ["m1", "m2"], "rare": None}
        for i in range(2000)
    ]
    for i in range(0, 2000, 10):
        records[i].update(web=" ", rare="r")
    table = Table(
        path=write_json(pictures / "a.jsonl", records),
        caption_key={"web": 3.0, "made": 1.0, "rare": 1e-9},
    )
    source = table.open("train")
    drawn = captions(source)
    assert drawn == captions(table.open("train")) == captions(pickle.loads(pickle.dumps(source)))
    assert set(drawn[0::10]) == {("m1", "m2")}
    rest = [texts for i, texts in enumerate(drawn) if i % 10]
    assert all(texts in (("m1", "m2"), (f"w{i}",)) for i, texts in enumerate(drawn) if i % 10)
    share = sum(texts == ("m1", "m2") for texts in rest) / len(rest)
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / len(rest)) ** 0.5


def test_weighted_captions_may_all_be_empty(pictures):
    path = write_csv(pictures / "a.csv", [["filepath", "a", "b"], ["img/1.png", "", " "]])
    source = Table(path=path, caption_key={"a": 1.0, "b": 1.0}).open("train")
    assert bad(source, 0).endswith("it has no caption")


def write_splits(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = str(folder / "img" / "1.png")
        write_csv(folder / name, [["filepath", "title"], [image, name]])


def found(table, split):
    source = table.open(split)
    assert len({source[i].key for i in range(len(source))}) == len(source)
    return [source[i].texts[0] for i in range(len(source))]


def test_splits_of_a_folder(pictures):
    write_splits(pictures, "train.csv", "test-1.csv", "test-0.csv", "val/10.tsv", "val/2.tsv")
    (pictures / "val" / ".hidden.tsv").write_text("junk")
    table = Table(path=str(pictures))
    assert found(table, "train") == ["train.csv"]
    assert found(table, "test") == ["test-0.csv", "test-1.csv"]
    assert found(table, "val") == ["val/2.tsv", "val/10.tsv"]
    message = f"{pictures} has no split 'dev'; {pictures} holds img, test-0.csv, test-1.csv, "
    with pytest.raises(FileNotFoundError, match=re.escape(message + "train.csv, val")):
        table.open("dev")
    write_splits(pictures, "val/1.csv", "train-2.csv")
    with pytest.raises(
        ValueError, match=r"split 'val' could be any of val/\*.csv, val/\*.tsv: name"
    ):
        table.open("val")
    with pytest.raises(ValueError, match=r"'train' could be any of train.csv, train-\*.csv: name"):
        table.open("train")


def test_splits_in_the_path(pictures):
    names = ("a/train/x.csv", "b/train/x.csv", "a/test/x.csv")
    write_splits(pictures, *names)
    table = Table(path=str(pictures / "*" / "{split}" / "x.csv"))
    assert found(table, "train") == [*names[:2]] and found(table, "test") == [names[2]]
    assert [table.open("train")[i].key for i in (0, 1)] == ["a/train/x.csv:1", "b/train/x.csv:1"]
    with pytest.raises(FileNotFoundError, match=r"no split 'val'; there are x.csv, x.csv, x.csv$"):
        table.open("val")


def test_one_file_and_patterns_are_the_training_split(pictures, monkeypatch):
    names = ("t[1].csv", "t[10].csv", "t1.csv", "t[2].csv")
    write_splits(pictures, *names)
    assert found(Table(path=str(pictures / "t[1].csv")), "train") == ["t[1].csv"]
    several = Table(path=str(pictures / "t[*].csv"))
    assert found(several, "train") == ["t[1].csv", "t[2].csv", "t[10].csv"]
    monkeypatch.chdir(pictures)
    assert found(Table(path="t1.csv"), "train") == ["t1.csv"]
    assert found(Table(path="./t?.csv"), "train") == ["t1.csv"]
    with pytest.raises(FileNotFoundError, match=r"^t1.csv has no split 'test'; one file is the"):
        Table(path="t1.csv").open("test")
    with pytest.raises(
        FileNotFoundError, match=r"^no/t1.csv has no split 'train'; . holds img, t1"
    ):
        Table(path="no/t1.csv").open("train")


def test_all_missing_columns_of_all_files_are_named(pictures):
    write_csv(pictures / "1.csv", [["file_path", "Title"], ["a", "b"]])
    write_csv(pictures / "2.csv", [["filepath", "title", "title"], ["a", "b", "c"]])
    write_csv(pictures / "3.csv", [["filepath", "title"], ["a", "b"]])
    message = (
        f"{pictures}/1.csv: no column 'filepath' (nearest: 'file_path'), no column 'title' "
        f"(nearest: 'Title'); its columns: 'file_path', 'Title' (read with the separator '\\t'); "
        f"{pictures}/2.csv: two columns are called 'title'; its columns: 'filepath', 'title', "
        "'title' (read with the separator '\\t')"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Table(path=str(pictures / "*.csv")).open("train")
    path = write_json(pictures / "a.jsonl", [{"filepath": "a"}, {"text": "b"}])
    with pytest.raises(ValueError, match=r"no column 'title' .*; its columns: 'filepath', 'text'$"):
        Table(path=path).open("train")
    path = write_parquet(pictures / "a.parquet", {"filepath": ["a"], "caption": ["b"]})
    message = "no column 'title' (nearest: 'filepath'); its columns: 'filepath', 'caption'"
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        Table(path=path).open("train")


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.csv", b"", "no column 'filepath', no column 'title'; its columns: none"),
        ("a.csv", b"filepath\ttitle\n\n\r\n", "no row in "),
        ("a.csv", b'"filepath\ttitle', "its columns: none"),
        ("a.csv", b"caf\xe9\ttitle\n", "'utf-8' codec can't decode byte 0xe9"),
        ("a.csv", "filepath\ttitle\n".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        ("a.jsonl", b"\n\n", "no row in "),
        ("a.json", b'[\n{"filepath": "a"}\n]', "no column 'title'"),
        ("a.json", b'[{"filepath": "a"}]', "no JSON objects, one a line: it is not an object but"),
        ("a.jsonl", b"\xff\n", "no JSON objects, one a line: 'utf-8' codec"),
        ("a.parquet", b"PAR1 not really", "Parquet magic bytes not found"),
        ("a.parquet", b"", "Parquet file size is 0 bytes"),
        ("a.xlsx", b"PK", "a table must end in .csv, .tsv, .jsonl, .json, .parquet"),
    ],
)
def test_files_that_are_no_tables_are_refused_by_name(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Table(path=str(path)).open("train")
    assert str(path) in str(caught.value)


def test_remote_tables_are_refused():
    with pytest.raises(ValueError, match=r"^gs://a/b.csv: tables are read from local disks"):
        Table(path="gs://a/b.csv").open("train")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"separator": "::"}, "Table.separator must be one ASCII sign, got '::'"),
        ({"separator": ""}, "Table.separator must be one ASCII sign, got ''"),
        ({"quote": "\n"}, "Table.quote must be one ASCII sign, got '\\n'"),
        (
            {"caption_key": {"a": 1.0, "b": 0.0}},
            "Table.caption_key must be a column, or columns with weights above 0, "
            "got {'a': 1.0, 'b': 0.0}",
        ),
        (
            {"caption_key": None},
            "Table.label_key must be given where there are no captions, got None",
        ),
        ({"label_key": "title"}, "Table.image_key must be in no other role, got 'filepath'"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Table(path="a.csv", **fields)


def test_positions_outside_are_refused(pictures):
    write_splits(pictures, "train.csv")
    for index in (1, -1):
        with pytest.raises(IndexError, match=f"sample {index} of 1"):
            Table(path=str(pictures)).open("train")[index]
