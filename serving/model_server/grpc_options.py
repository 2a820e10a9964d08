"""What the flags say about the gRPC port: TLS from an SSLConfig, and channel arguments."""

from __future__ import annotations

import re
from pathlib import Path

import grpc

from serving.model_server import config_protos
from serving.model_server.errors import invalid
from serving.model_server.model_config import parse_text


def read_credentials(path: Path) -> grpc.ServerCredentials:
    """The credentials of an SSLConfig, whose fields hold PEM texts.

    Raises:
        StatusError: NOT_FOUND without the file, INVALID_ARGUMENT without a key and a certificate, or for clients to be
            verified without an authority that signs them.
    """
    config = config_protos.SSLConfig()
    parse_text(path, config)
    for name in ("server_key", "server_cert"):
        if "-----BEGIN " not in getattr(config, name):
            raise invalid(f"{path}: {name} is a PEM text, got {getattr(config, name)[:20]!r}.")
    if config.client_verify and not config.custom_ca:
        raise invalid(f"{path}: client_verify needs a custom_ca, which signs the clients' certificates.")
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        config.custom_ca.encode() or None,
        config.client_verify,
    )


def channel_arguments(text: str) -> dict[str, int | str]:
    """Name -> value of `name=value,name=value`; a value that is a whole number is one.

    Raises:
        StatusError: INVALID_ARGUMENT for a part that is no name=value, or a number of more than 32 bits.
    """
    arguments: dict[str, int | str] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise invalid(f"channel arguments are name=value,name=value, got {part!r}.")
        arguments[name] = value
        if re.fullmatch("-?[0-9]+", value):
            if len(value) > 11 or not -(2**31) <= int(value) < 2**31:
                raise invalid(f"a channel argument's number has 32 bits, got {part!r}.")
            arguments[name] = int(value)
    return arguments
