"""Which versions of which models are served: found by polling, loaded beside, switched, drained, unloaded.

Nothing here knows HTTP or gRPC: the two edges ask `ModelManager.use` for a loaded version and `status` for the states.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tensorflow_serving.config import model_server_config_pb2

from serving.model_server.errors import Code, StatusError, invalid
from serving.model_server.loaded import LoadedVersion
from serving.model_server.model_config import ModelSettings, read_models
from serving.model_server.signature import in_braces
from serving.model_server.versions import MAX_VERSION, Loader, VersionRecord, find_versions, folder_stamp

__all__ = ["MAX_VERSION", "ModelManager", "VersionRecord"]

logger = logging.getLogger("serving.model_server")
_NEVER = float("inf")


class ModelManager:
    """Keeps the wanted versions of every model loaded.

    A new version is loaded and warmed up beside the old one, then answers; the old one finishes its calls and is freed.
    A version that does not load leaves the old one serving; where none was serving yet, the newest version that does
    load is served. It is tried again as the loader says.

    Args:
        models: the models to serve.
        poll_seconds: pause between two looks at the base paths; 0 looks once, at the start; a negative one never looks.
        loader: how a version is loaded, and when again if it does not load.
        num_load_threads: models whose versions are loaded at a time; 0 for one after another.
        num_unload_threads: versions freed at a time; 0 for one after another, before the next look.
        early_labels: whether a label may name a version that is not available: "never"; "new", if it is not one that
            is moved; "any".
    """

    def __init__(
        self,
        models: list[ModelSettings],
        poll_seconds: float = 1.0,
        loader: Loader | None = None,
        num_load_threads: int = 0,
        num_unload_threads: int = 0,
        early_labels: Literal["never", "new", "any"] = "never",
    ):
        self.models = {model.name: model for model in models}
        self._poll_seconds, self._early_labels = poll_seconds, early_labels
        self._loader = loader or Loader()
        self._loading, self._unloading = _pool("load", num_load_threads), _pool("unload", num_unload_threads)
        self._labels: dict[str, dict[str, int]] = {}
        self._records: dict[str, dict[int, VersionRecord]] = {}
        self._present: dict[str, dict[int, Path]] = {}
        self._turns: dict[str, threading.Lock] = {}  # each held by who changes this model's versions
        self._due: dict[str, float] = {}  # when a model's turn comes without a look, on the clock of time.monotonic
        self._queued: set[str] = set()  # models whose turn waits for a thread
        self._lock = threading.Lock()  # guards the fields above, held for moments
        self._reloading = threading.Lock()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._poller = threading.Thread(target=self._keep_polling, name="poll-models", daemon=True)

    def start(self) -> None:
        """Loads what is there, then keeps looking in a thread of its own.

        Raises:
            StatusError: FAILED_PRECONDITION for a label of a version that is not available, unless that is allowed.
        """
        self._adopt(list(self.models.values()))
        if self._poll_seconds >= 0:
            self.poll()
        self._poller.start()

    def wait_for_versions(self, stopping: threading.Event) -> None:
        """Returns once every model has a version that loads or is tried again, or when `stopping` is set.

        Raises:
            StatusError: NOT_FOUND for a missing base path that is not looked at again; UNKNOWN for a model none of
                whose versions loads, and none is tried again.
        """
        told: set[str] = set()
        while self._poll_seconds >= 0 and not stopping.is_set():
            awaited = [name for name in self.models if not self._is_settled(name)]
            for name in set(awaited) - told:
                base_path = self.models[name].base_path
                logger.warning("model %s: there is no version yet below its base path %s", name, base_path)
                told.add(name)
                if self._poll_seconds == 0 and not base_path.is_dir():
                    raise StatusError(Code.NOT_FOUND, f"model {name!r}: the base path is not a folder: {base_path}")
            if not awaited or self._poll_seconds == 0:
                self._refuse_hopeless()
                return
            stopping.wait(min(1.0, self._poll_seconds))

    def _is_settled(self, name: str) -> bool:
        records = list(self._records[name].values())
        return any(record.state == "AVAILABLE" or record.error is not None for record in records)

    def _refuse_hopeless(self) -> None:
        lost = []
        for name in self.models:
            records = list(self._records[name].values())
            if records and all(record.error and self._loader.next_try(record) == _NEVER for record in records):
                lost += [f"{{name: {name} version: {one.version}}} due to error: {one.error}" for one in records]
        if lost:
            what = f"{len(lost)} servable(s) did not become available: {'; '.join(lost)}"
            raise StatusError(Code.UNKNOWN, what)

    def stop(self) -> None:
        """Stops looking and frees every version that no call is using."""
        self._stopping.set()
        self._wake.set()
        if self._poller.ident is not None:
            self._poller.join()
        for pool in filter(None, (self._loading, self._unloading)):
            pool.shutdown()
        for records in self._records.values():
            for record in records.values():
                with self._lock:
                    record.state = "UNLOADING" if record.state == "AVAILABLE" else record.state
                self._retire(record)
        gc.collect()  # once for all versions: in a process full of objects each time takes a second

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
                is_drained = not record.users and record.state == "UNLOADING"
            if is_drained:
                self._call_up(name)

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
        for model in models:
            if not model.base_path.is_dir():
                raise invalid(f"model {model.name!r}: the base path is not a folder: {model.base_path}")
        with self._reloading:
            added = [model.name for model in models if model.name not in self.models]
            self._adopt(models)
            self.poll()
            missing = [name for name in added if not self._available(name)]
        if missing:
            raise StatusError(Code.UNKNOWN, f"Some models did not become available: {in_braces(missing)}")

    def poll(self) -> None:
        """One look at every base path; returns when what it found is loaded."""
        if self._loading is None:
            for name in list(self._records):
                self._settle(name, True)
        else:
            for done in [self._loading.submit(self._settle, name, True) for name in list(self._records)]:
                done.result()

    def _adopt(self, models: list[ModelSettings]) -> None:
        labels = self._read_labels(models)
        with self._lock:
            self._labels = labels
            self.models = {model.name: model for model in models}
            for name in self.models:
                self._records.setdefault(name, {})
                self._turns.setdefault(name, threading.Lock())
                self._due.setdefault(name, _NEVER)

    def _keep_polling(self) -> None:
        """Looks every `poll_seconds`; in between, frees what has been drained and tries again what is due."""
        pause = self._poll_seconds if self._poll_seconds > 0 else _NEVER
        next_look = time.monotonic() + pause
        while True:
            with self._lock:
                until = min([next_look, *(self._due[name] for name in self._due if self._is_free(name))])
            self._wake.wait(min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX))
            self._wake.clear()
            if self._stopping.is_set():
                return
            now = time.monotonic()
            looks = now >= next_look
            if looks:
                next_look = now + pause
            with self._lock:
                names = [name for name in self._due if self._is_free(name) and (looks or self._due[name] <= now)]
            for name in names:
                if self._loading is None:
                    self._settle(name, looks)
                else:
                    self._queued.add(name)
                    self._loading.submit(self._settle, name, looks)

    def _is_free(self, name: str) -> bool:
        """Whether nobody changes this model's versions or is about to; who does calls the poller up when it is done."""
        return name not in self._queued and not self._turns[name].locked()

    def _call_up(self, name: str, when: float = 0.0) -> None:
        """Has the poller give the model its turn at that time."""
        with self._lock:
            self._due[name] = min(self._due[name], when)
            is_due = self._due[name] < _NEVER
        if is_due:
            self._wake.set()

    def _settle(self, name: str, looks: bool) -> None:
        """Brings one model's versions to what is wanted of those present."""
        next_try = _NEVER
        with self._turns[name]:
            with self._lock:
                self._queued.discard(name)
                self._due[name] = _NEVER
            model = self.models.get(name)
            try:
                if model is None:
                    self._retire_all(name, set(self._records[name]))
                else:
                    if looks:
                        self._present[name] = find_versions(model.base_path)
                    next_try = self._change_versions(model)
            except OSError as error:
                # A share that is away for a moment must not take down what already serves.
                logger.warning("model %s: base path %s cannot be read: %s", name, model and model.base_path, error)
            except Exception:
                logger.exception("model %s: its versions cannot be changed", name)
        self._call_up(name, next_try)

    def _change_versions(self, model: ModelSettings) -> float:
        """Loads and retires; when there is a version to be tried again, on the clock of time.monotonic."""
        present, records = self._present.get(model.name, {}), self._records[model.name]
        wanted = model.policy.wanted(set(present))
        missing = [version for version in sorted(wanted, reverse=True) if not self._ensure(model, records, version)]
        serving = {version for version, record in records.items() if record.state == "AVAILABLE"}
        for version in sorted(set(present) - wanted, reverse=True):
            if serving or model.policy.kind == "specific":
                break
            if self._ensure(model, records, version):
                serving.add(version)
            else:
                missing.append(version)
        # Calls move to the new version before the old one goes; while the new one fails, the old one stays.
        unwanted = serving - wanted if serving & wanted or not wanted else set()
        self._retire_all(model.name, unwanted | {key for key, record in records.items() if record.state == "UNLOADING"})
        return min((self._loader.next_try(records[version]) for version in missing), default=_NEVER)

    def _ensure(self, model: ModelSettings, records: dict[int, VersionRecord], version: int) -> bool:
        """Whether the version is available, loading it where that is due."""
        path, record = self._present[model.name][version], records.get(version)
        if record is None or (record.state == "END" and (record.error is None or record.path != path)):
            record = VersionRecord(version, path)
            with self._lock:
                records[version] = record
        if record.state in ("AVAILABLE", "UNLOADING"):
            return record.state == "AVAILABLE" or self._take_back(record, path)
        if not self._loader.is_due(record):
            return False
        record.state = "LOADING"
        loaded = self._loader.load(model.name, record)
        with self._lock:
            if loaded is None:
                record.state = "END"
            else:
                record.loaded, record.error, record.failures, record.state = loaded, None, 0, "AVAILABLE"
        return loaded is not None

    def _take_back(self, record: VersionRecord, path: Path) -> bool:
        """Whether a version that is wanted again before its last call has ended is what lies there, and stays."""
        is_same = record.path == path and folder_stamp(path) == record.stamp
        with self._lock:
            if is_same and record.loaded is not None:
                record.state = "AVAILABLE"
            return record.state == "AVAILABLE"

    def _retire_all(self, name: str, versions: set[int]) -> None:
        for version in sorted(versions):
            record = self._records[name][version]
            with self._lock:
                if record.state not in ("AVAILABLE", "UNLOADING"):
                    continue
                record.state = "UNLOADING"
            if self._unloading is None:
                self._retire(record)
            else:
                self._unloading.submit(self._retire, record)

    def _retire(self, record: VersionRecord) -> None:
        """Frees the record's version unless a call still runs in it, whose end brings the next try."""
        with self._lock:
            if record.users or record.loaded is None or record.state != "UNLOADING":
                return
            loaded, record.loaded = record.loaded, None
        name, version = loaded.name, loaded.version
        loaded.close()
        del loaded
        if not self._stopping.is_set():
            gc.collect()  # a graph is full of reference cycles, and its weights wait for the collector
        with self._lock:
            record.state = "END"
        logger.info("model %s: unloaded version %d", name, version)
        self._call_up(name)  # it may be wanted again by now

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


def _pool(name: str, num_threads: int) -> ThreadPoolExecutor | None:
    return ThreadPoolExecutor(num_threads, thread_name_prefix=name) if num_threads else None
