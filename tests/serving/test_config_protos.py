import pytest
from google.protobuf import text_format

from serving.model_server import config_protos


def test_a_batching_parameters_file_of_the_documentation_is_read():
    text = """
    max_batch_size { value: 128 }
    batch_timeout_micros { value: 0 }
    max_enqueued_batches { value: 1000000 }
    num_batch_threads { value: 8 }
    thread_pool_name { value: "pool" }
    allowed_batch_sizes : 64
    allowed_batch_sizes : 128
    pad_variable_length_inputs: true
    """
    read = text_format.Parse(text, config_protos.BatchingParameters())
    assert (read.max_batch_size.value, list(read.allowed_batch_sizes)) == (128, [64, 128])
    assert read.HasField("batch_timeout_micros") and not read.HasField("max_execution_batch_size")


def test_the_other_messages_are_read():
    monitoring = text_format.Parse(
        'prometheus_config { enable: true, path: "/metrics" }', config_protos.MonitoringConfig()
    )
    assert (monitoring.prometheus_config.enable, monitoring.prometheus_config.path) == (True, "/metrics")
    ssl = text_format.Parse(
        'server_key: "k" server_cert: "c" custom_ca: "a" client_verify: true', config_protos.SSLConfig()
    )
    assert (ssl.server_key, ssl.server_cert, ssl.custom_ca, ssl.client_verify) == ("k", "c", "a", True)


def test_an_unknown_field_is_named():
    with pytest.raises(text_format.ParseError, match="max_size"):
        text_format.Parse("max_size { value: 3 }", config_protos.BatchingParameters())
