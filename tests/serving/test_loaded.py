import time

import numpy as np
import pytest

from serving.model_server.errors import Code, StatusError
from serving.model_server.loaded import LoadedVersion, read_meta_graph


@pytest.fixture(scope="module")
def half(exports):
    loaded = LoadedVersion(exports / "half" / "3", "half", 3)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def text(exports):
    loaded = LoadedVersion(exports / "text" / "1", "text", 1)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def typed(exports):
    loaded = LoadedVersion(exports / "typed" / "1", "typed", 1)
    yield loaded
    loaded.close()


def strings(*values):
    return np.array(values, object)


def test_the_session_answers_as_the_loaded_function_does(exports, half):
    import tensorflow as tf

    values = np.linspace(-5, 5, 13, dtype=np.float32)[:, None]
    expected = tf.saved_model.load(str(exports / "half" / "3")).signatures["serving_default"](x=values)["y"]
    np.testing.assert_array_equal(half.run(half.signature(), {"x": values})["y"], expected)


def test_a_run_is_broken_off_at_its_deadline_and_one_that_is_done_by_then_is_not(typed):
    rounds = {"rounds": np.array([2**30], np.int32)}
    with pytest.raises(StatusError) as refused:
        typed.run(typed.signature("spin"), rounds, deadline=time.monotonic() + 0.05)
    assert refused.value.code == Code.DEADLINE_EXCEEDED
    done = typed.run(typed.signature("spin"), {"rounds": np.array([3], np.int32)}, deadline=time.monotonic() + 600.0)
    assert done["done"].tolist() == [3]


def test_signatures_carry_names_dtypes_and_shapes_without_the_init_op(half, text):
    assert list(half.signatures) == ["serving_default"]
    spec = half.signature().inputs["x"]
    assert (spec.dtype, spec.shape) == (np.float32, (-1, 1))
    assert sorted(text.signatures) == ["echo", "echo_bytes", "join", "number", "serving_default"]
    assert text.signature("join").outputs["length"].dtype == np.int32
    assert text.signature("join").method_name == "tensorflow/serving/predict"


@pytest.mark.parametrize("shape", [(), (5,), (5, 1), (2, 3, 5), (0,)])
def test_any_shape_is_fed(half, shape):
    values = np.full(shape, 3.0, np.float32)
    np.testing.assert_array_equal(half.run(half.signature(), {"x": values})["y"], values / 2 + 2)


def test_an_output_filter_chooses_and_orders(text):
    feeds = {"first": strings(b"a"), "second": strings(b"bc")}
    assert list(text.run(text.signature("join"), feeds, ("length",))) == ["length"]
    assert text.run(text.signature("join"), feeds)["joined"].tolist() == [b"a|bc"]


def test_bytes_of_any_kind_pass_through(text):
    values = strings(b"", b"\x00", b"a\x00", b"\xff\xfe", "é".encode())
    assert text.run(text.signature("echo"), {"text": values})["echo"].tolist() == values.tolist()


def test_wrong_feeds_are_refused_by_name(half, text):
    with pytest.raises(StatusError, match=r"Missing but required: {x}. Sent extra: {z}") as refused:
        half.run(half.signature(), {"z": np.zeros(1, np.float32)})
    assert refused.value.code == Code.INVALID_ARGUMENT
    with pytest.raises(StatusError, match="'x' is expected to be float but int64 is provided"):
        half.run(half.signature(), {"x": np.zeros(1, np.int64)})
    with pytest.raises(StatusError, match=r"nix .* in the set {joined,length}"):
        text.run(text.signature("join"), {"first": strings(b"a"), "second": strings(b"b")}, ("nix",))
    with pytest.raises(StatusError, match="duplicate output tensor alias: length"):
        text.run(text.signature("join"), {"first": strings(b"a"), "second": strings(b"b")}, ("length", "length"))


def test_an_unknown_signature_is_a_failed_precondition(half):
    with pytest.raises(StatusError, match='"nix" not found') as refused:
        half.signature("nix")
    assert refused.value.code == Code.FAILED_PRECONDITION


def test_a_signature_that_answers_no_tensor_harms_no_other_and_one_may_ask_for_none(tmp_path):
    import tensorflow as tf

    def signature(**outputs):
        infos = {name: tf.compat.v1.saved_model.utils.build_tensor_info(tensor) for name, tensor in outputs.items()}
        return tf.compat.v1.saved_model.build_signature_def({}, infos, "tensorflow/serving/predict")

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        counter = tf.compat.v1.Variable(0.0, use_resource=False)
        signatures = {"increase": signature(count=counter.assign_add(1.0))}
        signatures["handle"] = signature(handle=tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[]))
        signatures["ragged"] = signature(rows=tf.ragged.constant([[1.0], [2.0, 3.0]]))
        session.run(counter.initializer)
        builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "1"))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    loaded = LoadedVersion(tmp_path / "1")
    assert [loaded.run(loaded.signature("increase"), {})["count"].tolist() for _ in range(3)] == [1.0, 2.0, 3.0]
    for name, code in (("handle", Code.UNIMPLEMENTED), ("ragged", Code.INVALID_ARGUMENT)):
        with pytest.raises(StatusError) as refused:
            loaded.run(loaded.signature(name), {})
        assert refused.value.code == code
    loaded.close()


def test_an_operation_that_fails_keeps_its_code(text):
    with pytest.raises(StatusError, match="StringToNumber") as failed:
        text.run(text.signature("number"), {"text": strings(b"x")})
    assert failed.value.code == Code.INVALID_ARGUMENT


def test_lookup_tables_with_assets_are_initialised(tmp_path):
    import tensorflow as tf

    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("ein\nhund\n")
    module = tf.Module()
    initializer = tf.lookup.TextFileInitializer(
        tf.saved_model.Asset(str(vocabulary)),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    module.table = tf.lookup.StaticHashTable(initializer, -1)
    spec = tf.TensorSpec([None], tf.string, name="text")
    function = tf.function(lambda text: {"id": module.table.lookup(text)}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": function})
    vocabulary.unlink()
    (tmp_path / "1").rename(tmp_path / "moved")
    loaded = LoadedVersion(tmp_path / "moved")
    assert loaded.run(loaded.signature(), {"text": strings(b"hund", b"katze")})["id"].tolist() == [1, -1]
    loaded.close()


def test_the_meta_graph_is_chosen_by_its_tags(exports, tmp_path):
    assert read_meta_graph(exports / "half" / "3").signature_def
    with pytest.raises(StatusError, match=r"needs a MetaGraph tagged \['gpu'\], has \[\['serve'\]\]"):
        read_meta_graph(exports / "half" / "3", ("gpu",))
    with pytest.raises(StatusError, match=r"needs saved_model\.pb") as refused:
        read_meta_graph(tmp_path)
    assert refused.value.code == Code.NOT_FOUND
