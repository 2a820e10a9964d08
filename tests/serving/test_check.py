"""Each thing the stock server cannot run, or cannot run safely, is seen in the file alone."""

import re

import hypothesis
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from tensorflow.core.framework import op_def_pb2
from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.client import pywrap_tf_session

from serving.check import FORBIDDEN, SAVER, check

TEXT = [tf.TensorSpec([None], tf.string, name="text")]
FLOAT = [tf.TensorSpec([None], tf.float32, name="x")]


def problems(folder, function, signature=None, **more):
    module = tf.Module()
    for name, value in more.items():
        setattr(module, name, value)
    one = tf.function(function, input_signature=signature or FLOAT)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": one})
    return check(folder).problems


def test_a_plain_graph_has_no_problems(tmp_path):
    assert problems(tmp_path, lambda x: {"y": x + 1.0}) == []
    assert "stock TensorFlow Serving can run it" in check(tmp_path).report()
    assert "serving_default: x float32 (b) -> y float32 (b)" in check(tmp_path).report()


def test_a_table_that_grows_is_a_problem(tmp_path):
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)

    def function(text):
        table.insert(text, tf.zeros_like(text, tf.int64))
        return {"ids": table.lookup(text)}

    found = problems(tmp_path, function, TEXT, table=table)
    assert "operation MutableHashTableV2 is a table that grows with requests" in found
    assert "not for stock TensorFlow Serving:" in check(tmp_path).report()


def test_python_in_the_graph_is_a_problem(tmp_path):
    def function(x):
        return {"y": tf.ensure_shape(tf.numpy_function(lambda value: value, [x], tf.float32), [None])}

    assert problems(tmp_path, function) == ["operation PyFunc calls Python, which the server has not"]


def test_xla_is_a_problem_as_a_function_and_as_an_operation(tmp_path):
    from tensorflow.compiler.tf2xla.python import xla

    compiled = tf.function(lambda x: x * 2.0, jit_compile=True)
    assert any("must be compiled by XLA" in one for one in problems(tmp_path / "a", lambda x: {"y": compiled(x)}))

    def update(x):
        return {"y": xla.dynamic_update_slice(x, x[:1], tf.constant([0]))}

    found = problems(tmp_path / "b", update)
    assert "operation XlaDynamicUpdateSlice needs XLA, which the stock server has disabled" in found


def test_a_graph_that_reads_files_is_a_problem(tmp_path):
    found = problems(tmp_path, lambda text: {"content": tf.map_fn(tf.io.read_file, text)}, TEXT)
    assert found == ["operation ReadFile reads or writes files"]


def test_every_operation_that_is_told_a_file_is_a_problem():
    listed = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    told = re.compile(
        "file_?(name|path|pattern)|(ckpt|snapshot|log_dir)_path|(vocab|chunk)_file|memory_region|debug_urls"
    )
    named = {one.name for one in listed.op if any(told.search(part.name) for part in (*one.input_arg, *one.attr))}
    (files,) = [pattern for title, pattern, _ in FORBIDDEN if title == "files"]
    # Tables from a text file have a rule of their own: the file may be an asset.
    tables = {"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"}
    assert len(named) > 30
    assert {name for name in named - SAVER - tables if not re.match(files, name)} == set()


def test_an_output_without_a_batch_axis_is_a_problem(tmp_path):
    found = problems(tmp_path, lambda x: {"y": tf.reduce_sum(x)})
    assert found == ["output y of serving_default has no batch axis in front: ()"]


def test_an_output_without_a_name_is_a_problem(tmp_path):
    assert problems(tmp_path, lambda x: x + 1.0) == ["output output_0 of serving_default has no name of its own"]


def test_a_default_signature_of_two_inputs_is_a_problem(tmp_path):
    specs = [tf.TensorSpec([None], tf.float32, name=name) for name in ("x", "z")]
    (found,) = problems(tmp_path, lambda x, z: {"y": x + z}, specs)
    assert "not exactly one input and one output" in found


def test_classes_that_are_no_text_and_scores_that_are_no_floats_are_a_problem(tmp_path):
    def function(text):
        return {"classes": tf.strings.length(text)[:, None], "scores": tf.strings.length(text)[:, None]}

    problems(tmp_path, function, TEXT)
    file = tmp_path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    saved.meta_graphs[0].signature_def["serving_default"].method_name = "tensorflow/serving/classify"
    file.write_bytes(saved.SerializeToString())
    found = check(tmp_path).problems
    assert "output classes of serving_default is int32, where Classify needs string" in found
    assert "output scores of serving_default is int32, where Classify needs float32" in found


