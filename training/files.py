"""Files that are whole or not there: written beside, flushed to the disk, renamed into place."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_beside(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` make a file or folder beside `path`, then renames it: the old one stays good until then.

    What a failed `write` has made is removed: on a full disk it would be in the way of everything else.
    """
    beside = path.with_name(f".partial.{path.name}")
    remove(beside)
    try:
        write(beside)
        _flush(beside)
    except BaseException:
        remove(beside)
        raise
    if path.is_dir():  # a folder cannot be replaced: the old one steps aside
        old = path.with_name(f".old.{path.name}")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        os.replace(beside, path)
        shutil.rmtree(old)
    else:
        os.replace(beside, path)


def reserve(path: Path, size: int) -> None:
    """Makes sure that there is room for a file of `size` bytes, by making it so large; its content is nothing.

    Raises:
        OSError: there is not.
    """
    with open(path, "wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {size:,} bytes are needed", str(path)) from error


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _flush(path: Path) -> None:
    """To the disk itself, or a power cut after the rename could leave an empty file under the good name."""
    for file in [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]:
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())


def write_json(path: Path, values: Any) -> None:
    """Readable JSON in UTF-8; infinity and what is no number, which JSON does not have, as null."""
    text = json.dumps(_finite(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_beside(path, lambda beside: beside.write_text(text, "utf-8"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
