"""Model cards: what they say, what they never say; publishing, with a double of the hub."""

import dataclasses

import pytest
import yaml

from raykd.errors import ModelError
from raykd.models import card
from raykd.models.card import Card

RECIPE = """name: words
data: {path: /shared/words/rows.jsonl}
student:
  training: {batch_tokens: 2048, max_tokens: 64}
"""
FACTS = Card(
    name="words",
    arm="distilled",
    method="distill",
    teacher="meta/big (apache-2.0)",
    student="t5 from random weights, 1,000 parameters",
    data="/shared/words/rows.jsonl: 200 rows | licence: cc0",
    losses="0.5 forward_kl + 0.5 cross_entropy",
    command="raykd run recipe.yaml",
    recipe=RECIPE,
    seed=7,
    base_model="google/t5-small",
    versions={"raykd": "0.1.0", "torch": "2.13.0"},
)


def written(folder, **changes):
    card.write_card(folder, dataclasses.replace(FACTS, **changes))
    return (folder / "README.md").read_text()


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_a_card_says_what_the_model_is_and_how_to_make_it_again(tmp_path):
    text = written(tmp_path)
    assert front(text) == {
        "library_name": "transformers",
        "base_model": "google/t5-small",
        "tags": ["knowledge-distillation", "raykd"],
    }
    assert "\n# words: distilled\n" in text
    assert "| data | /shared/words/rows.jsonl: 200 rows \\| licence: cc0 |" in text
    assert "| losses | 0.5 forward\\_kl + 0.5 cross\\_entropy |" in text and "| seed | 7 |" in text
    assert "```sh\nraykd run recipe.yaml\n```" in text and f"```yaml\n{RECIPE}```" in text
    assert "Made with raykd 0.1.0, torch 2.13.0." in text and "Not scored." in text


def test_the_hub_finds_the_front_matter(tmp_path):
    from huggingface_hub import ModelCard

    written(tmp_path)
    data = ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False).data.to_dict()
    assert data["base_model"] == "google/t5-small" and data["tags"] == ["knowledge-distillation", "raykd"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base_model": None}, {}),
        ({"base_model": "/home/me/student"}, {}),
        ({"base_model": "t5-small"}, {"base_model": "t5-small"}),
    ],
)
def test_what_is_not_known_is_not_said(tmp_path, changes, expected):
    fields = front(written(tmp_path, **changes))
    assert {k: v for k, v in fields.items() if k not in ("library_name", "tags")} == expected


def test_scores_come_later_and_are_replaced(tmp_path):
    before = written(tmp_path)
    card.write_scores(tmp_path, {"exact_match": 71.25, "a|b": 0.5})
    once = (tmp_path / "README.md").read_text()
    assert "| exact\\_match | 71.25 |\n| a\\|b | 0.5 |" in once and "Not scored." not in once
    card.write_scores(tmp_path, {"exact_match": 80})
    twice = (tmp_path / "README.md").read_text()
    assert "| exact\\_match | 80 |" in twice and "71.25" not in twice
    assert written(tmp_path, scores={"exact_match": 80}) == twice
    card.write_scores(tmp_path, {})
    assert (tmp_path / "README.md").read_text() == before


def test_a_card_of_another_kind_is_left_as_it_is(tmp_path):
    with pytest.raises(ModelError, match="no model card"):
        card.write_scores(tmp_path, {"bleu": 1})
    (tmp_path / "README.md").write_text("# mine\n")
    with pytest.raises(ModelError, match="without a place for scores"):
        card.write_scores(tmp_path, {"bleu": 1})
    assert (tmp_path / "README.md").read_text() == "# mine\n"


def test_markup_means_itself(tmp_path):
    text = written(tmp_path, teacher="<script>x</script>\n| [a](b) *c* `d`", recipe="a: '```'\n", name="<b>")
    assert r"&lt;script&gt;x&lt;/script&gt; \| \[a\](b) \*c\* \`d\` |" in text
    assert "# &lt;b&gt;: distilled" in text and "````yaml\na: '```'\n````" in text


