"""MCKD's own files of trees: written and read."""

import json
from pathlib import Path

from raykd.data import pseudo_targets
from raykd.data.examples import Example
from raykd.data.rows import BadRows, read_examples
from raykd.data.tasks.release_trees import release
from raykd.data.tasks.translation import translation, write_translation
from raykd.data.tasks.trees import parse
from raykd.recipe.data import FunctionRows

DOG = "(S (NP (DT The) (NN dog)) (VP (VBZ barks)))"


def test_pseudo_targets_are_written_for_the_authors_code_as_the_page_says(tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs/mckd.md").read_text("utf-8")
    labels = tmp_path / "runs/trees/mckd/round-1/labels"
    labels.mkdir(parents=True)
    pseudo_targets.save_pseudo_targets(labels / "pseudo_targets.parquet", [Example("1", "The dog", "( The dog )")])
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python\n")[1].split("```")[0], {})
    (row,) = translation("train.json")
    assert (row["input"], row["target"]) == ("The dog", "( The dog )")


def test_the_authors_files_are_written_and_read(tmp_path):
    rows = [
        {"id": "mine:1", "input": "The dog barks", "target": release(parse(DOG)[0]), "references": [DOG]},
        {"id": "mine:2", "input": "yes é", "target": "( yes ) ( é )"},
    ]
    path = tmp_path / "mine.json"
    assert write_translation(path, rows) == 2
    assert json.loads(path.read_text().splitlines()[0])["translation"]["parsed"] == DOG
    with open(path, "a") as file:
        file.write('{"translation": {"unparsed": 1}}\n{\n[]\n' + "1" * 5_000)
    *good, one, two, three, four = map(str, translation(str(path)))
    assert good == list(map(str, rows)) and two == "line 4: not JSON"
    assert all(text.startswith(f"line {n}: not {{") for n, text in ((3, one), (5, three), (6, four)))
    assert [row["target"] for row in translation(str(path), silver=True) if not isinstance(row, str)] == [None, None]
    bad = BadRows(4)
    source = FunctionRows(
        kind="function", function="raykd.data.tasks.translation:translation", arguments={"path": str(path)}
    )
    examples = list(read_examples(source, bad, need_target=True))
    assert [e.references for e in examples] == [(DOG,), ()] and len(bad.rows) == 4
