import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving import launch, server_configs
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
            'for word in "$@"; do case "$word" in --model_config_file=*|--batching*=*)\n'
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


@pytest.mark.parametrize("engine", ["auto", "tensorflow_model_server"])
def test_the_real_server_is_started_when_it_is_on_the_path(folder, tmp_path, on_path, free_port, engine):
    on_path("tensorflow_model_server")
    port, rest_api_port = free_port(), free_port()
    assert launch.serve(folder, engine, port=port, rest_api_port=rest_api_port) == 7
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[:2] == [f"--port={port}", f"--rest_api_port={rest_api_port}"]
    written = os.path.dirname(arguments[2].partition("=")[2])
    assert arguments[2:] == server_configs.flags(written)
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
    assert arguments[arguments.index("tensorflow/serving") + 1 :] == server_configs.flags("/config")


def test_batching_gets_its_flags_and_its_file_our_own_or_the_one_given(folder, tmp_path, on_path, free_port):
    on_path("tensorflow_model_server")
    given = tmp_path / "mine.config"
    given.write_text("max_batch_size { value: 7 }")
    ports = {"port": free_port(), "rest_api_port": free_port(), "enable_batching": True}
    for file, words in ((None, "num_batch_threads"), (given, "max_batch_size { value: 7 }")):
        assert launch.serve(folder, "tensorflow_model_server", batching_parameters_file=file, **ports) == 7
        assert "--enable_batching=true" in (tmp_path / "arguments").read_text().splitlines()
        assert words in (tmp_path / "config").read_text()
        assert (file is None) == ("num_batch_threads" in (tmp_path / "config").read_text())
    with pytest.raises(FileNotFoundError, match="no batching_parameters_file at nix"):
        launch.serve(folder, "tensorflow_model_server", batching_parameters_file="nix", **ports)
    with pytest.raises(ValueError, match="with enable_batching only"):
        launch.serve(folder, "tensorflow_model_server", batching_parameters_file=given, port=ports["port"])


# A model server by its looks: not AVAILABLE at first, then it is; writes down its signals and ends at the second.
# To the shell a command, to Python a string: an interpreter's path with a space in it cannot stand behind #!.
PRETENDER = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import http.server, json, signal, sys, threading
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
asked = []

class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        state = "AVAILABLE" if len(asked) > 3 else "LOADING"
        status = dict(error_code="OK", error_message="")
        answer = dict(model_version_status=[dict(version="2", state=state, status=status)])
        if self.path.endswith("/metadata"):
            answer = dict(metadata=dict(signature_def=dict(signature_def=dict())))
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

got = []
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(flags["rest_api_port"])), Answers)

def note(number, _):
    got.append(signal.Signals(number).name)
    with open({record!r}, "a") as record:
        record.write(got[-1] + "\\n")
    if len(got) == 2:
        threading.Thread(target=server.shutdown).start()

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, note)
server.serve_forever()
sys.exit(5)
"""


def test_serve_waits_for_available_and_forwards_both_signals_to_the_real_server(folder, tmp_path, on_path, free_port):
    record = tmp_path / "signals"
    with open(on_path("tensorflow_model_server"), "w") as program:
        program.write(PRETENDER.format(python=sys.executable, record=str(record)))
    command = [sys.executable, "-m", "serving", "serve", str(folder), "--engine", "tensorflow_model_server"]
    command += ["--port", str(free_port()), "--rest_api_port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        assert any("Ask:" in line for line in lines), "it says so when all are AVAILABLE"
        process.send_signal(signal.SIGINT)
        assert wait_for(record.exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 5
    assert record.read_text().splitlines() == ["SIGINT", "SIGTERM"]


def test_an_ipv6_address_stands_in_brackets_before_a_port(folder, tmp_path, on_path):
    on_path("docker")
    plan = launch.make_plan(folder, tmp_path, "docker", "::1", 2357, 1113)
    assert [plan.command[at + 1] for at, word in enumerate(plan.command) if word == "-p"] == [
        "[::1]:2357:8500",
        "[::1]:1113:8501",
    ]
    signatures = {"serving_default": {"inputs": {"text": {"dtype": "string", "shape": [-1]}}, "outputs": {}}}
    assert "'http://[::1]:1113/v1/models/a:predict'" in launch.ask_lines(plan, "a", signatures)[1]


def test_a_host_that_cannot_be_a_name_is_refused():
    with pytest.raises(OSError, match="that is no host's name"):
        launch.check_port("é" * 64, 2357)


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
