import pytest
import tensorflow as tf

from serving.model_server import flags
from serving.model_server.model_config import VersionPolicy


@pytest.fixture
def base(tmp_path):
    (tmp_path / "half").mkdir()
    return tmp_path / "half"


def test_defaults_are_those_of_the_real_server():
    values = flags.parse_flags([])
    assert (values["port"], values["rest_api_port"], values["model_name"]) == (8500, 0, "default")
    assert values["file_system_poll_wait_seconds"] == 1
    assert values["rest_api_timeout_in_ms"] == 30000


def test_both_ways_of_writing_a_flag_are_read():
    values = flags.parse_flags(
        ["--port=2357", "-rest_api_port", "1113", "--enable_model_warmup=false", "--model_name", "m"]
    )
    assert (values["port"], values["rest_api_port"], values["model_name"]) == (2357, 1113, "m")
    assert values["enable_model_warmup"] is False
    values = flags.parse_flags(["--enable_serialization_as_tensor_content", "--port", "7"])
    assert (values["enable_serialization_as_tensor_content"], values["port"]) == (True, 7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--colour=red"], "unknown argument: --colour"),
        (["half"], "arguments are flags, --name=value, got 'half'"),
        (["--"], "got '--'"),
        (["--port=http"], "--port is a whole number, got 'http'"),
        (["--port"], "--port needs a value"),
        (["--port=70000"], "between 0 and 65535, got 70000"),
        (["--port=7", "--rest_api_port=7"], "differ, got 7"),
        (["--port=0"], "one of --port, --rest_api_port and --grpc_socket_path"),
        (["--grpc_max_threads=0"], "--grpc_max_threads is at least 1, got 0"),
        (["--max_num_load_retries=-1"], "--max_num_load_retries is at least 0, got -1"),
        (["--enable_model_warmup=perhaps"], "--enable_model_warmup is true or false, got 'perhaps'"),
        (
            ["--use_alts_credentials"],
            "--use_alts_credentials=true is not honoured: ALTS",
        ),
        (["--enable_profiler=true"], "--enable_profiler=true is not honoured: this server has no profiler"),
        (["--prefer_tflite_model"], "not TensorFlow Lite models"),
        (["--monitoring_config_file=x"], "--monitoring_config_file needs --rest_api_port"),
        (["--grpc_channel_arguments=age"], "--grpc_channel_arguments: channel arguments are name=value"),
        (["--tensorflow_intra_op_parallelism=2147483648"], "--tensorflow_intra_op_parallelism is a whole number of 32"),
        (
            [f"--tensorflow_{kind}_parallelism=3" for kind in ("session", "intra_op", "inter_op")],
            "got all: --tensorflow",
        ),
    ],
)
def test_a_wrong_flag_is_refused_by_name(arguments, words):
    with pytest.raises(flags.UsageError) as refused:
        flags.parse_flags(arguments)
    assert words in str(refused.value)


def test_what_is_not_honoured_may_be_given_its_default():
    assert "use_alts_credentials" not in flags.parse_flags(["--use_alts_credentials=false", "--mixed_precision="])


def test_batching_parameters_come_from_their_file_and_only_with_batching(tmp_path):
    file = tmp_path / "batching"
    file.write_text("max_batch_size { value: 7 }")
    with_file = flags.parse_flags(["--enable_batching", f"--batching_parameters_file={file}"])
    assert flags.batching_from_flags(with_file).max_batch_size == 7
    assert flags.batching_from_flags(flags.parse_flags(["--enable_batching"])).max_batch_size == 1000
    assert flags.batching_from_flags(flags.parse_flags([])) is None
    with pytest.raises(flags.UsageError, match="is set without setting --enable_batching"):
        flags.batching_from_flags(flags.parse_flags([f"--batching_parameters_file={file}"]))
    file.write_text("max_batch_size: 7")
    with pytest.raises(flags.UsageError, match=f"Invalid protobuf file: '{file}'"):
        flags.batching_from_flags(with_file)


def test_one_model_comes_from_its_name_and_base_path(base):
    (model,) = flags.models_from_flags(flags.parse_flags([f"--model_base_path={base}", "--model_name=half"]))
    assert (model.name, model.base_path, model.policy) == ("half", base, VersionPolicy())


def test_a_configuration_file_names_models(base, tmp_path):
    config = tmp_path / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "a" base_path: "{base}" model_platform: "tensorflow" }} }}'
    )
    (model,) = flags.models_from_flags(flags.parse_flags([f"--model_config_file={config}", "--model_name=unused"]))
    assert (model.name, model.base_path) == ("a", base)
    config.write_text("nonsense")
    with pytest.raises(
        flags.UsageError, match=f"Invalid protobuf file: '{config}': Error parsing text-format tensorflow"
    ):
        flags.read_model_config(config)


def test_a_missing_configuration_or_model_is_named(tmp_path):
    with pytest.raises(flags.UsageError, match="cannot be read: No such file"):
        flags.read_model_config(tmp_path / "nix")
    with pytest.raises(flags.UsageError, match="a model is needed"):
        flags.models_from_flags(flags.parse_flags([]))


def test_help_names_every_flag():
    for name in [*flags.FLAGS, *flags.NOT_HONOURED]:
        assert f"--{name}" in flags.help_text()


def test_the_version_is_that_of_the_server_and_of_tensorflow():
    first, second = flags.version_text().splitlines()
    assert first.startswith("TensorFlow ModelServer: keras-seq ")
    assert second == f"TensorFlow Library: {tf.__version__}"