def written(folder, *operations, signature=("x", 1, [-1]), **more):
    """A SavedModel written by hand: these operations in a chain, and one signature of the last one's output."""
    key, dtype, sizes = signature
    saved = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    graph = saved.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    for number, operation in enumerate(operations or ("Placeholder",)):
        node = graph.graph_def.node.add(name=f"n{number}", op=operation)
        node.input.extend([f"n{number - 1}"] if number else [])
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])
    for side in (graph.signature_def["serving_default"].inputs, graph.signature_def["serving_default"].outputs):
        side[key].CopyFrom(meta_graph_pb2.TensorInfo(name=f"n{len(operations or 'a') - 1}:0", dtype=dtype))
        side[key].tensor_shape.CopyFrom(shape)
    for filename in more.get("assets", ()):
        graph.asset_file_def.add(filename=filename)
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ("AnonymousMutableHashTable", "grows with requests"),
        ("LookupTableInsertV2", "grows with requests"),
        ("EagerPyFunc", "calls Python"),
        ("XlaLaunch", "needs XLA"),
        ("MatchingFiles", "reads or writes files"),
        ("TFRecordDatasetV2", "reads or writes files"),
        ("CreateSummaryFileWriter", "reads or writes files"),
        ("MyOwnOp", "not among TensorFlow's own"),
    ],
)
def test_an_operation_is_named_with_why_it_cannot_be(tmp_path, operation, words):
    (problem,) = check(written(tmp_path, "Placeholder", operation, "Identity")).problems
    assert problem.startswith(f"operation {operation} ")
    assert words in problem


def test_the_savers_operations_are_problems_only_where_a_signature_reaches_them(tmp_path):
    assert check(written(tmp_path, "Placeholder", "RestoreV2", "Identity")).problems == [
        "operation RestoreV2 reads or writes files when a signature is asked"
    ]
    saved = saved_model_pb2.SavedModel.FromString((written(tmp_path) / "saved_model.pb").read_bytes())
    saved.meta_graphs[0].graph_def.node.add(name="save", op="SaveV2")
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert check(tmp_path).problems == []


def test_an_operation_inside_a_function_is_found_and_a_function_that_calls_itself_ends(tmp_path):
    saved = saved_model_pb2.SavedModel.FromString((written(tmp_path, "f") / "saved_model.pb").read_bytes())
    function = saved.meta_graphs[0].graph_def.library.function.add()
    function.signature.name = "f"
    function.node_def.add(name="again", op="f")
    function.node_def.add(name="write", op="SaveV2")
    function.node_def.add(name="call", op="PartitionedCall").attr["_XlaMustCompile"].b = True
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    assert check(tmp_path).problems == [
        "operation SaveV2 reads or writes files when a signature is asked",
        "call call must be compiled by XLA, which the stock server has disabled",
    ]


def test_an_operation_younger_than_the_server_is_a_problem(tmp_path):
    written(tmp_path, "Placeholder", "DecodeWebP")
    assert check(tmp_path).problems == check(tmp_path, "2.20").problems == check(tmp_path, "2.21.1").problems == []
    assert check(tmp_path, "2.19.1").problems == [
        "operation DecodeWebP came with TensorFlow 2.20, which a server 2.19 does not know"
    ]


def test_tf_text_is_no_problem_and_is_told(tmp_path):
    found = check(written(tmp_path, "Placeholder", "FastWordpieceTokenizeWithOffsets"))
    assert found.problems == []
    assert "of TF-Text, which the stock server has in its own version: FastWordpiece" in found.report()


def test_a_file_that_is_no_asset_is_a_problem(tmp_path):
    for name in ("../../etc/passwd", "/etc/passwd", "a\\..\\b", ""):
        assert check(written(tmp_path, assets=[name])).problems == [
            f"asset {name!r} is not a file below the folder assets"
        ]
    found = check(written(tmp_path, "Placeholder", "InitializeTableFromTextFileV2", assets=["words.txt"]))
    assert found.problems == []
    assert "assets: words.txt" in found.report()
    (problem,) = check(written(tmp_path, "Placeholder", "InitializeTableFromTextFileV2")).problems
    assert problem.endswith("reads a file that is not among the assets")


def test_the_report_lists_every_operation(tmp_path):
    report = check(written(tmp_path, "Placeholder", "Identity", "Identity", "PyFunc")).report()
    assert "4 operations of 3 kinds\n  Identity=2, Placeholder=1, PyFunc=1\n" in report
    assert "XLA: none\nmutable tables: none\nPython: PyFunc\nfiles: none\n" in report


def test_what_is_no_dtype_is_named(tmp_path):
    problems = check(written(tmp_path, signature=("x", 9999, [-1]))).problems
    assert problems[0] == "input x of serving_default has a dtype that TensorFlow has not: 9999"


@hypothesis.settings(max_examples=50, deadline=None, database=None, derandomize=True)
@hypothesis.given(st.data())
def test_a_corrupted_file_is_read_or_refused_in_words(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "corrupted"
    folder.mkdir(exist_ok=True)
    whole = bytearray((written(folder, "Placeholder", "PyFunc", assets=["a"]) / "saved_model.pb").read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "saved_model.pb").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        assert check(folder).report()
    except ValueError as refused:
        assert "is not a SavedModel" in str(refused) or "holds no graph" in str(refused)


def test_what_is_no_saved_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has saved_model.pb, which is not in"):
        check(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff not a protobuf")
    with pytest.raises(ValueError, match="is not a SavedModel"):
        check(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no graph with the tag 'serve'"):
        check(tmp_path)
