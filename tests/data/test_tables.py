"""Every format, plain and compressed, gives the same rows; every damage is one sentence with its place."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyhat.data.tables import format_of, read_rows
from tinyhat.errors import UserError

ROWS = [{"text": 'say "hi",\nplease', "label": "a"}, {"text": "naïve – text", "label": "b"}]


def encode(kind, rows):
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue()
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def write(path, data):
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pa.Codec("zstd").compress(data, asbytes=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_formats_give_the_same_rows(tmp_path, kind, compression):
    path = write(tmp_path / f"laws.{kind}{compression}", encode(kind, ROWS))
    assert format_of(path) == kind
    assert [row.values for row in read_rows(path)] == ROWS


def test_lines_are_counted_through_quoted_newlines_and_blank_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"two\nlines",a\nlast,b\n')
    assert [row.line for row in read_rows(path)] == [2, 4]
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "x"}\n\n{"text": "y"}\n')
    assert [row.line for row in read_rows(path)] == [2, 4]


def test_byte_order_mark_and_long_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\n" + b"x" * 300_000 + b",a\n")
    (row,) = read_rows(path)
    assert list(row.values) == ["text", "label"]
    assert len(row.values["text"]) == 300_000


@pytest.mark.parametrize(
    ("name", "data", "line", "sentence"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', 2, "not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', 2, "holds a JSON list"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', 2, "not UTF-8"),
        ("a.csv", b"text,label\nx,a\ny\n", 3, "1 cells and the header 2"),
        ("a.csv", b"text,label\nx,a\n\xe9,b\n", 3, "not UTF-8"),
        ("a.csv", b'text,label\nx,a\n"open,b\n', 3, "check its quotes"),
        ("a.txt", b"fine\n\xff\n", 2, "not UTF-8"),
    ],
)
def test_a_malformed_row_is_handed_on_with_its_line(tmp_path, name, data, line, sentence):
    (tmp_path / name).write_bytes(data)
    good, bad = read_rows(tmp_path / name)
    assert not good.error
    assert bad.line == line
    assert sentence in bad.error


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_file_says_so(tmp_path, suffix):
    path = write(tmp_path / f"a.jsonl{suffix}", b"".join(b'{"text": "%d"}\n' % (i * 7919) for i in range(1000)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"damaged or cut off .*: copy or download it again"):
        list(read_rows(path))


def test_file_mistakes(tmp_path):
    (tmp_path / "laws.csv").write_text("text\nx\n")
    (tmp_path / "half.parquet").write_bytes(encode("parquet", ROWS)[:-9])
    (tmp_path / "twice.csv").write_text("text,text\nx,y\n")
    for name, sentence in [
        ("lows.csv", "does not exist; did you mean 'laws.csv'"),
        ("half.parquet", "not a readable Parquet file"),
        ("twice.csv", "has the column 'text' twice"),
        (".", "is a folder"),
    ]:
        with pytest.raises(UserError, match=sentence):
            list(read_rows(tmp_path / name))
    (tmp_path / "laws.docx").write_text("x")
    with pytest.raises(UserError, match="reads csv, tsv, jsonl and parquet"):
        list(read_rows(tmp_path / "laws.docx"))


def test_stdin_is_json_lines(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(encode("jsonl", ROWS))))
    assert [row.values for row in read_rows("-")] == ROWS


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({"text": TEXT, "label": TEXT}), min_size=1, max_size=5))
def test_any_text_survives_csv_and_jsonl(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    for kind in ("csv", "jsonl"):
        path = write(folder / f"a.{kind}", encode(kind, rows))
        assert [row.values for row in read_rows(path)] == rows
