"""One version of one model, in a Session of its own: what TensorFlow Serving calls a servable."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import message, text_format
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2
from tensorflow.python.client import pywrap_tf_session

from serving.model_server import monitoring, xla
from serving.model_server.batching import PER_MODEL_FILE, Batcher, BatchingParameters, read_parameters
from serving.model_server.errors import Code, StatusError, as_status, invalid
from serving.model_server.signature import (
    DEFAULT_SIGNATURE,
    Signature,
    TensorSpec,
    check_feeds,
    check_filter,
    in_braces,
)

INIT_SIGNATURE = "__saved_model_init_op"
_HANDLES = (tf.resource, tf.variant)  # what stays within the graph
METHOD_NAMES = tuple(f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))


class LoadedVersion:
    """A SavedModel folder in a `tf.compat.v1.Session`, ready to be run from many threads at once.

    Args:
        path: the version folder, which holds `saved_model.pb` or `saved_model.pbtxt`.
        name: the model's name, for `model_spec` in answers.
        version: the version number, likewise.
        session_config: a ConfigProto, or None for TensorFlow's defaults.
        tags: the MetaGraph's tags.
        allow_xla: whether a signature may need XLA, which the stock server refuses to compile for.
        check_method_names: whether a signature is run only if its method_name is one of `METHOD_NAMES`.

    Raises:
        StatusError: NOT_FOUND without a SavedModel or a MetaGraph of these tags, DATA_LOSS for a file that does not
            parse, otherwise the code of the failing operation.
    """

    def __init__(
        self,
        path: Path,
        name: str = "",
        version: int = 0,
        session_config=None,
        tags=("serve",),
        allow_xla=False,
        check_method_names=False,
    ):
        self.path, self.name, self.version = Path(path), name, version
        self.check_method_names = check_method_names
        self._merging: tuple[Batcher, BatchingParameters] | None = None
        meta_graph = read_meta_graph(self.path, tags)
        self.signature_defs = dict(meta_graph.signature_def)
        try:
            self.signatures = {
                key: _signature(key, proto) for key, proto in self.signature_defs.items() if key != INIT_SIGNATURE
            }
            self._needs_xla = {} if allow_xla else self._find_xla(meta_graph.graph_def)
            self._session = _open_session(meta_graph, self.path, session_config)
        except Exception as error:
            raise as_status(error) from error
        self._known_ends: dict[tuple[str, tuple[str, ...]], Any] = {}

    def signature(self, name: str = "") -> Signature:
        """The signature of that name, `serving_default` for an empty one. Raises: StatusError FAILED_PRECONDITION."""
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f'Serving signature key "{name}" not found. Model {self.name!r} has {in_braces(self.signatures)}.',
            )
        return self.signatures[name]

    def run(
        self,
        signature: Signature,
        feeds: Mapping[str, np.ndarray],
        output_filter: tuple[str, ...] = (),
        deadline: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs one signature.

        Args:
            signature: one of this version's.
            feeds: input name -> array of the signature's dtype; any shape, strings as object arrays of bytes.
            output_filter: the outputs wanted; all of them when empty.
            deadline: on the clock of time.monotonic: a run that lasts longer is broken off; one that is merged with
                others is not begun later, and lasts as long as the latest of their deadlines allows.

        Returns:
            Output name -> array.

        Raises:
            StatusError: INVALID_ARGUMENT for missing, unknown or mistyped inputs and unknown outputs; otherwise
                the code of the operation that failed.
        """
        check_feeds(signature, feeds)
        check_filter(signature, output_filter)
        if self._needs_xla.get(signature.name):
            reason = f"signature {signature.name!r} needs it for {self._needs_xla[signature.name]}"
            raise StatusError(Code.INTERNAL, f"XLA compilation disabled: {reason}.")
        if self.check_method_names and signature.method_name not in METHOD_NAMES:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"Expected prediction signature method_name to be one of {in_braces(METHOD_NAMES)}. "
                f"Was: {signature.method_name}",
            )
        names = output_filter or tuple(signature.outputs)
        arguments = [feeds[name] for name in signature.inputs]
        try:
            if self._merging is None:
                results = self._call(signature, output_filter, arguments, deadline)
            else:
                batcher, batching = self._merging
                results = batcher.run(
                    (self, signature.name, output_filter),
                    batching,
                    lambda merged, latest: self._call(signature, output_filter, merged, latest),
                    arguments,
                    deadline,
                )
        except StatusError:
            raise
        except (TypeError, ValueError) as error:
            raise invalid(str(error)) from error
        except Exception as error:
            raise as_status(error) from error
        return dict(zip(names, results))

    def _call(
        self,
        signature: Signature,
        output_filter: tuple[str, ...],
        arguments: Sequence[np.ndarray],
        deadline: float | None = None,
    ) -> list:
        """One run of the session: the arrays of the inputs -> those of the outputs, in the signature's order."""
        started = time.perf_counter()
        names = output_filter or tuple(signature.outputs)
        inputs, outputs = self._ends(signature, names)
        options = _run_options(deadline)
        try:
            # Session.run goes here too, through Python that costs more than a small graph.
            results = self._session._call_tf_sessionrun(options, dict(zip(inputs, arguments)), outputs, [], None)
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)
        spent = monitoring.microseconds_since(started)
        monitoring.GRAPH_RUNS.add()
        monitoring.GRAPH_RUN_TIME.add(amount=spent)
        monitoring.RUNTIME_LATENCY.observe(spent, self.name, "Predict", "TF1")
        return [np.asarray(value, signature.outputs[name].dtype) for name, value in zip(names, results)]

    def merge_calls(self, batcher: Batcher, batching: BatchingParameters | None = None) -> None:
        """From now on calls are merged with each other.

        Args:
            batcher: who merges them.
            batching: how; None leaves it to `batching_params.pbtxt` in the folder, and without that nothing is merged.

        Raises:
            StatusError: INVALID_ARGUMENT for a `batching_params.pbtxt` that cannot be followed.
        """
        if batching is None and (self.path / PER_MODEL_FILE).is_file():
            batching = read_parameters(self.path / PER_MODEL_FILE)
        self._merging = (batcher, batching) if batching else None

    def close(self) -> None:
        """Frees the session. Only when no call is running in it."""
        self._known_ends.clear()
        self._session.close()

    def _find_xla(self, graph_def) -> dict[str, str]:
        return {
            name: xla.xla_needed_by(graph_def, [spec.tensor for spec in signature.outputs.values()])
            for name, signature in self.signatures.items()
        }

    def _ends(self, signature: Signature, names: tuple[str, ...]) -> tuple[list, list]:
        """The tensors of the inputs, and those of the outputs of these names, as the C interface calls them."""
        ends = self._known_ends.get((signature.name, names))
        if ends is None:
            graph = self._session.graph
            tensors = (
                [spec.tensor for spec in signature.inputs.values()],
                [signature.outputs[one].tensor for one in names],
            )
            for name, tensor in zip(names, map(graph.get_tensor_by_name, tensors[1])):
                if tensor.dtype in _HANDLES:  # NumPy would be given the bytes of a pointer
                    raise StatusError(Code.UNIMPLEMENTED, f"Output {name!r} is a {tensor.dtype.name}, no tensor.")
            ends = tuple([graph.get_tensor_by_name(one)._as_tf_output() for one in side] for side in tensors)
            self._known_ends[signature.name, names] = ends
        return ends


