import shutil
import threading
import time

import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.model_server.core import ModelManager
from serving.model_server.errors import Code, StatusError
from serving.model_server.model_config import ModelSettings, VersionPolicy
from serving.model_server.versions import Loader

pytestmark = pytest.mark.usefixtures("frozen_heap")

LATEST = VersionPolicy()


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    return folder


@pytest.fixture
def manage(base):
    """Starts a manager of the model `half` that looks only when told to."""
    started = []

    def start(policy=LATEST, labels=None, loader=None, **settings):
        models = [ModelSettings("half", base, policy, labels or {})]
        manager = ModelManager(models, poll_seconds=0, loader=loader, **settings)
        started.append(manager)
        manager.start()
        return manager

    yield start
    for manager in started:
        manager.stop()


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def half(manager, value, **which):
    with manager.use("half", **which) as loaded:
        outputs = loaded.run(loaded.signature(), {"x": np.array([value], np.float32)})
        return loaded.version, outputs["y"].tolist()


def states(manager):
    return {record.version: record.state for record in manager.status("half")}


def corrupt(folder):
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"\x99 this is no protobuf")
    return folder


def test_a_new_version_is_served_and_the_old_one_unloaded(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    manager = manage()
    assert half(manager, 3.0) == (2, [3.5])
    save_half_plus(base / "11", 5.0)
    manager.poll()
    assert half(manager, 3.0) == (11, [6.5])
    assert states(manager) == {11: "AVAILABLE", 2: "END"}
    with pytest.raises(StatusError, match=r"Specific\(half, 2\)") as refused:
        half(manager, 3.0, version=2)
    assert refused.value.code == Code.NOT_FOUND


def test_a_version_that_does_not_load_leaves_the_old_one_serving_and_shows_its_error(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    manager = manage()
    corrupt(base / "3")
    manager.poll()
    assert half(manager, 3.0) == (2, [3.5])
    failed, serving = manager.status("half")
    assert (failed.version, failed.state, failed.error.code) == (3, "END", Code.DATA_LOSS)
    assert "does not parse" in failed.error.message
    assert (serving.version, serving.state, serving.error) == (2, "AVAILABLE", None)


def test_a_corrupt_newest_version_at_the_start_falls_back_to_the_newest_that_loads(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    save_half_plus(base / "3", 3.0)
    corrupt(base / "5")
    manager = manage()
    assert half(manager, 3.0) == (3, [4.5])
    assert states(manager) == {5: "END", 3: "AVAILABLE"}


def test_a_failing_version_is_not_tried_again_until_its_folder_changes_or_the_pause_is_over(
    base, manage, save_half_plus, monkeypatch
):
    from serving.model_server import versions

    tried = []
    real = versions.LoadedVersion

    def counted(path, *rest):
        tried.append(path.name)
        return real(path, *rest)

    monkeypatch.setattr(versions, "LoadedVersion", counted)
    corrupt(base / "3")
    manager = manage(loader=Loader(retry_seconds=3600))
    for _ in range(5):
        manager.poll()
    assert tried == ["3"]
    shutil.rmtree(base / "3")
    save_half_plus(base / "3", 7.0)
    manager.poll()
    assert tried == ["3", "3"]
    assert half(manager, 3.0) == (3, [8.5])
    assert manager.status("half")[0].error is None


def test_retries_end_after_their_number(base, manage):
    corrupt(base / "3")
    manager = manage(loader=Loader(retry_seconds=0, max_retries=2))
    for _ in range(7):
        manager.poll()
    assert manager.status("half")[0].failures == 3


def test_a_model_without_a_version_is_waited_for(base, save_half_plus, tmp_path):
    shutil.rmtree(base)
    manager, stopping, seen = ModelManager([ModelSettings("half", base)], poll_seconds=0.01), threading.Event(), []
    manager.start()
    waiting = threading.Thread(target=lambda: (manager.wait_for_versions(stopping), seen.append(half(manager, 3.0))))
    waiting.start()
    try:
        base.mkdir()  # a base path without versions is waited for as well
        save_half_plus(tmp_path / "staging", 2.0).rename(base / "2")
        waiting.join(30)
        assert seen == [(2, [3.5])]
    finally:
        stopping.set()
        waiting.join()
        manager.stop()


def test_waiting_for_a_version_ends_when_it_is_stopped(base):
    manager, stopping = ModelManager([ModelSettings("half", base)], poll_seconds=3600), threading.Event()
    stopping.set()
    manager.wait_for_versions(stopping)


def test_a_model_of_which_nothing_loads_is_refused_unless_it_is_tried_again(base, manage):
    corrupt(base / "3")
    manage(loader=Loader(retry_seconds=3600, max_retries=1)).wait_for_versions(threading.Event())
    with pytest.raises(
        StatusError, match=r"1 servable\(s\) did not become available: .*half version: 3.*parse"
    ) as refused:
        manage(loader=Loader(max_retries=0)).wait_for_versions(threading.Event())
    assert refused.value.code == Code.UNKNOWN


def test_a_missing_base_path_that_is_not_looked_at_again_is_refused(base, manage):
    base.rmdir()
    with pytest.raises(StatusError, match=f"the base path is not a folder: {base}"):
        manage().wait_for_versions(threading.Event())


def test_a_half_written_folder_is_an_error_until_it_is_complete(base, manage, save_half_plus, tmp_path):
    (base / "2" / "variables").mkdir(parents=True)
    manager = manage()
    assert "saved_model.pb" in manager.status("half")[0].error.message
    with pytest.raises(StatusError, match="not found"):
        half(manager, 3.0)
    complete = save_half_plus(tmp_path / "complete", 2.0)
    shutil.copytree(complete, base / "2", dirs_exist_ok=True)
    manager.poll()
    assert half(manager, 3.0) == (2, [3.5])


def test_weights_that_are_missing_or_cut_off_do_not_load(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    save_half_plus(base / "3", 3.0)
    (data,) = (base / "3" / "variables").glob("variables.data*")
    data.write_bytes(b"")
    manager = manage()
    assert half(manager, 3.0) == (2, [3.5])
    assert manager.status("half")[0].error is not None


def test_an_old_version_is_freed_only_after_its_last_call(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    manager = manage()
    with manager.use("half") as loaded:
        save_half_plus(base / "3", 3.0)
        manager.poll()
        assert states(manager) == {3: "AVAILABLE", 2: "UNLOADING"}
        assert half(manager, 3.0) == (3, [4.5])
        answer = loaded.run(loaded.signature(), {"x": np.array([3.0], np.float32)})
        assert answer["y"].tolist() == [3.5]
    # The last call's end frees it: nobody looks at the folder for that.
    assert wait_for(lambda: states(manager) == {3: "AVAILABLE", 2: "END"})


def test_a_retry_comes_by_itself_though_nobody_looks_again(base, manage, save_half_plus, monkeypatch):
    from serving.model_server import versions

    real, failures = versions.LoadedVersion, iter([OSError("away"), OSError("away")])

    def flaky(*rest, **options):
        for failure in failures:
            raise failure
        return real(*rest, **options)

    monkeypatch.setattr(versions, "LoadedVersion", flaky)
    save_half_plus(base / "2", 2.0)
    manager = manage(loader=Loader(retry_seconds=0.01))
    assert wait_for(lambda: states(manager) == {2: "AVAILABLE"})
    assert manager.status("half")[0].error is None


def test_a_failed_version_that_is_wanted_no_more_keeps_nobody_busy(base, manage, save_half_plus, monkeypatch):
    corrupt(base / "3")
    manager = manage(loader=Loader(retry_seconds=0.02, max_retries=10**6))
    save_half_plus(base / "5", 5.0)
    manager.poll()
    settled = []
    monkeypatch.setattr(manager, "_settle", lambda *arguments: settled.append(arguments))
    time.sleep(0.2)  # for nothing: that nothing happens has no event
    assert len(settled) <= 1


def test_a_retry_that_waits_for_the_only_thread_waits_there_once(base, save_half_plus, monkeypatch):
    from serving.model_server import versions

    real, entered, release = versions.LoadedVersion, threading.Event(), threading.Event()

    def slow(path, *rest, **options):
        if path.name == "7":
            entered.set()
            assert release.wait(30)
        return real(path, *rest, **options)

    monkeypatch.setattr(versions, "LoadedVersion", slow)
    slow_base = base.with_name("slow")
    slow_base.mkdir()
    corrupt(base / "3")
    models = [ModelSettings("slow", slow_base), ModelSettings("half", base)]
    manager = ModelManager(
        models, poll_seconds=0.01, loader=Loader(retry_seconds=0.03, max_retries=10**6), num_load_threads=1
    )
    manager.start()
    try:
        save_half_plus(base.with_name("staging"), 1.0).rename(slow_base / "7")
        assert entered.wait(30)
        time.sleep(0.2)
        assert manager._loading._work_queue.qsize() <= 1
        release.set()
        assert wait_for(lambda: manager.status("slow")[0].state == "AVAILABLE")
        failures = manager.status("half")[0].failures
        assert wait_for(lambda: manager.status("half")[0].failures > failures)
    finally:
        release.set()
        manager.stop()


def test_a_version_wanted_again_before_its_last_call_has_ended_serves_on(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    manager = manage()
    with manager.use("half"):
        base.rename(base.with_name("away"))
        base.mkdir()
        manager.poll()
        assert states(manager) == {2: "UNLOADING"}
        base.rmdir()
        base.with_name("away").rename(base)
        manager.poll()
        assert half(manager, 3.0) == (2, [3.5])
    assert half(manager, 3.0) == (2, [3.5])


def test_a_version_replaced_before_its_last_call_has_ended_is_loaded_after_it(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    manager = manage()
    with manager.use("half"):
        shutil.rmtree(base / "2")
        manager.poll()
        save_half_plus(base / "2", 7.0)
        manager.poll()
        assert states(manager) == {2: "UNLOADING"}
    # Nobody looks again for that.
    assert wait_for(lambda: states(manager) == {2: "AVAILABLE"})
    assert half(manager, 3.0) == (2, [8.5])


def test_a_slow_load_holds_up_no_other_model_where_there_are_threads(base, save_half_plus, monkeypatch):
    from serving.model_server import versions

    real, entered, release = versions.LoadedVersion, threading.Event(), threading.Event()

    def slow(path, *rest, **options):
        if path.parent.name == "slow":
            entered.set()
            assert release.wait(30)
        return real(path, *rest, **options)

    monkeypatch.setattr(versions, "LoadedVersion", slow)
    slow_base = base.with_name("slow")
    slow_base.mkdir()
    models = [ModelSettings("slow", slow_base), ModelSettings("half", base)]
    manager = ModelManager(models, poll_seconds=0.01, num_load_threads=2, num_unload_threads=1)
    manager.start()
    try:
        save_half_plus(base.with_name("staging"), 1.0).rename(slow_base / "1")
        assert entered.wait(30)
        for version in (2, 3):
            save_half_plus(base.with_name("staging"), float(version)).rename(base / str(version))
            assert wait_for(lambda new=version: find_available(manager) and half(manager, 0.0)[0] == new)
        assert wait_for(lambda: states(manager) == {3: "AVAILABLE", 2: "END"})
        assert manager.status("slow")[0].state == "LOADING"
        release.set()
        assert wait_for(lambda: manager.status("slow")[0].state == "AVAILABLE")
    finally:
        release.set()
        manager.stop()


def test_a_negative_pause_never_looks(base, save_half_plus):
    save_half_plus(base / "2", 2.0)
    manager = ModelManager([ModelSettings("half", base)], poll_seconds=-1)
    manager.start()
    try:
        with pytest.raises(StatusError, match="Could not find any versions"):
            manager.status("half")
        manager.poll()
        assert half(manager, 0.0) == (2, [2.0])
    finally:
        manager.stop()


def test_calls_during_swaps_all_succeed(base, manage, save_half_plus):
    save_half_plus(base / "1", 1.0)
    manager = manage()
    answers, errors, stop = [], [], threading.Event()

    def call():
        while not stop.is_set():
            try:
                answers.append(half(manager, 2.0))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(5)]
    for thread in threads:
        thread.start()
    for version in (2, 3, 5):
        save_half_plus(base / str(version), float(version))
        corrupt(base / str(version * 100))
        manager.poll()
        shutil.rmtree(base / str(version * 100))
        manager.poll()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert {version for version, _ in answers} <= {1, 2, 3, 5}
    assert all(value == [1.0 + version] for version, value in answers)
    assert half(manager, 2.0)[0] == 5


def test_several_versions_are_asked_by_number_and_label(base, manage, save_half_plus):
    for version in (2, 3, 5):
        save_half_plus(base / str(version), float(version))
    policy = VersionPolicy("specific", versions=frozenset({2, 3}))
    manager = manage(policy, labels={"stable": 2, "gone": 5}, early_labels="new")
    assert half(manager, 0.0) == (3, [3.0])
    assert half(manager, 0.0, version=2) == (2, [2.0])
    assert half(manager, 0.0, label="stable") == (2, [2.0])
    with pytest.raises(StatusError, match="Unrecognized servable version label: nix"):
        half(manager, 0.0, label="nix")
    with pytest.raises(StatusError, match=r"Specific\(half, 5\)"):
        half(manager, 0.0, label="gone")


def test_a_removed_version_gives_way_to_the_one_before(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    save_half_plus(base / "3", 3.0)
    manager = manage()
    shutil.rmtree(base / "3")
    manager.poll()
    assert half(manager, 0.0) == (2, [2.0])
    assert states(manager) == {3: "END", 2: "AVAILABLE"}


def test_a_base_path_that_goes_away_leaves_its_model_serving(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    manager = manage()
    base.rename(base.with_name("elsewhere"))
    manager.poll()
    assert half(manager, 0.0) == (2, [2.0])


def test_polling_by_itself_finds_a_version(base, save_half_plus):
    manager = ModelManager([ModelSettings("half", base)], poll_seconds=0.02)
    manager.start()
    try:
        with pytest.raises(StatusError, match="Could not find any versions of model half"):
            manager.status("half")
        save_half_plus(base.with_name("staging"), 2.0).rename(base / "2")
        assert wait_for(lambda: find_available(manager))
        assert half(manager, 0.0) == (2, [2.0])
    finally:
        manager.stop()
    assert states(manager) == {2: "END"}


def find_available(manager):
    try:
        return "AVAILABLE" in states(manager).values()
    except StatusError:
        return False


def config_of(*entries):
    text = "".join(
        f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {rest} }}'
        for name, base, rest in entries
    )
    return text_format.Parse(f"model_config_list {{ {text} }}", model_server_config_pb2.ModelServerConfig())


def label(name, version):
    return f'version_labels {{ key: "{name}" value: {version} }}'


ALL = "model_version_policy { all {} }"


def test_reloading_adds_changes_and_removes_models(base, manage, save_half_plus):
    for version in (2, 3):
        save_half_plus(base / str(version), float(version))
    manager = manage()
    manager.reload(config_of(("half", base, ALL), ("twin", base, "")))
    assert states(manager) == {3: "AVAILABLE", 2: "AVAILABLE"}
    with manager.use("twin") as loaded:
        assert (loaded.name, loaded.version) == ("twin", 3)
    manager.reload(config_of(("twin", base, "")))
    assert states(manager) == {3: "END", 2: "END"}
    with pytest.raises(StatusError, match=r"Latest\(half\)"):
        half(manager, 3.0)
    manager.reload(config_of(("half", base, "")))
    assert half(manager, 3.0) == (3, [4.5])


def test_a_label_moves_to_an_available_version_and_to_no_other(base, manage, save_half_plus):
    for version in (2, 3):
        save_half_plus(base / str(version), float(version))
    manager = manage(VersionPolicy("all"))
    manager.reload(config_of(("half", base, ALL + label("stable", 2))))
    assert half(manager, 0.0, label="stable") == (2, [2.0])
    manager.reload(config_of(("half", base, ALL + label("stable", 3))))
    assert half(manager, 0.0, label="stable") == (3, [3.0])
    with pytest.raises(StatusError, match="assign label to version 7 of model half, which is not") as refused:
        manager.reload(config_of(("half", base, ALL + label("stable", 7))))
    assert refused.value.code == Code.FAILED_PRECONDITION
    assert half(manager, 0.0, label="stable") == (3, [3.0])
    manager.reload(config_of(("half", base, ALL)))
    with pytest.raises(StatusError, match="Unrecognized servable version label: stable"):
        half(manager, 0.0, label="stable")


@pytest.mark.parametrize(
    ("early", "first", "moved"), [("never", False, False), ("new", True, False), ("any", True, True)]
)
def test_early_labels_say_which_labels_may_wait_for_their_version(base, manage, save_half_plus, early, first, moved):
    save_half_plus(base / "2", 2.0)
    manager = manage(early_labels=early)
    for version, allowed in ((7, first), (11, moved)):
        config = config_of(("half", base, label("next", version)))
        if allowed:
            manager.reload(config)
            with pytest.raises(StatusError, match=rf"Specific\(half, {version}\)"):
                half(manager, 0.0, label="next")
        else:
            with pytest.raises(StatusError, match=f"version {version} of model half"):
                manager.reload(config)


def test_a_refused_configuration_changes_nothing(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    manager = manage()
    custom = model_server_config_pb2.ModelServerConfig()
    custom.custom_model_config.type_url = "x"
    empty = model_server_config_pb2.ModelServerConfig()
    cases = [
        (custom, Code.FAILED_PRECONDITION, "got custom_model_config"),
        (empty, Code.FAILED_PRECONDITION, "an empty ModelServerConfig"),
        (config_of(("half", base, ""), ("half", base, "")), Code.INVALID_ARGUMENT, "list model half multiple times"),
        (config_of(("half", base / "nix", "")), Code.INVALID_ARGUMENT, "not a folder"),
    ]
    for config, code, words in cases:
        with pytest.raises(StatusError, match=words) as refused:
            manager.reload(config)
        assert refused.value.code == code
    assert half(manager, 0.0) == (2, [2.0])


def test_an_added_model_that_does_not_load_is_named(base, manage, save_half_plus):
    save_half_plus(base / "2", 2.0)
    manager = manage()
    broken = corrupt(base.with_name("broken") / "5").parent
    with pytest.raises(StatusError, match=r"did not become available: \{broken\}") as refused:
        manager.reload(config_of(("half", base, ""), ("broken", broken, "")))
    assert refused.value.code == Code.UNKNOWN
    assert half(manager, 0.0) == (2, [2.0])
    assert manager.status("broken")[0].error.code == Code.DATA_LOSS
