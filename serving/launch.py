"""Hosts every model of a folder: the real TensorFlow Serving, its container, or the embedded server."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving import server_configs
from serving.client import Client, Retries, ServingError, Signatures
from serving.wire import before_port

ENGINES = ("auto", "tensorflow_model_server", "docker", "embedded")
LOAD_SECONDS = 600.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Plan:
    """What is started: the program and its arguments, and where it will be listening."""

    engine: str
    command: list[str]
    host: str
    port: int
    rest_api_port: int


def serve(
    exports: str | Path,
    engine: str = "auto",
    host: str | None = None,
    port: int = 8500,
    rest_api_port: int = 8501,
    enable_batching: bool = False,
    batching_parameters_file: str | Path | None = None,
) -> int:
    """Serves the models of a folder until the program ends or a signal comes, which is forwarded.

    Args:
        exports: a folder of model folders, each with version folders whose names are numbers.
        engine: one of `ENGINES`; "auto" takes tensorflow_model_server if it is on the PATH, else the embedded server.
        host: the address to listen on; 127.0.0.1 when None. tensorflow_model_server always listens on all addresses.
        port: the gRPC port.
        rest_api_port: the REST port; metrics for Prometheus are on it too.
        enable_batching: calls of several callers are merged.
        batching_parameters_file: BatchingParameters as text protobuf, instead of ours.

    Returns:
        The program's exit code.

    Raises:
        FileNotFoundError: there is no such folder, program or batching_parameters_file.
        ValueError: the folder holds no models, or an argument is out of its range.
        OSError: a port is in use.
    """
    models = find_models(exports)
    with tempfile.TemporaryDirectory(prefix="keras_seq_serve_") as folder:
        plan = make_plan(Path(exports).resolve(), Path(folder), engine, host, port, rest_api_port, enable_batching)
        base = "/models" if plan.engine == "docker" else str(Path(exports).resolve())
        server_configs.write_configs(Path(folder), models, base, enable_batching, batching_parameters_file)
        for number in (port, rest_api_port):
            check_port(plan.host, number)
        print(f"starting {shlex.join(plan.command)}", flush=True)
        with _running(plan.command) as process:
            if _wait_until_available(process, plan, models):
                _print_table(plan, models)
            code = process.wait()
    return code if code >= 0 else 128 - code


def find_models(exports: str | Path) -> list[str]:
    """The names of the subfolders that hold a numeric version folder, sorted. Raises: FileNotFoundError, ValueError."""
    folder = Path(exports)
    if not folder.is_dir():
        raise FileNotFoundError(f"serve needs a folder of exported models, there is none at {folder}.")
    names = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and _has_versions(path)]
    if not names:
        raise ValueError(f"serve needs models as {folder}/NAME/VERSION, VERSION a number; {folder} has none.")
    return names


def _has_versions(folder: Path) -> bool:
    return any(path.is_dir() and path.name.isascii() and path.name.isdigit() for path in folder.iterdir())


def make_plan(
    exports: Path,
    config_folder: Path,
    engine: str,
    host: str | None,
    port: int,
    rest_api_port: int,
    enable_batching: bool = False,
) -> Plan:
    """What would be started. Raises: FileNotFoundError without the program, ValueError for a wrong argument."""
    if engine not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}, got {engine!r}.")
    for name, number in (("port", port), ("rest_api_port", rest_api_port)):
        if not 1 <= number <= 65535:
            raise ValueError(f"{name} is between 1 and 65535, got {number}.")
    if port == rest_api_port:
        raise ValueError(f"port and rest_api_port differ, got {port} for both.")
    if engine == "auto":
        engine = "tensorflow_model_server" if shutil.which("tensorflow_model_server") else "embedded"
    address = host or "127.0.0.1"
    flags = server_configs.flags(config_folder, enable_batching)
    ports = [f"--port={port}", f"--rest_api_port={rest_api_port}"]
    if engine == "embedded":
        command = [sys.executable, "-m", "serving.model_server", f"--host={address}", *ports, *flags]
    elif engine == "tensorflow_model_server":
        if host not in (None, "0.0.0.0"):
            raise ValueError(f"tensorflow_model_server listens on all addresses, it cannot be given host={host!r}.")
        command = [_program("tensorflow_model_server"), *ports, *flags]
    else:
        command = [
            *[_program("docker"), "run", "--rm", "--init"],
            *["-p", f"{before_port(address)}:{port}:8500", "-p", f"{before_port(address)}:{rest_api_port}:8501"],
            *["--mount", f"type=bind,source={exports},target=/models,readonly"],
            *["--mount", f"type=bind,source={config_folder},target=/config,readonly"],
            "tensorflow/serving",
            *server_configs.flags("/config", enable_batching),
        ]
    return Plan(engine, command, address, port, rest_api_port)


def check_port(host: str, port: int) -> None:
    """Raises OSError when somebody listens there already."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, TypeError) as error:  # the latter where a name cannot be encoded
            reason = error.strerror if isinstance(error, OSError) else "that is no host's name"
            raise OSError(f"cannot listen on {host}:{port}: {reason}.") from error


