import gc
import time

import pytest
import tensorflow as tf

from serving.model_server import warmup
from serving.model_server.batching import BatchingParameters
from serving.model_server.errors import Code, StatusError
from serving.model_server.versions import Loader, VersionRecord, find_versions, folder_stamp

pytestmark = pytest.mark.usefixtures("frozen_heap")


def test_only_numbers_are_versions(tmp_path):
    for name in ("1", "0023", "v2", "-3", "4.0", "٣", "99999999999999999999", ".5"):
        (tmp_path / name).mkdir()
    (tmp_path / "7").write_text("a file")
    assert set(find_versions(tmp_path)) == {1, 23}


def test_a_loop_of_links_hides_no_other_version(tmp_path):
    (tmp_path / "5").symlink_to(tmp_path / "5")
    (tmp_path / "6").mkdir()
    assert set(find_versions(tmp_path)) == {6}


def test_a_folder_is_told_from_the_same_one_changed(tmp_path):
    (tmp_path / "part").write_text("a")
    stamp = folder_stamp(tmp_path)
    assert folder_stamp(tmp_path) == stamp
    (tmp_path / "part").write_text("ab")
    assert folder_stamp(tmp_path) != stamp
    assert folder_stamp(tmp_path / "nix") == ()


def test_a_failed_record_is_due_after_its_pause_or_once_its_folder_has_changed(tmp_path):
    loader, record = Loader(retry_seconds=3600, max_retries=1), VersionRecord(2, tmp_path)
    assert loader.is_due(record)
    assert loader.load("m", record) is None
    assert (record.error.code, record.failures) == (Code.NOT_FOUND, 1)
    assert not loader.is_due(record)
    assert 3500 < loader.next_try(record) - time.monotonic() < 3700
    (tmp_path / "saved_model.pb").write_bytes(b"\x99")
    assert loader.is_due(record) and record.failures == 0
    for _ in range(2):
        loader.load("m", record)
    assert loader.next_try(record) == float("inf") and not loader.is_due(record)


def test_a_failing_warm_up_is_a_version_that_does_not_load(tmp_path, save_half_plus, monkeypatch):
    from serving.model_server import versions

    def fail(loaded, iterations):
        raise StatusError(Code.ABORTED, f"warm-up {iterations}")

    record = VersionRecord(2, save_half_plus(tmp_path / "2", 2.0))
    monkeypatch.setattr(versions.warmup, "warm_up", fail)
    assert Loader(warm_up=3).load("m", record) is None
    assert (record.error.code, record.error.message) == (Code.ABORTED, "warm-up 3")
    loaded = Loader(warm_up=0).load("m", record)
    assert loaded.version == 2
    loaded.close()


def test_of_versions_that_do_not_load_nothing_stays_but_the_error(tmp_path, save_half_plus):
    for version in (2, 3, 5):
        (warm_up := save_half_plus(tmp_path / str(version), 2.0) / warmup.WARMUP_FILE).parent.mkdir(exist_ok=True)
        warm_up.write_bytes(b"this is no TFRecord file")
    gc.collect()
    before = sum(isinstance(one, tf.Graph) for one in gc.get_objects())
    records = [VersionRecord(version, tmp_path / str(version)) for version in (2, 3, 5)]
    assert [Loader().load("m", record) for record in records] == [None] * 3
    assert [record.error.code for record in records] == [Code.DATA_LOSS] * 3
    assert sum(isinstance(one, tf.Graph) for one in gc.get_objects()) <= before


def test_calls_are_merged_once_a_version_is_warm_and_has_parameters(tmp_path, save_half_plus):
    def merging(batching=None):
        loaded = Loader(batcher=object(), batching=batching).load("m", record)
        if loaded is None:
            return None
        loaded.close()
        return loaded._merging and loaded._merging[1]

    record = VersionRecord(2, save_half_plus(tmp_path / "2", 2.0))
    given = BatchingParameters(max_batch_size=7)
    assert merging() is None
    assert merging(given) == given
    (record.path / "batching_params.pbtxt").write_text("max_batch_size { value: 5 }")
    assert merging().max_batch_size == 5
    (record.path / "batching_params.pbtxt").write_text("max_batch_size: 5")
    assert merging() is None and "Invalid protobuf file" in record.error.message
