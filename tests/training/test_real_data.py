"""The recipes on real data, with small models for a short while."""

import csv
import json
import math

import pytest

from training import evaluate

MEASURES = {
    "multi30k-transformer": {"exact", "bleu", "words_per_sentence"},
    "shakespeare-gpt": {"loss", "perplexity", "tokens"},
    "nsmc-bert": {"next_sentence_accuracy", "masked_accuracy", "pairs"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_a_recipe_on_real_data_learns_and_is_measured(name, real_run):
    one = real_run(name)
    with open(one.folder / "history.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]
    if name == "shakespeare-gpt":  # the whole tenth has a hundred thousand characters
        one = one._replace(recipe=one.recipe.replace(evaluate_examples=5003))
    values = evaluate.evaluate_run(one)
    assert set(values) >= MEASURES[name]
    assert all(math.isfinite(value) for value in values.values() if isinstance(value, float))
    assert json.loads((one.folder / "metrics.json").read_text())["test"] == values
