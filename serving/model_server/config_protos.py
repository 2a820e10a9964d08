"""The messages of TensorFlow Serving's configuration files that its Python package leaves out.

Each is built from its fields, so that a file is read by protobuf's own text parser, with its own complaints.
"""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_PACKAGE = "tensorflow.serving"
_KINDS = {
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
}

# Message -> field -> type. A wrapper (Int64Value) tells "not given" from 0; in text it is written { value: 3 }.
_MESSAGES = {
    "BatchingParameters": {
        "max_batch_size": "Int64Value",
        "batch_timeout_micros": "Int64Value",
        "max_enqueued_batches": "Int64Value",
        "num_batch_threads": "Int64Value",
        "thread_pool_name": "StringValue",
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
        "enable_large_batch_splitting": "BoolValue",
        "max_execution_batch_size": "Int64Value",
    },
    "SSLConfig": {"server_key": "string", "server_cert": "string", "custom_ca": "string", "client_verify": "bool"},
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
}


def _build() -> dict[str, type]:
    # In a pool of its own: the real descriptors, should a later package bring them, stay what they are.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="model_server_configs.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            label = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
            if kind.startswith("repeated "):
                label, kind = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED, kind.removeprefix("repeated ")
            proto = message.field.add(name=field, number=number, label=label)
            if kind in _KINDS:
                proto.type = _KINDS[kind]
            else:
                package = "google.protobuf" if kind.endswith("Value") else _PACKAGE
                proto.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                proto.type_name = f".{package}.{kind}"
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


_CLASSES = _build()
BatchingParameters = _CLASSES["BatchingParameters"]
SSLConfig = _CLASSES["SSLConfig"]
MonitoringConfig = _CLASSES["MonitoringConfig"]
