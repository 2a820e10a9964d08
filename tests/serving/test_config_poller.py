import logging
import threading

import pytest

from serving.model_server.config_poller import ConfigPoller
from serving.model_server.errors import StatusError, invalid


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "models.config"
    path.write_text("model_config_list {}")
    return path


def test_a_file_is_followed_when_it_says_something_else(file):
    followed = []
    poller = ConfigPoller(file, 3600, followed.append)
    poller.look()
    poller.look()
    assert len(followed) == 1
    file.write_text('model_config_list { config { name: "a" } }')
    poller.look()
    assert [config.model_config_list.config[0].name for config in followed[1:]] == ["a"]


def test_what_is_refused_is_logged_once_and_tried_again(file, caplog):
    tried = []

    def refuse(config):
        tried.append(config)
        raise invalid("not now")

    poller = ConfigPoller(file, 3600, refuse)
    with caplog.at_level(logging.ERROR, "serving.model_server"):
        for _ in range(3):
            poller.look()
        assert len(tried) == 3
        file.write_text("nonsense")
        poller.look()
        file.unlink()
        poller.look()
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "not now",
        "Invalid protobuf file",
        f"{file} cannot be read",
    ]


def test_the_thread_looks_by_itself_and_ends(file):
    seen = threading.Event()
    poller = ConfigPoller(file, 0.001, lambda config: seen.set())
    poller.start()
    assert seen.wait(30)
    poller.stop()
    assert not poller._thread.is_alive()
    ConfigPoller(file, 3600, StatusError).stop()
