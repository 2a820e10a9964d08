import pytest

from serving.model_server.errors import StatusError
from serving.model_server.grpc_options import channel_arguments, read_credentials


def test_channel_arguments_are_names_with_numbers_or_words():
    assert channel_arguments("grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb,a=-1") == {
        "grpc.max_connection_age_ms": 2000,
        "grpc.lb_policy_name": "grpclb",
        "a": -1,
    }
    assert channel_arguments("") == {}
    for text in ("grpc.age", "=3", "a=1,b"):
        with pytest.raises(StatusError, match="name=value,name=value, got"):
            channel_arguments(text)
    assert channel_arguments("a=--5,b=²") == {"a": "--5", "b": "²"}
    for text in ("a=2147483648", "a=" + "9" * 5000):
        with pytest.raises(StatusError, match="number has 32 bits, got 'a="):
            channel_arguments(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "server_key is a PEM text, got ''"),
        ('server_key: "-----BEGIN X"', "server_cert is a PEM text"),
        ('server_key: "-----BEGIN X" server_cert: "-----BEGIN X" client_verify: true', "needs a custom_ca"),
        ("keys: 3", "Error parsing text-format tensorflow.serving.SSLConfig"),
    ],
)
def test_a_wrong_tls_configuration_is_refused_with_what_is_missing(tmp_path, text, words):
    (tmp_path / "ssl").write_text(text)
    with pytest.raises(StatusError, match=words):
        read_credentials(tmp_path / "ssl")
