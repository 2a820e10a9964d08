"""What the gateway is told: where the server is, which models, whose keys, and the limits; from YAML or flags."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml


@dataclasses.dataclass(frozen=True)
class Key:
    """Somebody who may ask.

    Args:
        name: stands in the logs.
        sha256: of the key, 64 hexadecimal digits. Keys are random (`new_key`), so a slow hash would add nothing.
        requests_per_second: the rate that the key's bucket is filled at.
        burst: the size of the bucket: how many requests may come at once.
    """

    name: str
    sha256: str
    requests_per_second: float = 10.0
    burst: int = 20

    def __post_init__(self):
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.@-]{1,64}", self.name):
            raise ValueError(f"a key's name has 1 to 64 letters, digits or . @ _ -, got {self.name!r}.")
        if not isinstance(self.sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"key {self.name}: sha256 has 64 hexadecimal digits in lower case, not the key itself.")
        _in_range(f"key {self.name}: requests_per_second", self.requests_per_second, 1e-3, 1e6)
        _in_range(f"key {self.name}: burst", self.burst, 1, 10**6, int)


@dataclasses.dataclass(frozen=True)
class GatewayConfig:
    """The gateway's configuration.

    Args:
        upstream: the REST address of a TensorFlow Serving, such as http://127.0.0.1:8501.
        models: the names that are let through. TensorFlow Serving cannot be asked for a list.
        keys: who may ask; empty only with `anonymous`.
        anonymous: asks need no key; all of them share one bucket, of requests_per_second and burst.
        requests_per_second: of the bucket of `anonymous`.
        burst: of the bucket of `anonymous`.
        host: the address to listen on.
        port: the port to listen on.
        certificate: PEM file of the TLS certificate chain; none: plain HTTP.
        private_key: PEM file of its key.
        max_body_bytes: the largest request.
        max_answer_bytes: the largest answer that is passed on.
        max_concurrent: requests worked on at once; one more is answered 503. Memory stays below this number times
            (max_body_bytes + max_answer_bytes).
        timeout_seconds: for a request's body to arrive, and again for the server to answer.

    Raises:
        ValueError: a value that cannot be.
    """

    upstream: str = "http://127.0.0.1:8501"
    models: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    anonymous: bool = False
    requests_per_second: float = 10.0
    burst: int = 20
    host: str = "127.0.0.1"
    port: int = 8080
    certificate: str | None = None
    private_key: str | None = None
    max_body_bytes: int = 4 * 2**20
    max_answer_bytes: int = 16 * 2**20
    max_concurrent: int = 32
    timeout_seconds: float = 60.0

    def __post_init__(self):
        if not _is_address(str(self.upstream)):
            raise ValueError(f"upstream is http://HOST:PORT or https://HOST:PORT, got {self.upstream!r}.")
        if not self.models:
            raise ValueError("the gateway needs the names of the models it lets through, got none.")
        for name in self.models:
            if not is_model_name(name):
                raise ValueError(f"a model's name has no / : \\ or control character and is not . or .., got {name!r}.")
        for name, kinds in (("host", str), ("certificate", str | None), ("private_key", str | None)):
            if not isinstance(getattr(self, name), kinds):
                raise ValueError(f"{name} is a text, got {getattr(self, name)!r}.")
        if not isinstance(self.anonymous, bool):
            raise ValueError(f"anonymous is true or false, got {self.anonymous!r}.")
        if bool(self.keys) == self.anonymous:
            raise ValueError("the gateway needs either keys or anonymous: true; make a key with --new_key NAME.")
        for attribute in ("name", "sha256"):
            values = [getattr(key, attribute) for key in self.keys]
            if len(set(values)) != len(values):
                raise ValueError(f"two keys have the same {attribute}.")
        if bool(self.certificate) != bool(self.private_key):
            raise ValueError("TLS needs both certificate and private_key.")
        _in_range("port", self.port, 1, 65535, int)
        for name in ("max_body_bytes", "max_answer_bytes", "max_concurrent", "burst"):
            _in_range(name, getattr(self, name), 1, 2**31 - 1, int)
        _in_range("requests_per_second", self.requests_per_second, 1e-3, 1e6)
        _in_range("timeout_seconds", self.timeout_seconds, 1e-3, 86400)


def load_config(path: str | Path | None, **flags: Any) -> GatewayConfig:
    """The configuration of a YAML file, with what the flags say in its place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML mapping, or a name or value is wrong.
    """
    given: Any = {}
    if path is not None:
        try:
            given = yaml.safe_load(Path(path).read_text("utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if not isinstance(given, dict):
            raise ValueError(f"{path} needs a mapping of names to values, got a {type(given).__name__}.")
    given |= {name: value for name, value in flags.items() if value is not None}
    keys = given.get("keys") or ()
    if not isinstance(keys, list | tuple) or not all(isinstance(key, dict) for key in keys):
        raise ValueError("keys is a list of mappings with name and sha256.")
    models = given.get("models") or ()
    if not isinstance(models, list | tuple):
        raise ValueError(f"models is a list of names, got {models!r}.")
    made = tuple(_make(Key, key) for key in keys)
    return _make(GatewayConfig, {**given, "keys": made, "models": tuple(models)})


def new_key(name: str) -> tuple[str, str]:
    """A new random key of 256 bits, and the lines that let it in."""
    key = secrets.token_urlsafe(32)
    return key, f"keys:\n  - name: {Key(name, digest(key)).name}\n    sha256: {digest(key)}\n"


def digest(key: str) -> str:
    """The SHA-256 of a key, in hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def is_model_name(name: Any) -> bool:
    """Whether it is one step of a path, and no step upwards."""
    return (
        isinstance(name, str) and re.fullmatch(r"[^/:\\\x00-\x1f\x7f]+", name) is not None and name not in (".", "..")
    )


def _make(kind: Any, given: dict) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            raise ValueError(f"the gateway's configuration has no {name!r}, only {', '.join(known)}.")
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"the gateway's configuration: {error}") from error


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535, or brackets without an IPv6 address
        return False
    return parts.scheme in ("http", "https") and has_host and not parts.path.strip("/") and not parts.query


def _in_range(name: str, value: Any, low: float, high: float, kind: type = float) -> None:
    is_kind = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not is_kind or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} is {what} between {low:g} and {high:g}, got {value!r}.")
