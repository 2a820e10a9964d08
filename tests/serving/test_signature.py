import numpy as np
import pytest

from serving.model_server.errors import StatusError
from serving.model_server.signature import Signature, TensorSpec, check_feeds, check_filter, type_name

PAIR = Signature(
    name="pair",
    method_name="tensorflow/serving/predict",
    inputs={"text": TensorSpec("a:0", np.dtype(object), (-1,)), "seed": TensorSpec("b:0", np.dtype(np.int64), (-1,))},
    outputs={"y": TensorSpec("c:0", np.dtype(np.float32), None)},
)


def test_feeds_of_the_right_names_and_dtypes_pass():
    check_feeds(PAIR, {"text": np.array([b"a"], object), "seed": np.int64([3])})


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "Missing but required: {seed,text}. Sent extra: {}."),
        ({"text": np.array([b"a"], object), "sed": np.int64([3])}, "required: {seed}. Sent extra: {sed}."),
        (
            {"text": np.array([b"a"], object), "seed": np.int32([3])},
            "'seed' is expected to be int64 but int32 is provided",
        ),
        ({"text": np.int64([1]), "seed": np.int64([3])}, "'text' is expected to be string but int64 is provided"),
    ],
)
def test_wrong_feeds_are_refused_by_name(feeds, words):
    with pytest.raises(StatusError) as refused:
        check_feeds(PAIR, feeds)
    assert words in refused.value.message


def test_a_filter_names_outputs_once():
    check_filter(PAIR, ())
    check_filter(PAIR, ("y",))
    with pytest.raises(StatusError, match="not found in signature: text"):
        check_filter(PAIR, ("text",))
    with pytest.raises(StatusError, match="duplicate output tensor alias: y"):
        check_filter(PAIR, ("y", "y"))


def test_dtypes_are_called_as_tensorflow_calls_them():
    assert [type_name(np.dtype(kind)) for kind in (object, np.float32, np.bool_)] == ["string", "float", "bool"]
