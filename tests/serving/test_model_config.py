import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.model_server.errors import Code, StatusError
from serving.model_server.model_config import VersionPolicy, parse_text, read_models


def models_of(text):
    return read_models(text_format.Parse(text, model_server_config_pb2.ModelServerConfig()))


def test_policies_choose_versions():
    present = {2, 3, 5, 7}
    assert VersionPolicy().wanted(present) == {7}
    assert VersionPolicy("latest", count=3).wanted(present) == {3, 5, 7}
    assert VersionPolicy("all").wanted(present) == present
    assert VersionPolicy("specific", versions=frozenset({3, 11})).wanted(present) == {3}
    assert VersionPolicy("latest").wanted(set()) == set()


def test_a_configuration_names_models_policies_and_labels(tmp_path):
    first, second, third = models_of(
        f"""model_config_list {{
          config {{ name: "a" base_path: "{tmp_path}" model_platform: "tensorflow"
                    model_version_policy {{ specific {{ versions: 2 versions: 3 }} }}
                    version_labels {{ key: "stable" value: 2 }} }}
          config: {{ name: "b", base_path: "{tmp_path}", model_platform: "tensorflow",
                     model_version_policy {{ latest {{ num_versions: 5 }} }} }}
          config {{ name: "c" base_path: "{tmp_path}" model_type: TENSORFLOW model_version_policy {{ all {{}} }} }}
        }}"""
    )
    assert first.policy == VersionPolicy("specific", versions=frozenset({2, 3}))
    assert (first.labels, second.labels) == ({"stable": 2}, {})
    assert second.policy == VersionPolicy("latest", count=5)
    assert third.policy == VersionPolicy("all")


def test_an_empty_configuration_names_no_models():
    assert models_of("") == models_of("model_config_list {}") == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('base_path: "half" model_platform: "tensorflow"', "absolute path, got 'half'"),
        ('name: "a/b" base_path: "/" model_platform: "tensorflow"', "has no '/' or ':', got 'a/b'"),
        ('name: "" base_path: "/" model_platform: "tensorflow"', "not empty"),
        ('base_path: "/"', "neither model_type"),
        ('base_path: "/" model_platform: "caffe"', "got 'caffe'"),
        ('base_path: "/" model_type: OTHER', "got 'OTHER'"),
        ('base_path: "/" model_type: TENSORFLOW model_platform: "tensorflow"', "both model_type"),
        (
            'base_path: "/" model_platform: "tensorflow" model_version_policy { specific {} }',
            "names at least one version",
        ),
        ('base_path: "/" model_platform: "tensorflow" logging_config {}', "logging_config is not honoured"),
    ],
)
def test_a_wrong_entry_is_refused_with_what_it_says(entry, words):
    name = "" if entry.startswith("name") else 'name: "a" '
    with pytest.raises(StatusError) as refused:
        models_of(f"model_config_list {{ config {{ {name}{entry} }} }}")
    assert words in refused.value.message


def test_a_name_listed_twice_and_a_custom_configuration_are_refused():
    entry = 'config { name: "a" base_path: "/" model_platform: "tensorflow" }'
    with pytest.raises(StatusError, match="list model a multiple times") as refused:
        models_of(f"model_config_list {{ {entry} {entry} }}")
    assert refused.value.code == Code.INVALID_ARGUMENT
    with pytest.raises(StatusError, match="got custom_model_config") as refused:
        models_of('custom_model_config { type_url: "x" }')
    assert refused.value.code == Code.UNIMPLEMENTED


def test_a_text_protobuf_that_is_missing_or_wrong_is_named(tmp_path):
    config = model_server_config_pb2.ModelServerConfig()
    with pytest.raises(StatusError, match="nix cannot be read: No such file") as refused:
        parse_text(tmp_path / "nix", config)
    assert refused.value.code == Code.NOT_FOUND
    for content in (b"nonsense", b"\xff\xfe"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(StatusError, match=f"Invalid protobuf file: '{tmp_path}/bad'") as refused:
            parse_text(tmp_path / "bad", config)
        assert "Error parsing text-format tensorflow.serving.ModelServerConfig: " in refused.value.message
