import pytest
import tensorflow as tf

from serving.model_server import json_examples, json_tensors
from serving.model_server.errors import Code, StatusError


def features(body):
    request = json_tensors.parse_body(body)
    made = [tf.train.Example.FromString(one) for one in json_examples.decode_request(request)]
    return [
        {
            name: (kind, list(getattr(feature, kind).value)) if (kind := feature.WhichOneof("kind")) else None
            for name, feature in one.features.feature.items()
        }
        for one in made
    ]


@pytest.mark.parametrize(
    ("value", "feature"),
    [
        (b"2.5", ("float_list", [2.5])),
        (b"[2.5, 1e2, NaN]", None),
        (b"7", ("int64_list", [7])),
        (b"[-9223372036854775808, 9223372036854775807]", ("int64_list", [-(2**63), 2**63 - 1])),
        (b"[true, 3, false]", ("int64_list", [1, 3, 0])),
        (b"36893488147419103232", ("float_list", [2.0**65])),
        (b'"caf\xe9"', ("bytes_list", [b"caf\xe9"])),
        (b'["a", {"b64": "/wA="}]', ("bytes_list", [b"a", b"\xff\x00"])),
        (b"[]", None),
    ],
)
def test_a_features_kind_is_that_of_its_values(value, feature):
    (got,) = features(b'{"examples": [{"x": ' + value + b"}]}")
    if value == b"[2.5, 1e2, NaN]":
        assert (got["x"][0], got["x"][1][:2], len(got["x"][1])) == ("float_list", [2.5, 100.0], 3)
    else:
        assert got == {"x": feature}


def test_the_contexts_features_are_in_every_example_that_lacks_them():
    body = b'{"context": {"x": 1.5, "y": "a"}, "examples": [{"x": 2.5}, {}]}'
    first, second = features(body)
    assert first == {"x": ("float_list", [2.5]), "y": ("bytes_list", [b"a"])}
    assert second == {"x": ("float_list", [1.5]), "y": ("bytes_list", [b"a"])}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "got none"),
        (b'{"examples": {}}', "got Object"),
        (b'{"examples": []}', "empty array"),
        (b'{"examples": [1]}', "element 0 of 'examples' is Number"),
        (b'{"examples": [{}], "context": []}', "'context' is Array"),
        (b'{"examples": [{"x": null}]}', "Feature: x has element with unexpected JSON type: Null"),
        (b'{"examples": [{"x": [[1]]}]}', "unexpected JSON type: Array"),
        (b'{"examples": [{"x": {"b64": 1}}]}', "unexpected JSON type: Object"),
        (b'{"examples": [{"x": {"b64": "*"}}]}', "base64"),
        (b'{"examples": [{"x": [1, 2.5]}]}', "feature: x expecting type: int64, got 2.5"),
        (b'{"examples": [{"x": ["a", 1]}]}', "expecting type: bytes"),
        (b'{"examples": [{"x": 9223372036854775808}]}', "Only int64 is supported"),
        (b'{"examples": [{"x": 1e400}]}', "too big to be stored in double"),
        (b'{"examples": [{"x": 1e39}]}', "without loss of precision"),
        (b'{"examples": [{"caf\xe9": 1}]}', "name is UTF-8"),
    ],
)
def test_what_is_no_example_is_refused(body, words):
    with pytest.raises(StatusError, match=words.replace("*", r"\*")) as refused:
        features(body)
    assert refused.value.code == Code.INVALID_ARGUMENT
