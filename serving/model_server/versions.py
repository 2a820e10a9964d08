"""One version's life: its record, its folder, and how it is loaded and warmed up."""

from __future__ import annotations

import gc
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from serving.model_server import monitoring, warmup
from serving.model_server.batching import Batcher, BatchingParameters
from serving.model_server.errors import Code, StatusError, as_status
from serving.model_server.loaded import LoadedVersion

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


@dataclass(frozen=True)
class Loader:
    """How versions are loaded.

    Args:
        warm_up: how often each warm-up request is run; 0 for none.
        max_retries: attempts after the first at an unchanged folder.
        retry_seconds: pause between two of them.
        options: arguments of `LoadedVersion`.
        batcher: merges the calls of a version once it is warm, or None.
        batching: how, or None to leave it to the version's folder.
    """

    warm_up: int = 1
    max_retries: int = 5
    retry_seconds: float = 60.0
    options: dict[str, Any] = field(default_factory=dict)
    batcher: Batcher | None = None
    batching: BatchingParameters | None = None

    def load(self, name: str, record: VersionRecord) -> LoadedVersion | None:
        """The record's version, ready to answer; or None, with the reason and the next attempt in the record."""
        started, record.stamp = time.perf_counter(), folder_stamp(record.path)
        try:
            loaded = self._open(name, record)
        except Exception as error:
            self._note_failure(name, record, as_status(error))
        else:
            monitoring.LOAD_COUNT.add(str(record.path), "success")
            monitoring.LOAD_LATENCY.add(str(record.path), amount=monitoring.microseconds_since(started))
            seconds = time.perf_counter() - started
            logger.info("model %s: version %d is available after %.2f s", name, record.version, seconds)
            return loaded
        gc.collect()  # what did load: a graph is full of reference cycles
        return None

    def _note_failure(self, name: str, record: VersionRecord, error: StatusError) -> None:
        monitoring.LOAD_COUNT.add(str(record.path), "fail")
        record.failures += 1
        record.retry_at = time.monotonic() + self.retry_seconds
        # Not the one that was raised: for as long as it is shown its traceback would hold the graph and its weights.
        record.error = StatusError(error.code, error.message)
        logger.error("model %s: version %d does not load: %s", name, record.version, record.error)

    def _open(self, name: str, record: VersionRecord) -> LoadedVersion:
        loaded = LoadedVersion(record.path, name, record.version, **self.options)
        try:
            self._prepare(loaded)
        except Exception:
            loaded.close()
            raise
        return loaded

    def _prepare(self, loaded: LoadedVersion) -> None:
        if self.warm_up:
            started, code = time.perf_counter(), Code.OK
            try:
                warmup.warm_up(loaded, self.warm_up)
            except Exception as error:
                code = as_status(error).code
                raise
            finally:
                monitoring.WARMUP_LATENCY.observe(monitoring.microseconds_since(started), str(loaded.path), code.name)
        if self.batcher:  # only now: a warm-up waits for no other caller
            loaded.merge_calls(self.batcher, self.batching)

    def is_due(self, record: VersionRecord) -> bool:
        """Whether to try now: at first, again after the pause, and anew once the folder has changed."""
        if record.error is None:
            return True
        if folder_stamp(record.path) != record.stamp:
            record.failures = 0
            return True
        return time.monotonic() >= self.next_try(record)

    def next_try(self, record: VersionRecord) -> float:
        """When the next attempt at an unchanged folder is due, on the clock of time.monotonic; infinity for never."""
        return record.retry_at if record.error and record.failures <= self.max_retries else float("inf")


def find_versions(base_path: Path) -> dict[int, Path]:
    """Version number -> folder, for the subfolders of `base_path` whose names are numbers. Raises: OSError."""
    versions: dict[int, Path] = {}
    with os.scandir(base_path) as entries:
        for entry in entries:
            if entry.name.isascii() and entry.name.isdigit() and int(entry.name) <= MAX_VERSION and _is_folder(entry):
                versions[int(entry.name)] = Path(entry.path)
    return versions


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is one that can be looked into: a loop of links among the versions hides no other version."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def folder_stamp(path: Path) -> tuple:
    """Name, size and time of the files of a version folder: differs once someone has repaired it."""
    try:
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except OSError:
        return ()
