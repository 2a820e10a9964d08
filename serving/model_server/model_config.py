"""A ModelServerConfig in plain Python: which models are served, from where, which versions, under which labels."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from google.protobuf import message, text_format
from tensorflow_serving.config import file_system_storage_path_source_pb2, model_server_config_pb2

from serving.model_server.errors import Code, StatusError, invalid

PLATFORM = "tensorflow"


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions present are wanted: the `latest` n, `all`, or a `specific` set."""

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    versions: frozenset[int] = frozenset()

    def wanted(self, present: set[int]) -> set[int]:
        if self.kind == "all":
            return set(present)
        if self.kind == "specific":
            return present & self.versions
        return set(sorted(present)[-self.count :])


@dataclass(frozen=True)
class ModelSettings:
    """One entry of the server's configuration."""

    name: str
    base_path: Path
    policy: VersionPolicy = VersionPolicy()
    labels: dict[str, int] = field(default_factory=dict)


def parse_text(path: Path, config: message.Message) -> None:
    """Reads a text protobuf into `config`. Raises: StatusError NOT_FOUND without the file, INVALID_ARGUMENT."""
    try:
        text_format.Parse(path.read_text(), config)
    except OSError as error:
        raise StatusError(Code.NOT_FOUND, f"{path} cannot be read: {error.strerror}.") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        kind = config.DESCRIPTOR.full_name
        raise invalid(f"Invalid protobuf file: '{path}': Error parsing text-format {kind}: {error}") from error


def read_models(config: model_server_config_pb2.ModelServerConfig) -> list[ModelSettings]:
    """The models of a ModelServerConfig; none for an empty one.

    Raises:
        StatusError: INVALID_ARGUMENT for an entry that cannot be followed, UNIMPLEMENTED for a custom_model_config.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise StatusError(Code.UNIMPLEMENTED, "a ModelServerConfig holds a model_config_list, got custom_model_config.")
    models = [_read_model(proto) for proto in config.model_config_list.config]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise invalid(f"Illegal to list model {name} multiple times in config list")
    return models


def check_model(model: ModelSettings) -> ModelSettings:
    """The model itself. Raises: StatusError INVALID_ARGUMENT for a name no path can hold."""
    if not model.name or "/" in model.name or ":" in model.name:
        raise invalid(f"a model's name is not empty and has no '/' or ':', got {model.name!r}.")
    return model


def _read_model(proto: model_server_config_pb2.ModelConfig) -> ModelSettings:
    _check_platform(proto)
    if proto.HasField("logging_config"):
        raise StatusError(
            Code.UNIMPLEMENTED, f"model {proto.name!r}: logging_config is not honoured: this server logs no requests."
        )
    if not os.path.isabs(proto.base_path):
        raise invalid(f"model {proto.name!r}: base_path is an absolute path, got {proto.base_path!r}.")
    policy = _policy(proto.name, proto.model_version_policy)
    return check_model(ModelSettings(proto.name, Path(proto.base_path), policy, dict(proto.version_labels)))


def _check_platform(proto: model_server_config_pb2.ModelConfig) -> None:
    if proto.model_type and proto.model_platform:
        raise invalid(f"model {proto.name!r}: Illegal setting both model_type (deprecated) and model_platform.")
    if not proto.model_type and not proto.model_platform:
        raise invalid(f"model {proto.name!r}: Illegal setting neither model_type (deprecated) nor model_platform.")
    tensorflow_type = model_server_config_pb2.ModelType.TENSORFLOW
    if proto.model_type not in (0, tensorflow_type) or proto.model_platform not in ("", PLATFORM):
        kind = proto.model_platform or model_server_config_pb2.ModelType.Name(proto.model_type)
        raise invalid(f'model {proto.name!r}: model_platform is "{PLATFORM}", got {kind!r}.')


def _policy(
    name: str, proto: file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy
) -> VersionPolicy:
    choice = proto.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy("all")
    if choice == "specific":
        if not proto.specific.versions:
            raise invalid(f"model {name!r}: a specific version policy names at least one version.")
        return VersionPolicy("specific", versions=frozenset(proto.specific.versions))
    return VersionPolicy("latest", count=proto.latest.num_versions or 1)
