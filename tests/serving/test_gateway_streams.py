import asyncio
import json

import pytest

from serving.client import ServingError
from serving.gateway_streams import MAX_CALLS, completions, events, lengths, parse_request

TEXT = "déjà 日本"


class Writer:
    """A client whose `sample` writes the first bytes of a text, one a token, and counts what it was asked for."""

    def __init__(self, text=TEXT):
        self.whole, self.asked = text.encode(), []

    async def predict(self, model, inputs, signature, version):
        assert (model, signature, version) == ("gpt", "sample", 3)
        (count,) = inputs["max_new_tokens"]
        self.asked.append(count)
        written = self.whole[:count].decode("utf-8", "replace")
        return {"completion": [written], "log_probability": [-float(min(count, len(self.whole)))]}


def streamed(client, **named):
    async def collect():
        answers = completions(client, "gpt", 3, parse_request(json.dumps({"text": "a", **named}).encode()))
        first = await anext(answers)
        return b"".join([event async for event in events(answers, first)]).decode()

    found = []
    for event in asyncio.run(collect()).split("\n\n")[:-1]:
        *name, data = event.split("\n")
        found.append((name[0].removeprefix("event: ") if name else None, json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize("chunk", [None, 1, 3, 50])
def test_the_pieces_make_the_whole_and_no_character_is_cut(chunk):
    *pieces, (name, done) = streamed(Writer(), chunk_tokens=chunk)
    assert "".join(data["text"] for _, data in pieces) == TEXT == done["completion"]
    assert {name for name, _ in pieces} == {None}
    assert (name, done["log_probability"]) == ("done", -len(TEXT.encode()))
    assert not any("\ufffd" in data["text"] for _, data in pieces)


def test_a_text_that_has_ended_is_not_asked_for_again():
    client = Writer("ab")
    streamed(client, max_new_tokens=64)
    assert client.asked == [1, 2, 4]


def test_doubling_computes_less_than_twice_the_tokens_and_chunks_are_even():
    for count in (1, 2, 3, 64, 100, 4096):
        asked = lengths(count, None)
        assert asked[-1] == count and asked == sorted(set(asked))
        assert sum(asked) < 3 * count and sum(asked[:-1]) < 2 * count
    assert lengths(11, 5) == [5, 10, 11]
    assert lengths(10, 5) == [5, 10]
    assert lengths(3, 5) == [3]


def test_what_cannot_be_decoded_at_all_comes_at_the_end():
    client = Writer()
    client.whole = b"a\xff"
    *pieces, (_, done) = streamed(client)
    assert "".join(data["text"] for _, data in pieces) == "a\ufffd" == done["completion"]


def test_a_text_that_goes_another_way_is_told_whole_at_the_end():
    client = Writer()

    async def predict(model, inputs, signature, version):
        (count,) = inputs["max_new_tokens"]
        return {"completion": ["ab" if count == 1 else "cde"], "log_probability": [-float(count)]}

    client.predict = predict
    assert streamed(client, max_new_tokens=2) == [
        (None, {"text": "ab"}),
        ("done", {"completion": "cde", "log_probability": -2.0}),
    ]


def test_a_signature_sample_of_another_kind_is_refused():
    client = Writer()

    async def predict(*_):
        return {"y": [1.0]}

    client.predict = predict
    with pytest.raises(ServingError, match="does not answer completion"):
        streamed(client)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON object"),
        (b"\xff", "JSON object"),
        (b"[" * 100_000, "JSON object"),
        (b"[]", "JSON object"),
        (b"{}", "text is a string"),
        (b'{"text": ["a"]}', "text is a string"),
        (b'{"text": "\\ud800"}', "text is a string"),
        (b'{"text": "a", "model": "b"}', "got 'model'"),
        (b'{"text": "a", "temperature": NaN}', "temperature is a number"),
        (b'{"text": "a", "temperature": 1e999}', "temperature is a number"),
        (b'{"text": "a", "seed": 9223372036854775808}', "seed is a number (int64)"),
        (b'{"text": "a", "top_k": true}', "top_k is a number (int32)"),
        (b'{"text": "a", "max_new_tokens": 1.5}', "max_new_tokens is a number"),
        (b'{"text": "a", "max_new_tokens": 0}', "max_new_tokens is between"),
        (b'{"text": "a", "max_new_tokens": 4097}', "max_new_tokens is between"),
        (b'{"text": "a", "chunk_tokens": 0}', "chunk_tokens is between 1"),
        (b'{"text": "a", "chunk_tokens": 1, "max_new_tokens": 65}', f"chunk_tokens is between {65 // MAX_CALLS + 1}"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(body, words):
    with pytest.raises(ValueError) as refused:
        parse_request(body)
    assert words in str(refused.value)
