"""What is written is read back by the embedded server's own readers."""

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving import server_configs
from serving.model_server import config_protos, flags, monitoring
from serving.model_server.batching import read_parameters
from serving.model_server.model_config import parse_text


def test_the_models_are_read_back_by_the_servers_own_proto():
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(server_configs.model_config(["a", 'b "model"\\'], "/some where"), config)
    entries = config.model_config_list.config
    assert [entry.name for entry in entries] == ["a", 'b "model"\\']
    assert [entry.base_path for entry in entries] == ["/some where/a", '/some where/b "model"\\']
    assert {entry.model_platform for entry in entries} == {"tensorflow"}


def test_batching_merges_calls_and_divides_none(tmp_path):
    server_configs.write_configs(tmp_path, ["a"], "/models", enable_batching=True)
    read = read_parameters(tmp_path / server_configs.BATCHING)
    assert (read.limit, read.enable_large_batch_splitting) == (1024, False)
    assert read.batch_timeout_micros == 1000


def test_the_metrics_are_where_the_server_is_asked_to_put_them(tmp_path):
    server_configs.write_configs(tmp_path, ["a"], "/models")
    config = config_protos.MonitoringConfig()
    parse_text(tmp_path / server_configs.MONITORING, config)
    assert config.prometheus_config.enable
    assert config.prometheus_config.path == server_configs.METRICS_PATH == monitoring.DEFAULT_PATH


@pytest.mark.parametrize("enable_batching", [False, True])
def test_every_flag_is_one_that_the_server_has_and_names_a_file_that_is_written(tmp_path, enable_batching):
    server_configs.write_configs(tmp_path, ["a"], "/models", enable_batching)
    named = dict(flag.removeprefix("--").split("=") for flag in server_configs.flags(tmp_path, enable_batching))
    assert named.keys() <= flags.FLAGS.keys()
    files = {path for name, path in named.items() if name.endswith("_file")}
    assert files == {str(path) for path in tmp_path.iterdir()}
