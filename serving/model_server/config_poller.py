"""Follows --model_config_file: what is written into it is served."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from tensorflow_serving.config import model_server_config_pb2

from serving.model_server.errors import StatusError
from serving.model_server.model_config import parse_text

logger = logging.getLogger("serving.model_server")


class ConfigPoller:
    """Reads the file every so often and reloads what it says. What is refused is logged and tried again.

    Args:
        path: a ModelServerConfig as text protobuf.
        seconds: pause between two looks.
        reload: takes the configuration; raises StatusError where it refuses it.
    """

    def __init__(self, path: Path, seconds: float, reload: Callable[[model_server_config_pb2.ModelServerConfig], None]):
        self.path, self.seconds, self.reload = path, seconds, reload
        self._followed: model_server_config_pb2.ModelServerConfig | None = None
        self._complaint = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="poll-config", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the looking, once a reload that runs has ended."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self) -> None:
        """One look at the file. A complaint is logged once, not at every look."""
        config = model_server_config_pb2.ModelServerConfig()
        try:
            parse_text(self.path, config)
            if config != self._followed:
                self.reload(config)
                self._followed, self._complaint = config, ""
                logger.info("%s is followed: %d models", self.path, len(config.model_config_list.config))
        except StatusError as error:
            if error.message != self._complaint:
                logger.error("%s is not followed: %s", self.path, error.message)
            self._complaint = error.message

    def _keep_looking(self) -> None:
        while not self._stopping.wait(self.seconds):
            try:
                self.look()
            except Exception:
                logger.exception("%s cannot be followed", self.path)