@contextmanager
def _running(command: list[str]):
    """The program as a child that gets the signals we get, and that does not outlive us."""
    # A session of its own: a Ctrl-C reaches it once, through us, and not a second time from the terminal.
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with(os.getpid()))
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            previous[number] = signal.signal(number, lambda received, _: _forward(process, received))
    try:
        yield process
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.terminate()
            process.wait()


def _forward(process: subprocess.Popen, number: int) -> None:
    if process.poll() is None:
        process.send_signal(number if number != signal.SIGHUP else signal.SIGTERM)


def _end_with(parent: int):
    """For the child, before it becomes the program: ask the kernel to end it when its parent is killed outright."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def ask_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask_kernel


def _wait_until_available(process: subprocess.Popen, plan: Plan, models: list[str]) -> bool:
    """Waits until every model answers or has failed, and says which. False when the program ended or took too long."""
    deadline, waiting = time.monotonic() + LOAD_SECONDS, list(models)
    once = Retries(attempts=1)  # this loop is the one that asks again
    with Client(plan.host, plan.port, plan.rest_api_port, timeout=5.0, retries=once) as client:
        while waiting and time.monotonic() < deadline:
            if process.poll() is not None:
                return False
            waiting = [name for name in waiting if not _settled(client, name)]
            if waiting:
                time.sleep(0.1)
    if waiting:
        print(f"error: not available after {LOAD_SECONDS:.0f} s: {', '.join(waiting)}", file=sys.stderr, flush=True)
    return not waiting


def _settled(client: Client, name: str) -> bool:
    try:
        versions = client.status(name)
    except ServingError:
        return False
    if any(entry["state"] == "AVAILABLE" for entry in versions):
        return True
    failed = [entry for entry in versions if entry["error_code"] != "OK"]
    for entry in failed:
        print(f"error: {name} version {entry['version']}: {entry['error_message']}", file=sys.stderr, flush=True)
    return bool(failed)


def _print_table(plan: Plan, models: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "version", "signature", "inputs", "outputs")
    lines = []
    with Client(plan.host, plan.port, plan.rest_api_port, timeout=30.0) as client:
        for name in models:
            try:
                available = [entry["version"] for entry in client.status(name) if entry["state"] == "AVAILABLE"]
                signatures = client.metadata(name)
            except ServingError as error:
                table.add_row(name, "-", error.code, "", "")
                continue
            for row, (key, signature) in enumerate(signatures.items()):
                first = (name, ", ".join(map(str, available))) if row == 0 else ("", "")
                table.add_row(*first, key, _columns(signature["inputs"]), _columns(signature["outputs"]))
            table.add_section()
            lines += ask_lines(plan, name, signatures)
    console = Console()
    console.print(table)
    host = before_port(plan.host)
    console.print(f"gRPC on {host}:{plan.port}, REST on http://{host}:{plan.rest_api_port}. Ask:")
    for line in lines:
        print(f"  {line}", flush=True)


def ask_lines(plan: Plan, name: str, signatures: Signatures) -> list[str]:
    """Two lines to paste into a shell, for a model whose default signature takes one string; else none."""
    inputs = signatures.get("serving_default", {}).get("inputs", {})
    if [spec["dtype"] for spec in inputs.values()] != ["string"]:
        return []
    ports = "".join(
        f" --{flag} {value}"
        for flag, value, default in (
            ("host", plan.host, "127.0.0.1"),
            ("port", plan.port, 8500),
            ("rest_api_port", plan.rest_api_port, 8501),
        )
        if value != default
    )
    url = f"http://{before_port(plan.host)}:{plan.rest_api_port}/v1/models/{name}:predict"
    return [
        f"python -m serving ask {shlex.quote(name)} 'some text'{ports}",
        f"""curl -d '{{"instances": ["some text"]}}' {shlex.quote(url)}""",
    ]


def _columns(specs: dict) -> str:
    return ", ".join(f"{name} {spec['dtype']}" for name, spec in specs.items())


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"engine {name} needs the program {name} on the PATH.")
    return path
