"""Recipes: frozen data, whose errors name the rule and the nearest known key."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import yaml

from training.recipes import RECIPES, Recipe, RecipeError, find, model_arguments, parse_settings

CONTRACT = [
    "demo-seq2seq",
    "demo-attention",
    "demo-transformer",
    "demo-bert",
    "demo-bert-classify",
    "demo-gpt",
    "multi30k-seq2seq",
    "multi30k-attention",
    "multi30k-transformer",
    "shakespeare-gpt",
    "nsmc-bert",
    "nsmc-bert-classify",
]
PUBLISHED = [f"multi30k-words-{name}" for name in ("seq2seq", "context", "attention", "transformer")]
FURTHER = [
    "multi30k-context",
    "demo-gpt-classify",
    "wnut17-bert-tokens",
    "xquad-bert-spans",
    "korquad-bert-spans",
    "copa-bert-choices",
    "korsts-bert-similarity",
]
OWN = {"train": "a", "validation": "b", "test": "c"}
PLAIN = Recipe("gpt", "grammar-lines", model={"num_layers": 2, "num_heads": 3})


def test_the_built_in_recipes_are_those_of_the_contract_the_published_row_and_one_for_each_further_task():
    assert sorted(RECIPES) == sorted(CONTRACT + PUBLISHED + FURTHER)


@pytest.mark.parametrize("name", RECIPES)
def test_a_built_in_recipe_fits_its_models_constructor(name):
    assert find(name).check_model() is RECIPES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json_and_a_yaml_file(name, tmp_path):
    recipe, path = RECIPES[name], tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    assert find(str(path)) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.steps = 3


def test_replace_changes_what_is_named_and_keeps_the_rest():
    changed = PLAIN.replace(**{"steps": 7, "model.num_heads": 5, "model.dropout": 0.3})
    assert changed == dataclasses.replace(PLAIN, steps=7, model={"num_layers": 2, "num_heads": 5, "dropout": 0.3})
    assert PLAIN.model == {"num_layers": 2, "num_heads": 3}
    assert PLAIN.replace() == PLAIN


def test_files_of_ones_own_are_set_one_by_one():
    changed = PLAIN.replace(**{"corpus": "text-lines", **{f"files.{split}": path for split, path in OWN.items()}})
    assert changed == PLAIN.replace(corpus="text-lines", files=OWN) != PLAIN
    assert changed.replace(**{"files.test": "d"}).files == {**OWN, "test": "d"}


def test_settings_of_the_command_line_are_yaml_values():
    words = ["steps=7", "learning_rate=1e-3", "clip_norm=null", "lowercase=true", "model.cell=lstm", "start_from=a=b"]
    changes = parse_settings(words)
    assert changes["start_from"] == "a=b"
    recipe = PLAIN.replace(**changes)
    assert (recipe.steps, recipe.learning_rate, recipe.clip_norm, recipe.lowercase) == (7, 0.001, None, True)
    assert recipe.model["cell"] == "lstm"


@pytest.mark.parametrize("word", ["steps", "=7", ""])
def test_a_setting_without_key_or_value_is_refused(word):
    with pytest.raises(RecipeError, match=f"--set needs key=value, got '{word}'"):
        parse_settings([word])


@pytest.mark.parametrize(("key", "value"), [("steps", "[7"), ("model", "{dropout: 0.1, dropout: 0.2}")])
def test_a_setting_that_is_no_yaml_or_has_a_key_twice_is_refused(key, value):
    with pytest.raises(RecipeError, match=f"--set {key} needs a YAML value, got {re.escape(repr(value))}"):
        parse_settings([f"{key}={value}"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find("demo-gtp"), "Unknown recipe 'demo-gtp'; did you mean 'demo-gpt'?"),
        (lambda: find("zzz"), "Unknown recipe 'zzz'; there are demo-seq2seq, "),
        (lambda: find("absent.yaml"), "There is no recipe file absent.yaml."),
        (lambda: PLAIN.replace(step=7), "Unknown recipe key 'step'; did you mean 'steps'?"),
        (
            lambda: PLAIN.replace(**{"model.num_head": 5}).check_model(),
            "Unknown model argument of gpt 'num_head'; did you mean 'num_heads'?",
        ),
        (lambda: Recipe("gpd", "grammar-lines"), "A recipe needs architecture in ('seq2seq', "),
        (lambda: Recipe("gpt", "moon"), "got corpus='moon'"),
        (lambda: PLAIN.replace(tokenizer="letters"), "got tokenizer='letters'"),
        (lambda: PLAIN.replace(decay="down"), "got decay='down'"),
        (lambda: PLAIN.replace(dtype="float8"), "got dtype='float8'"),
        (
            lambda: PLAIN.replace(corpus="grammar-pairs"),
            "gpt reads lines, documents or text, got corpus='grammar-pairs', which holds pairs.",
        ),
        (lambda: PLAIN.replace(steps=0), "A recipe needs steps > 0, got steps=0."),
        (lambda: PLAIN.replace(max_sequence_length=1), "A recipe needs max_sequence_length >= 2, got 1."),
        (lambda: PLAIN.replace(train_examples=0), "A recipe needs train_examples > 0, got train_examples=0."),
        (lambda: PLAIN.replace(seed=-1), "A recipe needs seed >= 0, got seed=-1."),
        (lambda: PLAIN.replace(label_smoothing=1), "A recipe needs label_smoothing < 1, got label_smoothing=1.0."),
        (lambda: PLAIN.replace(learning_rate=float("nan")), "A recipe needs learning_rate > 0, got learning_rate=nan."),
        (lambda: PLAIN.replace(learning_rate=float("inf")), "A recipe needs learning_rate > 0, got learning_rate=inf."),
        (lambda: PLAIN.replace(steps=float("inf")), "A recipe needs steps of type int, a number, got steps=inf."),
        (lambda: PLAIN.replace(steps="many"), "A recipe needs steps of type int, a number, got steps='many'."),
        (lambda: PLAIN.replace(steps=2.5), "A recipe needs steps of type int, got steps=2.5."),
        (lambda: PLAIN.replace(steps=True), "A recipe needs steps of type int, got steps=True."),
        (lambda: PLAIN.replace(steps=None), "got steps=None."),
        (lambda: PLAIN.replace(lowercase="yes"), "A recipe needs lowercase of type bool, got lowercase='yes'."),
        (lambda: PLAIN.replace(start_from=3), "got start_from=3."),
        (lambda: PLAIN.replace(model=3), "got model=3."),
        (lambda: PLAIN.replace(**{"model": 3, "model.num_heads": 5}), "got model=3."),
        (
            lambda: PLAIN.replace(average_checkpoints=3, ema_momentum=0.9),
            "A recipe needs average_checkpoints=1 beside early_stopping or ema_momentum, got average_checkpoints=3.",
        ),
        (
            lambda: PLAIN.replace(learning_rate=0.7, final_learning_rate=0.71),
            "A recipe needs final_learning_rate <= learning_rate=0.7, got final_learning_rate=0.71.",
        ),
        (lambda: PLAIN.replace(ema_momentum=1.0), "A recipe needs ema_momentum < 1, got ema_momentum=1.0."),
        (lambda: PLAIN.replace(checkpoint_step=3), "did you mean 'checkpoint_steps'?"),
        (lambda: PLAIN.replace(corpus="tsv-pears"), "got corpus='tsv-pears'; did you mean 'tsv-pairs'?"),
        (lambda: PLAIN.replace(decay="cosin"), "got decay='cosin'; did you mean 'cosine'?"),
        (
            lambda: PLAIN.replace(corpus="text-lines", files={"train": "a"}),
            "corpus='text-lines' needs files for ['train', 'validation', 'test'], got files={'train': 'a'}.",
        ),
        (
            lambda: PLAIN.replace(**{"files.train": "a"}),
            "corpus='grammar-lines' needs files for [], got files={'train'",
        ),
        (lambda: PLAIN.replace(corpus="text-lines", files={**OWN, "test": 3}), "got files={'train': 'a', "),
        (lambda: PLAIN.replace(corpus="text-running", files=OWN, stream=True), "stream needs files of examples, got"),
        (lambda: PLAIN.replace(stream=True), "stream needs files of examples, got corpus='grammar-lines'"),
        (lambda: PLAIN.replace(corpus="conll", files=OWN), "gpt reads lines, documents or text, got corpus='conll'"),
        (lambda: PLAIN.replace(whole_words=True), "A recipe needs architecture='bert' for whole_words, got 'gpt'."),
        (
            lambda: PLAIN.replace(pack_documents=True, corpus="tinyshakespeare"),
            "pack_documents needs lines or documents, got corpus='tinyshakespeare', one running text.",
        ),
        (
            lambda: Recipe("bert", "grammar-documents", tokenizer="bpe"),
            "bert needs tokenizer='wordpiece', with a token to hide others, got 'bpe'.",
        ),
        (lambda: PLAIN.replace(model={True: 2}).check_model(), "Unknown model argument of gpt 'True'"),
        (lambda: PLAIN.replace(corpus="text-lines", files={1: "a", "train": "b"}), "got files={1: 'a', 'train': 'b'}"),
        (lambda: Recipe.from_dict([]), "A recipe needs keys and values, got list."),
        (lambda: Recipe.from_dict({"corpus": "multi30k"}), "A recipe needs the key 'architecture', got ['corpus']."),
        (lambda: Recipe.from_dict({"architecture": "gpt", "steps ": 3}), "Unknown recipe key 'steps '; did you mean"),
    ],
)
def test_an_error_names_the_rule_and_what_came(call, message):
    with pytest.raises(RecipeError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"steps: [7", b"\xff\xfe\xfa", b""])
def test_a_file_that_is_no_recipe_is_refused_by_its_name_or_content(content, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.yaml is not YAML|A recipe needs keys and values"):
        find(str(path))


@pytest.mark.parametrize("content", ["steps: 7\ncorpus: nsmc\nsteps: 11", "model: {dropout: 0.1, dropout: 0.2}"])
def test_a_key_that_stands_twice_in_a_file_is_named_with_its_line(content, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(RecipeError, match=r"mine\.yaml is not YAML: the key '(steps|dropout)' twice .* line (3|1)"):
        find(str(tmp_path / "mine.yaml"))


def test_what_the_recipe_itself_decides_is_no_argument_of_the_model():
    for architecture in ("seq2seq", "attention", "transformer", "bert", "bert-classify", "gpt"):
        known = model_arguments(architecture)
        assert "hidden_dim" in known
        assert not {"max_sequence_length", "vocabulary_size", "source_vocabulary_size", "dtype", "self"} & set(known)


def test_what_a_model_needs_is_asked_for_before_a_corpus_is_read():
    recipe = Recipe("gpt", "grammar-lines", {"num_layers": 1, "hidden_dim": 7})
    with pytest.raises(RecipeError, match=r"The model of gpt needs \['num_heads', 'intermediate_dim'\], got model=\{"):
        recipe.check_model()
    recipe.replace(start_from="runs/mine").check_model()  # whose model is taken


def test_a_run_too_short_for_one_update_is_refused():
    assert find("demo-gpt").replace(steps=7, gradient_accumulation=7).steps == 7
    with pytest.raises(RecipeError, match=r"needs gradient_accumulation <= steps=7, .* got gradient_accumulation=8"):
        find("demo-gpt").replace(steps=7, gradient_accumulation=8)


def test_recipes_are_read_without_tensorflow():
    code = "import sys, training.recipes; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