def test_paths_of_the_machine_are_shortened_unless_the_recipe_names_them(tmp_path):
    text = written(
        tmp_path,
        teacher="/home/me/runs/words/teacher/model, fine-tuned",
        command="raykd run '/home/me/runs/words/recipe.yaml'",
        student="https://hub.example/a/b and google/t5/x and 3/4",
    )
    assert "/home" not in text and "| teacher | model, fine-tuned |" in text and "raykd run 'recipe.yaml'" in text
    assert "/shared/words/rows.jsonl" in text and "https://hub.example/a/b and google/t5/x and 3/4" in text


@pytest.mark.parametrize(
    "line",
    [
        "api_key: hush",
        "HF_TOKEN=hush",
        "token: 'hush'",
        "arguments: {limit: 3, token: hush, more: 1}",
        '"password": "hush"',
        "aws_secret_access_key: hush",
        "password: hush, and hush again",
        "secret: |\n  hush\n  hush",
        "path: https://me:hush@host/rows",
        "note: hf_hushhushhushhushhush",
    ],
)
def test_secrets_are_hidden(tmp_path, line):
    text = written(tmp_path, recipe=f"{RECIPE}{line}\nseed: 3\n")
    assert "hush" not in text and "seed: 3" in text


def test_secrets_of_a_command_are_hidden(tmp_path):
    text = written(tmp_path, command="HF_TOKEN=hush raykd run words.yaml data.arguments.token=hush seed=3")
    assert "hush" not in text and "raykd run words.yaml" in text and "seed=3" in text


def test_what_only_looks_like_a_secret_is_shown(tmp_path):
    kept = "tokenizer: {kind: words}\nmax_tokens: 64\nbatch_tokens: 2048\ntoken: null\neos_token: </s>\nkeys: a\n"
    assert kept in written(tmp_path, recipe=kept)


# ----------------------------------------------------------------------------------------- publishing


class Hub:
    """A double of HfApi: what it was asked, and repositories by whether they are private."""

    def __init__(self, **repositories):
        self.asked, self.repositories = [], repositories

    def __call__(self):
        return self

    def create_repo(self, repo_id, *, private, repo_type, exist_ok):
        assert exist_ok and repo_type == "model"
        self.repositories.setdefault(repo_id.replace("/", "_"), private)
        return f"https://huggingface.co/{repo_id}"

    def model_info(self, repo_id):
        return type("Info", (), {"private": self.repositories[repo_id.replace("/", "_")]})

    def upload_folder(self, **given):
        self.asked.append(given)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_folder_is_published(model, monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    assert card.push(model, "me/words", private=True) == "https://huggingface.co/me/words"
    (asked,) = hub.asked
    assert (asked["repo_id"], asked["folder_path"]) == ("me/words", str(model)) and hub.repositories["me_words"]


def test_a_private_model_never_lands_in_a_public_repository(model, monkeypatch):
    hub = Hub(me_words=False)
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    with pytest.raises(ModelError, match="me/words: exists and is public"):
        card.push(model, "me/words", private=True)
    assert hub.asked == []
    card.push(model, "me/words", private=False)
    assert len(hub.asked) == 1


def test_what_the_hub_refuses_is_said_in_one_line_without_the_token(model, monkeypatch):
    class Refusing(Hub):
        def upload_folder(self, **given):
            raise RuntimeError("401 Unauthorized\nfor token hf_abcdefghijklmnopqrst")

    monkeypatch.setattr("huggingface_hub.HfApi", Refusing())
    with pytest.raises(ModelError, match=r"^me/words: cannot be published: RuntimeError: 401 Unauthorized") as error:
        card.push(model, "me/words", private=True)
    assert "\n" not in str(error.value) and "hf_abc" not in str(error.value)


def test_without_a_network_it_is_one_line_as_well(model):
    with pytest.raises(ModelError, match="^me/words: cannot be published: ") as error:
        card.push(model, "me/words", private=True)  # tests are offline (conftest)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_not_published(tmp_path):
    with pytest.raises(ModelError, match="no config.json"):
        card.push(tmp_path, "me/words", private=True)


def test_the_double_takes_what_the_hub_takes():
    import inspect

    from huggingface_hub import HfApi

    for name, given in (
        ("create_repo", {"repo_id": "a/b", "private": True, "repo_type": "model", "exist_ok": True}),
        ("model_info", {"repo_id": "a/b"}),
        ("upload_folder", {"repo_id": "a/b", "folder_path": "f", "repo_type": "model", "ignore_patterns": []}),
    ):
        inspect.signature(getattr(HfApi, name)).bind(None, **given)
