import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving import launch
from serving.client import Client, ServingError

HOST = "127.0.0.1"


@pytest.fixture
def folder(tmp_path):
    """Two models by their looks, and things that are none."""
    for name in ("b model/1", "a/2", "a/3", "empty", "words/one"):
        (tmp_path / "exports" / name).mkdir(parents=True)
    (tmp_path / "exports" / "file").write_text("")
    return tmp_path / "exports"


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Puts a program on the PATH that records its arguments and its configuration, and exits with 7."""

    def put(name):
        programs = tmp_path / "programs"
        programs.mkdir(exist_ok=True)
        script = programs / name
        script.write_text(
            "#!/bin/sh\n"
            f'printf "%s\\n" "$@" > "{tmp_path}/arguments"\n'
            'for word in "$@"; do case "$word" in --model_config_file=*)\n'
            f'  cp "${{word#*=}}" "{tmp_path}/config" 2>/dev/null;; esac; done\n'
            "exit 7\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        return str(script)

    return put


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_models_are_the_subfolders_with_numbered_versions(folder):
    assert launch.find_models(folder) == ["a", "b model"]


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is none at {tmp_path}/nix"):
        launch.serve(tmp_path / "nix")
    with pytest.raises(ValueError, match=f"serve needs models as {tmp_path}/NAME/VERSION"):
        launch.serve(tmp_path)


def test_the_configuration_is_read_back_by_the_servers_own_proto(tmp_path):
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(launch.model_config(["a", 'b "model"\\'], "/some where"), config)
    entries = config.model_config_list.config
    assert [entry.name for entry in entries] == ["a", 'b "model"\\']
    assert [entry.base_path for entry in entries] == ["/some where/a", '/some where/b "model"\\']
    assert {entry.model_platform for entry in entries} == {"tensorflow"}


@pytest.mark.parametrize("engine", ["auto", "tensorflow_model_server"])
def test_the_real_server_is_started_when_it_is_on_the_path(folder, tmp_path, on_path, free_port, engine):
    on_path("tensorflow_model_server")
    port, rest_api_port = free_port(), free_port()
    assert launch.serve(folder, engine, port=port, rest_api_port=rest_api_port) == 7
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[:2] == [f"--port={port}", f"--rest_api_port={rest_api_port}"]
    assert arguments[2].startswith("--model_config_file=/")
    assert arguments[3:] == [f"--grpc_max_threads={launch.GRPC_MAX_THREADS}"]
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((tmp_path / "config").read_text(), config)
    bases = {entry.name: entry.base_path for entry in config.model_config_list.config}
    assert bases == {"a": f"{folder}/a", "b model": f"{folder}/b model"}
    assert not os.path.exists(arguments[2].partition("=")[2]), "the temporary folder is gone"


def test_the_container_gets_the_folder_and_the_ports(folder, tmp_path, on_path, free_port):
    on_path("docker")
    port, rest_api_port = free_port(), free_port()
    assert launch.serve(folder, "docker", port=port, rest_api_port=rest_api_port) == 7
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[:3] == ["run", "--rm", "--init"]
    assert f"127.0.0.1:{port}:8500" in arguments
    assert f"127.0.0.1:{rest_api_port}:8501" in arguments
    assert f"type=bind,source={folder},target=/models,readonly" in arguments
    assert arguments[-3:] == [
        "tensorflow/serving",
        "--model_config_file=/config/models.config",
        f"--grpc_max_threads={launch.GRPC_MAX_THREADS}",
    ]


def test_without_the_real_server_auto_takes_the_embedded_one(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = launch.make_plan(folder, tmp_path, "auto", None, 2357, 1113)
    assert plan.command[:3] == [sys.executable, "-m", "serving.model_server"]
    assert "--host=127.0.0.1" in plan.command
    for engine in ("tensorflow_model_server", "docker"):
        with pytest.raises(FileNotFoundError, match=f"needs the program {engine} on the PATH"):
            launch.make_plan(folder, tmp_path, engine, None, 2357, 1113)


def test_wrong_arguments_are_refused_with_what_came(folder, tmp_path, on_path):
    on_path("tensorflow_model_server")
    with pytest.raises(ValueError, match="got 'triton'"):
        launch.serve(folder, "triton")
    with pytest.raises(ValueError, match="port is between 1 and 65535, got 0"):
        launch.serve(folder, port=0)
    with pytest.raises(ValueError, match="differ, got 2357"):
        launch.serve(folder, port=2357, rest_api_port=2357)
    with pytest.raises(ValueError, match=r"listens on all addresses, it cannot be given host='127\.0\.0\.1'"):
        launch.serve(folder, "tensorflow_model_server", host="127.0.0.1")


@pytest.mark.parametrize("name", ["port", "rest_api_port"])
def test_a_port_in_use_is_named_before_anything_starts(folder, free_port, name):
    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        ports = {"port": free_port(), "rest_api_port": free_port(), name: number}
        with pytest.raises(OSError, match=f"cannot listen on {HOST}:{number}: Address already in use"):
            launch.serve(folder, "embedded", **ports)


def test_lines_to_paste_name_what_differs_from_the_defaults():
    signatures = {"serving_default": {"inputs": {"text": {"dtype": "string", "shape": [-1]}}, "outputs": {}}}
    plan = launch.Plan("embedded", [], HOST, 2357, 8501)
    ask, curl = launch.ask_lines(plan, "a", signatures)
    assert ask == "python -m serving ask a 'some text' --port 2357"
    assert curl == """curl -d '{"instances": ["some text"]}' http://127.0.0.1:8501/v1/models/a:predict"""
    signatures["serving_default"]["inputs"]["text"]["dtype"] = "float32"
    assert launch.ask_lines(plan, "a", signatures) == []


@pytest.mark.slow
def test_serve_prints_its_models_answers_and_leaves_no_process(exports, tmp_path, free_port):
    (tmp_path / "exports" / "broken" / "1").mkdir(parents=True)
    for name in ("half", "text"):
        (tmp_path / "exports" / name).symlink_to(exports / name)
    port, rest_api_port = free_port(), free_port()
    command = [sys.executable, "-m", "serving", "serve", str(tmp_path / "exports"), "--engine", "embedded"]
    command += ["--port", str(port), "--rest_api_port", str(rest_api_port)]
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    assert wait_for(lambda: "curl" in out.read_text())
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 1
    with Client(HOST, port, rest_api_port) as client:
        assert client.predict("half", [3.0]) == {"y": [3.5]}
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert not is_running(int(children[0]))
    for words in ("half", "serving_default", "text string", "joined string", "python -m serving ask text"):
        assert words in out.read_text()
    assert "error: broken version 1: A version folder needs saved_model.pb" in err.read_text()
    assert "Traceback" not in err.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's help is Linux'")
def test_a_killed_serve_takes_its_server_along(exports, tmp_path, free_port):
    port, rest_api_port = free_port(), free_port()
    command = [sys.executable, "-m", "serving", "serve", str(exports), "--engine", "embedded"]
    command += ["--port", str(port), "--rest_api_port", str(rest_api_port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers():
        try:
            with Client(HOST, port, rest_api_port) as client:
                return client.status("half")
        except ServingError:
            return False

    assert wait_for(answers)
    (child,) = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.kill()
    process.wait()
    assert wait_for(lambda: not is_running(int(child)))
