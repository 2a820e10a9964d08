"""Which versions of which models are served: found by polling, loaded beside, switched, drained, unloaded.

Nothing here knows HTTP or gRPC: the two edges ask `ModelManager.use` for a loaded version and `status` for the states.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tensorflow_serving.config import model_server_config_pb2

from serving.model_server import monitoring
from serving.model_server.batching import Batcher, BatchingParameters
from serving.model_server.errors import Code, StatusError, as_status, invalid
from serving.model_server.loaded import LoadedVersion
from serving.model_server.model_config import ModelSettings, read_models
from serving.model_server.signature import in_braces

logger = logging.getLogger("serving.model_server")

State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
MAX_VERSION = 2**63 - 1


@dataclass
class VersionRecord:
    """A version's life so far. `users` counts the calls running in it; `stamp` is the folder as last tried."""

    version: int
    path: Path
    state: State = "START"
    error: StatusError | None = None
    loaded: LoadedVersion | None = None
    users: int = 0
    failures: int = 0
    retry_at: float = 0.0
    stamp: tuple = ()


class ModelManager:
    """Keeps the wanted versions of every model loaded.

    A new version is loaded and warmed up beside the old one, then answers; the old one finishes its calls and is freed.
    A version that does not load leaves the old one serving; where none was serving yet, the newest version that does
    load is served. It is tried again when its folder changes, or after `retry_seconds`, at most `max_retries` times.

    Args:
        models: the models to serve.
        poll_seconds: pause between two looks at the base paths; 0 looks once, at the start.
        session_config: a ConfigProto for every session, or None.
        warm_up: how often each warm-up request is run; 0 for none.
        max_retries: attempts after the first.
        retry_seconds: pause between two attempts at an unchanged folder.
        tags: the MetaGraph's tags.
        allow_xla: whether signatures that need XLA are run.
        check_method_names: whether a signature's method_name has to be one of TensorFlow Serving's.
        batcher: merges calls, or None.
        batching: how, or None to leave it to each version's folder.
        early_labels: whether a label may name a version that is not available: "never"; "new", if it is not one that
            is moved; "any".
    """

    def __init__(
        self,
        models: list[ModelSettings],
        poll_seconds: float = 1.0,
        session_config=None,
        warm_up: int = 1,
        max_retries: int = 5,
        retry_seconds: float = 60.0,
        tags: tuple[str, ...] = ("serve",),
        allow_xla: bool = False,
        check_method_names: bool = False,
        batcher: Batcher | None = None,
        batching: BatchingParameters | None = None,
        early_labels: Literal["never", "new", "any"] = "never",
    ):
        self.models = {model.name: model for model in models}
        self._poll_seconds, self._session_config, self._warm_up = poll_seconds, session_config, warm_up
        self._max_retries, self._retry_seconds, self._tags = max_retries, retry_seconds, tags
        self._allow_xla, self._check_method_names = allow_xla, check_method_names
        self._batcher, self._batching = batcher, batching
        self._early_labels = early_labels
        self._labels: dict[str, dict[str, int]] = {}
        self._records: dict[str, dict[int, VersionRecord]] = {name: {} for name in self.models}
        self._lock = threading.Lock()  # guards the fields above, held for moments
        self._changing = threading.Lock()  # held by who looks, loads or reconfigures: one at a time
        self._stopping = threading.Event()
        self._poller: threading.Thread | None = None

    def start(self) -> None:
        """Loads what is there, then keeps looking in a thread of its own.

        Raises:
            StatusError: FAILED_PRECONDITION for a label of a version that is not available, unless that is allowed.
        """
        self._labels = self._read_labels(list(self.models.values()))
        self.poll()
        if self._poll_seconds > 0:
            self._poller = threading.Thread(target=self._keep_polling, name="poll-models", daemon=True)
            self._poller.start()

    def stop(self) -> None:
        """Stops looking and frees every version that no call is using."""
        self._stopping.set()
        if self._poller is not None:
            self._poller.join()
        for records in self._records.values():
            for record in records.values():
                self._retire(record)

    @contextmanager
    def use(self, name: str, version: int | None = None, label: str | None = None) -> Iterator[LoadedVersion]:
        """A loaded version that stays loaded until the block ends: the highest available one, or the one asked for.

        Raises:
            StatusError: NOT_FOUND for a model or version that is not served, INVALID_ARGUMENT for an unknown label.
        """
        with self._lock:
            record = self._find(name, version, label)
            record.users += 1
        try:
            assert record.loaded is not None
            yield record.loaded
        finally:
            with self._lock:
                record.users -= 1

    def status(self, name: str, version: int | None = None, label: str | None = None) -> list[VersionRecord]:
        """The records of a model, newest version first. Raises: StatusError NOT_FOUND when there is none."""
        with self._lock:
            if label is not None:
                version = self._label(name, label)
            records = self._records.get(name, {})
            if version is not None and version not in records:
                raise StatusError(Code.NOT_FOUND, f"Could not find version {version} of model {name}")
            if not records:
                raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
            chosen = [version] if version is not None else sorted(records, reverse=True)
            return [records[number] for number in chosen]

    def reload(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Serves what `config` lists from now on: models are added, changed and removed, labels moved.

        Returns once every added model has an available version. Nothing changes where the configuration is refused.

        Raises:
            StatusError: FAILED_PRECONDITION unless it holds a model_config_list, or for a label of a version that is
                not available; INVALID_ARGUMENT for a wrong entry; UNKNOWN for an added model that does not load.
        """
        if config.WhichOneof("config") != "model_config_list":
            raise StatusError(
                Code.FAILED_PRECONDITION,
                "Cannot transition to requested config. It is only legal to transition from one ModelConfigList to "
                f"another, got {config.WhichOneof('config') or 'an empty ModelServerConfig'}.",
            )
        models = read_models(config)
        with self._changing:
            labels = self._read_labels(models)
            added = [model.name for model in models if model.name not in self.models]
            with self._lock:
                self._labels = labels
                self.models = {model.name: model for model in models}
                for name in added:
                    self._records.setdefault(name, {})
            self._poll()
            missing = [name for name in added if not self._available(name)]
        if missing:
            raise StatusError(Code.UNKNOWN, f"Some models did not become available: {in_braces(missing)}")

    def poll(self) -> None:
        """One look at every base path."""
        with self._changing:
            self._poll()

    def _poll(self) -> None:
        for name in self._records.keys() - self.models.keys():
            for record in self._records[name].values():
                self._retire(record)
        for model in self.models.values():
            try:
                self._poll_model(model)
            except OSError as error:
                # A share that is away for a moment must not take down what already serves.
                logger.warning("model %s: base path %s cannot be read: %s", model.name, model.base_path, error)

    def _keep_polling(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            try:
                self.poll()
            except Exception:
                logger.exception("polling failed")

    def _poll_model(self, model: ModelSettings) -> None:
        present, records = find_versions(model.base_path), self._records[model.name]
        wanted = model.policy.wanted(set(present))
        for version in sorted(wanted, reverse=True):
            self._ensure(model, records, version, present[version])
        serving = {version for version, record in records.items() if record.state == "AVAILABLE"}
        for version in sorted(set(present) - wanted, reverse=True):
            if serving or model.policy.kind == "specific":
                break
            if self._ensure(model, records, version, present[version]):
                serving.add(version)
        # Calls move to the new version before the old one goes; while the new one fails, the old one stays.
        if serving & wanted or not wanted:
            for version in serving - wanted:
                records[version].state = "UNLOADING"
        for record in list(records.values()):
            if record.state == "UNLOADING" and self._retire(record):
                logger.info("model %s: unloaded version %d", model.name, record.version)

    def _ensure(self, model: ModelSettings, records: dict[int, VersionRecord], version: int, path: Path) -> bool:
        """Whether the version is available, loading it where that is due."""
        record = records.get(version)
        if record is None or (record.state == "END" and record.error is None):
            record = VersionRecord(version, path)
            with self._lock:
                records[version] = record
        if record.state in ("AVAILABLE", "UNLOADING"):
            return record.state == "AVAILABLE"
        if record.error is not None and not self._retry_due(record):
            return False
        self._load(model, record)
        return record.state == "AVAILABLE"

    def _retry_due(self, record: VersionRecord) -> bool:
        if folder_stamp(record.path) != record.stamp:
            record.failures = 0
            return True
        return record.failures <= self._max_retries and time.monotonic() >= record.retry_at

    def _load(self, model: ModelSettings, record: VersionRecord) -> None:
        record.state, record.stamp, started = "LOADING", folder_stamp(record.path), time.perf_counter()
        try:
            loaded = LoadedVersion(
                record.path,
                model.name,
                record.version,
                self._session_config,
                self._tags,
                self._allow_xla,
                self._check_method_names,
                self._batcher,
                self._batching,
            )
            if self._warm_up:
                _warm_up(loaded, self._warm_up)
        except Exception as error:
            monitoring.LOAD_COUNT.add(str(record.path), "fail")
            record.failures += 1
            record.retry_at = time.monotonic() + self._retry_seconds
            with self._lock:
                record.error, record.state = as_status(error), "END"
            logger.error("model %s: version %d does not load: %s", model.name, record.version, record.error)
            return
        monitoring.LOAD_COUNT.add(str(record.path), "success")
        monitoring.LOAD_LATENCY.add(str(record.path), amount=monitoring.microseconds_since(started))
        with self._lock:
            record.loaded, record.error, record.failures, record.state = loaded, None, 0, "AVAILABLE"
        seconds = time.perf_counter() - started
        logger.info("model %s: version %d is available after %.2f s", model.name, record.version, seconds)

    def _retire(self, record: VersionRecord) -> bool:
        """Frees the record's version unless a call still runs in it; whether it is free."""
        with self._lock:
            if record.loaded is not None and record.state == "AVAILABLE":
                record.state = "UNLOADING"
            if record.users:
                return False
            loaded, record.loaded = record.loaded, None
            if loaded is not None:
                record.state = "END"
        if loaded is not None:
            loaded.close()
            del loaded
            gc.collect()  # a graph is full of reference cycles, and its weights wait for the collector
        return True

    def _available(self, name: str) -> dict[int, VersionRecord]:
        records = self._records.get(name, {})
        return {number: record for number, record in records.items() if record.state == "AVAILABLE"}

    def _find(self, name: str, version: int | None, label: str | None) -> VersionRecord:
        if label is not None:
            version = self._label(name, label)
        available = self._available(name)
        if version is None and available:
            return available[max(available)]
        if version in available:
            return available[version]
        wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")

    def _label(self, name: str, label: str) -> int:
        if label not in self._labels.get(name, {}):
            raise invalid(f"Unrecognized servable version label: {label}")
        return self._labels[name][label]

    def _read_labels(self, models: list[ModelSettings]) -> dict[str, dict[str, int]]:
        for model in models:
            for label, version in model.labels.items():
                is_moved = self._labels.get(model.name, {}).get(label, version) != version
                early = self._early_labels == "any" or (self._early_labels == "new" and not is_moved)
                if not early and version not in self._available(model.name):
                    raise StatusError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {model.name}, which is not currently "
                        f"available for inference: {label!r}.",
                    )
        return {model.name: dict(model.labels) for model in models}


def _warm_up(loaded: LoadedVersion, iterations: int) -> None:
    started, code = time.perf_counter(), Code.OK
    try:
        loaded.warm_up(iterations)
    except Exception as error:
        code = as_status(error).code
        loaded.close()
        raise
    finally:
        monitoring.WARMUP_LATENCY.observe(monitoring.microseconds_since(started), str(loaded.path), code.name)


def find_versions(base_path: Path) -> dict[int, Path]:
    """Version number -> folder, for the subfolders of `base_path` whose names are numbers. Raises: OSError."""
    versions: dict[int, Path] = {}
    with os.scandir(base_path) as entries:
        for entry in entries:
            if entry.name.isascii() and entry.name.isdigit() and entry.is_dir() and int(entry.name) <= MAX_VERSION:
                versions[int(entry.name)] = Path(entry.path)
    return versions


def folder_stamp(path: Path) -> tuple:
    """Name, size and time of the files of a version folder: differs once someone has repaired it."""
    try:
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except OSError:
        return ()