def _run_options(deadline: float | None) -> Any:
    """A buffer with RunOptions, which is to be deleted; None without a deadline."""
    if deadline is None:
        return None
    milliseconds = max(1, round(1000 * (deadline - time.monotonic())))  # 0 would be none
    options = config_pb2.RunOptions(timeout_in_ms=milliseconds)
    return pywrap_tf_session.TF_NewBufferFromString(options.SerializeToString())


def read_meta_graph(path: Path, tags=("serve",)) -> meta_graph_pb2.MetaGraphDef:
    """The MetaGraph of a SavedModel folder with exactly these tags; parses the protobuf and runs nothing."""
    saved_model = saved_model_pb2.SavedModel()
    try:
        if (path / "saved_model.pb").is_file():
            saved_model.ParseFromString((path / "saved_model.pb").read_bytes())
        elif (path / "saved_model.pbtxt").is_file():
            text_format.Parse((path / "saved_model.pbtxt").read_text(), saved_model)
        else:
            raise StatusError(Code.NOT_FOUND, f"A version folder needs saved_model.pb or saved_model.pbtxt: {path}")
    except (message.DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise StatusError(Code.DATA_LOSS, f"saved_model.pb does not parse in {path}: {error}") from error
    except OSError as error:
        raise StatusError(Code.INTERNAL, f"{path} cannot be read: {error}") from error
    for meta_graph in saved_model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == set(tags):
            return meta_graph
    found = [sorted(graph.meta_info_def.tags) for graph in saved_model.meta_graphs]
    raise StatusError(Code.NOT_FOUND, f"{path} needs a MetaGraph tagged {sorted(tags)}, has {found}.")


def _open_session(meta_graph: meta_graph_pb2.MetaGraphDef, path: Path, session_config) -> tf.compat.v1.Session:
    """Imports, restores and initialises as TensorFlow's C++ loader does: by the names in the MetaGraph."""
    graph_def = meta_graph.graph_def
    for node in graph_def.node:
        if node.op == "Placeholder":
            # Python checks a feed against the placeholder's static shape, TensorFlow Serving does not.
            node.attr["shape"].shape.CopyFrom(tf.TensorShape(None).as_proto())
            node.attr.pop("_output_shapes", None)
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(graph_def, name="")
    session = tf.compat.v1.Session(graph=graph, config=session_config)
    assets = {item.tensor_info.name: str(path / "assets" / item.filename) for item in meta_graph.asset_file_def}
    saver = meta_graph.saver_def
    if saver.restore_op_name and (path / "variables" / "variables.index").exists():
        filename = {saver.filename_tensor_name: str(path / "variables" / "variables")}
        session.run(saver.restore_op_name, {**assets, **filename})
    init_op = _init_op(meta_graph)
    if init_op:
        session.run(init_op, assets)
    graph.finalize()
    session._extend_graph()  # as Session.run does each time: nothing may have been run so far
    return session


def _init_op(meta_graph: meta_graph_pb2.MetaGraphDef) -> str:
    """The operation to run after restoring: TensorFlow 2 stores it as a signature, TensorFlow 1 as a collection."""
    if INIT_SIGNATURE in meta_graph.signature_def:
        return meta_graph.signature_def[INIT_SIGNATURE].outputs[INIT_SIGNATURE].name
    for key in ("saved_model_main_op", "legacy_init_op"):
        if key in meta_graph.collection_def and meta_graph.collection_def[key].node_list.value:
            return meta_graph.collection_def[key].node_list.value[0]
    return ""


def _signature(name: str, proto: meta_graph_pb2.SignatureDef) -> Signature:
    return Signature(
        name=name,
        method_name=proto.method_name,
        inputs={key: _spec(proto.inputs[key]) for key in sorted(proto.inputs)},
        outputs={key: _spec(proto.outputs[key]) for key in sorted(proto.outputs)},
        defaults={key: tf.make_ndarray(value) for key, value in proto.defaults.items()},
    )


def _spec(info: meta_graph_pb2.TensorInfo) -> TensorSpec:
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    # A sparse or ragged tensor has no name and no dtype of its own: a model that has one is loaded, and it is refused.
    kind = tf.as_dtype(info.dtype or tf.variant)
    return TensorSpec(info.name, np.dtype(np.void if kind in _HANDLES else kind.as_numpy_dtype), shape)
