"""What a corpus' examples are and where they go; the pipeline itself runs in `make beam` (tests/beam)."""

import importlib.util
import json

import pytest

from training import corpus_beam


def test_lines_are_normalised_and_blank_ones_left_out():
    lines = ["  cafe\u0301 \r\n".encode(), b"\n", b" \n", b"one \xff\n", "\u00e9".encode()]
    assert [*corpus_beam.examples(lines, "lines")] == ["caf\u00e9", "one \ufffd", "\u00e9"]


def test_documents_are_blocks_of_lines():
    lines = [b"\n", b"a\n", b" b\n", b"\n", b" \n", b"c"]
    assert [*corpus_beam.examples(lines, "documents")] == ["a\nb", "c"]


def test_the_split_keeps_its_shares_and_a_larger_test_takes_from_train_alone():
    texts = [f"line {i}" for i in range(4000)]
    places = [corpus_beam.place(text, 0.2, 0.1) for text in texts]
    assert [places.count(i) / len(texts) for i in range(3)] == pytest.approx([0.7, 0.2, 0.1], abs=0.03)
    more = [corpus_beam.place(text, 0.2, 0.3) for text in texts]
    assert {(a, b) for a, b in zip(places, more) if a != b} == {(0, 2)}


def test_a_line_is_written_as_json_and_a_document_with_a_blank_line_after_it():
    assert json.loads(corpus_beam.written('say "é"', "lines")) == {"text": 'say "é"'}
    assert corpus_beam.written("a\nb", "documents") == "a\nb\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shards", "0"], "--shards needs a number >= 1, got 0."),
        (["--test", "1"], "--validation and --test need shares >= 0 that leave some for train, got 0.01 and 1.0."),
        (["--validation", "-0.1"], "--validation and --test need shares >= 0"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(words, message, capsys):
    assert corpus_beam.main(["--input", "a", "--output", "b", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_apache_beam_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert corpus_beam.main(["--input", "a", "--output", "b"]) == 2
    assert "pip install apache-beam" in capsys.readouterr().err
