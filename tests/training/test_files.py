"""Files are whole or not there."""

import errno
import json
import math
import os

import pytest

from training.files import read_json, write_beside, write_json


def test_a_failed_write_leaves_the_old_file_and_the_old_folder(tmp_path):
    file, folder = tmp_path / "kept.txt", tmp_path / "kept"
    file.write_text("old")
    folder.mkdir()
    (folder / "a").write_text("old")

    def fail(beside):
        if beside.suffix == ".txt":
            beside.write_text("half")
        else:
            beside.mkdir()
            (beside / "a").write_text("half")
        raise OSError(errno.ENOSPC, "disk full")

    for path in (file, folder):
        with pytest.raises(OSError, match="disk full"):
            write_beside(path, fail)
    assert sorted(os.listdir(tmp_path)) == ["kept", "kept.txt"]  # the half does not stay in a full disk's way
    assert file.read_text() == (folder / "a").read_text() == "old"
    # What is left of a failed write is no obstacle to the next, and nothing is left of that.
    write_beside(file, lambda beside: beside.write_text("new"))
    write_beside(folder, lambda beside: (beside.mkdir(), (beside / "b").write_text("new")))
    assert (file.read_text(), sorted(os.listdir(folder))) == ("new", ["b"])
    assert sorted(os.listdir(tmp_path)) == ["kept", "kept.txt"]


def test_json_is_written_readable_and_in_utf_8(tmp_path):
    write_json(tmp_path / "x.json", {"étudiant": [2, 3]})
    text = (tmp_path / "x.json").read_text("utf-8")
    assert '"étudiant"' in text and text.endswith("}\n")
    assert json.loads(text) == {"étudiant": [2, 3]}


def test_what_json_has_no_number_for_is_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.inf, 1.5], "b": {"c": math.nan}, "d": (2, "NaN")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": {"c": None}, "d": [2, "NaN"]}


def test_what_is_no_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        read_json(tmp_path / "x.json")
