"""The recipes on real data, with small models for a short while: trained, measured, exported, served, asked."""

import csv
import json
import math

import pytest
import tensorflow as tf

from serving.answers import answers_for
from serving.client import Client
from serving.export import export_run
from serving.model_server.model_config import ModelSettings
from serving.model_server.server import ModelServer
from serving.signatures import SIGNATURES
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


ASKED = {
    "multi30k-transformer": ["Ein Hund läuft durch den Schnee.", "", "Zwei Männer."],
    "shakespeare-gpt": ["ROMEO:\nBut soft, what", "", "O"],
    "nsmc-bert": ["이 영화 [MASK] 재미있다", "", "[MASK] 최고"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_a_run_on_real_data_is_served_as_the_model_in_process_answers(name, real_run, free_port, tmp_path, monkeypatch):
    one = real_run(name)
    answers = answers_for(*one[2:], max_new_tokens=one.recipe.max_new_tokens)
    default = SIGNATURES[answers.kind]["serving_default"]
    live = [answer.decode() for answer in getattr(answers, default.function)(tf.constant(ASKED[name]))[0].numpy()]
    # The one that is asked: test_export.py has them all.
    monkeypatch.setitem(SIGNATURES, answers.kind, {"serving_default": default})
    monkeypatch.setattr("serving.export._compare", lambda *_: None)  # done below, over both transports
    export_run(one.folder, tmp_path / "exports" / name)
    port, rest_api_port = free_port(), free_port()
    models = [ModelSettings(name, tmp_path / "exports" / name)]
    server = ModelServer(models, host="127.0.0.1", port=port, rest_api_port=rest_api_port)
    server.start()
    try:
        for client in (Client(rest_api_port=rest_api_port), Client(port=port, transport="grpc")):
            with client:
                assert next(iter(client.predict(name, ASKED[name]).values())) == live
                alone = [next(iter(client.predict(name, [text]).values()))[0] for text in ASKED[name]]
                assert alone == live
    finally:
        server.stop()
