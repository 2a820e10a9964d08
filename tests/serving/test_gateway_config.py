import re

import pytest

from serving.gateway_config import GatewayConfig, Key, digest, is_model_name, load_config, new_key

HASH = "ab" * 32


def test_a_file_and_flags_make_one_configuration(tmp_path):
    file = tmp_path / "gateway.yaml"
    file.write_text(f"upstream: http://there:7\nmodels: [half]\nkeys:\n  - {{name: a, sha256: {HASH}, burst: 3}}\n")
    made = load_config(file, port=8111, upstream=None)
    assert made == GatewayConfig("http://there:7", ("half",), (Key("a", HASH, burst=3),), port=8111)


def test_a_new_key_is_let_in_by_the_lines_beside_it(tmp_path):
    key, lines = new_key("alice")
    assert key not in lines
    (tmp_path / "keys.yaml").write_text(lines)
    (known,) = load_config(tmp_path / "keys.yaml", models=["half"]).keys
    assert (known.name, known.sha256) == ("alice", digest(key))
    assert new_key("alice")[0] != key


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("keys: 7", "keys is a list"),
        ("- a", "needs a mapping of names to values, got a list"),
        ("a: [", "is not YAML"),
        ("model: [half]", "has no 'model', only upstream, models"),
        ("models: half", "models is a list of names, got 'half'"),
        ("models: []", "needs the names of the models"),
        ("models: [half]", "needs either keys or anonymous"),
        (f"{{models: [half], anonymous: true, keys: [{{name: a, sha256: {HASH}}}]}}", "either keys or anonymous"),
        ("models: ['../half']\nanonymous: true", "a model's name has no / : "),
        ("models: ['..']\nanonymous: true", "is not . or .., got '..'"),
        ("models: [7]\nanonymous: true", "got 7"),
        ("{models: [half], anonymous: true, upstream: 'ftp://there'}", "got 'ftp://there'"),
        ("{models: [half], anonymous: true, port: 0}", "port is a whole number between 1 and 65535, got 0"),
        ("{models: [half], anonymous: true, port: 8080.5}", "port is a whole number between 1 and 65535, got 8080.5"),
        ("{models: [half], anonymous: true, max_concurrent: 1.5}", "max_concurrent is a whole number"),
        ("{models: [half], anonymous: true, host: 5}", "host is a text, got 5"),
        ("{models: [half], anonymous: true, certificate: 5, private_key: 5}", "certificate is a text, got 5"),
        ("{models: [half], anonymous: 5}", "anonymous is true or false, got 5"),
        ("{models: [half], anonymous: true, upstream: 'http://h:99999'}", "upstream is http://HOST:PORT or"),
        ("{models: [half], anonymous: true, burst: true}", "burst is a whole number between 1 and"),
        ("{models: [half], anonymous: true, timeout_seconds: .nan}", "timeout_seconds is a number"),
        ("{models: [half], anonymous: true, certificate: a.pem}", "TLS needs both"),
        ("{models: [half], keys: [{name: a, sha256: secret}]}", "sha256 has 64 hexadecimal digits"),
        ("{models: [half], keys: [{name: a b, sha256: x}]}", "a key's name has"),
        ("{models: [half], keys: [{name: a}]}", "missing 1 required positional argument: 'sha256'"),
        (f"{{models: [half], keys: [{{name: a, sha256: {HASH}}}, {{name: b, sha256: {HASH}}}]}}", "the same sha256"),
    ],
)
def test_what_is_wrong_is_named_and_no_key_is_told(tmp_path, given, words):
    (tmp_path / "gateway.yaml").write_text(given)
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        load_config(tmp_path / "gateway.yaml")
    assert "secret" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nix"):
        load_config(tmp_path / "nix.yaml")


def test_a_models_name_is_one_step_of_a_path():
    assert all(map(is_model_name, ["half", "b model", "zwölf", "a.b", "...", "-"]))
    assert not any(map(is_model_name, ["", ".", "..", "a/b", "a:b", "a\\b", "a\nb", "a\0", 7, None]))
