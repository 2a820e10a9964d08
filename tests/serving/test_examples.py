import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import input_pb2

from serving.model_server import examples
from serving.model_server.errors import StatusError
from serving.model_server.loaded import LoadedVersion


def example(**features):
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


@pytest.fixture(scope="module")
def loaded(exports):
    version = LoadedVersion(exports / "examples" / "5", "examples", 5)
    yield version
    version.close()


def test_a_context_and_an_example_read_as_one_in_which_the_example_counts():
    (string,) = examples.serialized([example(x=2.0, y=3.0)], example(y=5.0, z=7.0))
    merged = tf.train.Example.FromString(string)
    assert merged == example(x=2.0, y=3.0, z=7.0)


def test_both_kinds_of_input_are_read_alike():
    plain, under = input_pb2.Input(), input_pb2.Input()
    plain.example_list.examples.extend([example(x=2.0, y=3.0), example(x=5.0, y=3.0)])
    under.example_list_with_context.context.CopyFrom(example(y=3.0))
    under.example_list_with_context.examples.extend([example(x=2.0), example(x=5.0)])
    first, second = ([tf.train.Example.FromString(one) for one in examples.read_input(kind)] for kind in (plain, under))
    assert first == second
    with pytest.raises(StatusError, match="Input is empty"):
        examples.read_input(input_pb2.Input())


def test_classes_and_values_are_what_predict_answers(loaded):
    rows = examples.serialized([example(x=2.0), example(x=6.0)])
    signature = examples.find_signature(loaded, "classify_both", examples.CLASSIFY_METHOD)
    outputs = loaded.run(signature, {"inputs": rows})
    classes = examples.classify(loaded, signature, rows)
    np.testing.assert_array_equal(classes.labels, outputs["classes"])
    np.testing.assert_array_equal(classes.scores, outputs["scores"])
    signature = examples.find_signature(loaded, "regress_x_to_y", examples.REGRESS_METHOD)
    values = examples.regress(loaded, signature, rows)
    np.testing.assert_array_equal(values, loaded.run(signature, {"inputs": rows})["outputs"][:, 0])
    assert [one.value for one in examples.regression_result(values).regressions] == [3.0, 5.0]


def test_a_signature_of_another_method_is_taken_unless_method_names_are_checked(loaded, monkeypatch):
    taken = examples.find_signature(loaded, "with_default", examples.REGRESS_METHOD)
    assert (taken.name, taken.method_name) == ("with_default", examples.REGRESS_METHOD)
    monkeypatch.setattr(loaded, "check_method_names", True)
    with pytest.raises(StatusError, match="Was: tensorflow/serving/predict"):
        examples.find_signature(loaded, "with_default", examples.REGRESS_METHOD)
    examples.find_signature(loaded, "regress_x_to_y", examples.REGRESS_METHOD)


def test_rows_lack_what_the_signature_lacks():
    assert examples.rows(examples.Classes(None, np.float32([[2, 3]]))) == [([b"", b""], [2.0, 3.0])]
    assert examples.rows(examples.Classes(np.array([[b"a"], [b"b"]], object), None)) == [
        ([b"a"], [0.0]),
        ([b"b"], [0.0]),
    ]
