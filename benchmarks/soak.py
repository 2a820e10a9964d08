"""The embedded server under load for minutes: versions dropped in, ever new words, swaps of large weights.

python -m benchmarks.soak [--seconds 120] [--clients 32] [--words 200000] [--swaps 20] [--only versions|words|swaps]

versions: callers over REST and gRPC, a new version every five seconds, now and then a corrupt one; then a SIGTERM while
they call. Every answer has to be that of a version that was served, and none may fail.
words: texts of words that no text had before, to an export that tokenizes; memory has to stay within 5 %.
swaps: versions of 50 MB of weights, one after another; memory has to come back.

Prints what it saw and exits with 1 where something was not as it has to be.
"""

import argparse
import contextlib
import itertools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HOST = "127.0.0.1"
MODEL = "model"
FLAT = 1.05
NEW_VERSION_SECONDS = 5.0
LINES = ["the old cook sees a red boat", "she never sells the boats that we like", "the cats are not good"]


def save(folder, addend, weights=1):
    """Saves y = x / 2 + addend with so many float32 weights, beside its place, and renames it into it."""
    import tensorflow as tf

    module = tf.Module()
    # Random, so that no page of it is shared or left out; the first one is the addend.
    module.weights = tf.Variable(tf.concat([[float(addend)], tf.random.normal([weights - 1])], 0))
    spec = tf.TensorSpec([None], tf.float32, name="x")
    function = tf.function(lambda x: {"y": x / 2.0 + module.weights[0]}, input_signature=[spec])
    staging = folder.parent / f"staging-{folder.name}"
    tf.saved_model.save(module, str(staging), signatures={"serving_default": function})
    staging.rename(folder)


class Server:
    """`python -m serving.model_server` as a process of its own."""

    def __init__(self, base, *flags):
        self.ports = []
        for _ in range(2):
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                self.ports.append(probe.getsockname()[1])
        command = [sys.executable, "-m", "serving.model_server", f"--host={HOST}", f"--model_name={MODEL}"]
        command += [f"--model_base_path={base}", f"--port={self.ports[0]}", f"--rest_api_port={self.ports[1]}"]
        with (base.parent / "server.log").open("a") as log:
            self.process = subprocess.Popen([*command, *flags], stderr=log)

    def client(self, transport="grpc"):
        from serving.client import Client
        from serving.retries import Retries

        # A second try would hide what the first one met.
        return Client(HOST, *self.ports, transport=transport, timeout=60, retries=Retries(attempts=1))

    def wait_for(self, version, seconds=120):
        """Returns once the version is available."""
        from serving.client import ServingError

        deadline = time.monotonic() + seconds
        with self.client() as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(ServingError):
                    states = {entry["version"]: entry["state"] for entry in client.status(MODEL)}
                    if states.get(version) == "AVAILABLE":
                        return
                time.sleep(0.05)
        raise TimeoutError(f"version {version} was not available after {seconds} s")

    def memory(self):
        """Resident memory, MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self):
        """The exit status after a SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


class Callers:
    """Threads that call without a pause and keep what was wrong."""

    def __init__(self, server, clients, served):
        self.served, self.answers, self.wrong = served, 0, []
        self.ending = float("inf")  # when the server was told to stop: it need not take what is sent later
        self._stopping, self._lock = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=self._call, args=(server, ("grpc", "rest")[number % 2], number))
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _call(self, server, transport, number):
        count = 0
        with server.client(transport) as client:
            for turn in itertools.count():
                if self._stopping.is_set():
                    break
                value, started = float((number * 31 + turn) % 997), time.monotonic()
                try:
                    (answer,) = client.predict(MODEL, [value])["y"]
                    problem = None if answer - value / 2 in self.served else f"{answer} for {value}"
                except Exception as error:
                    if started > self.ending - 0.01:
                        break
                    problem = f"{type(error).__name__}: {error}"
                count += 1
                if problem:
                    with self._lock:
                        self.wrong.append(f"{transport}: {problem}")
        with self._lock:
            self.answers += count


def drop_versions(base, served, until):
    """A version every five seconds, every third time with a corrupt one above it; the last good version's number."""
    version, last = 1, 1
    for turn in itertools.count():
        due = time.monotonic() + NEW_VERSION_SECONDS
        version += 1
        if turn % 3 == 2:
            folder = base / f"staging-{version}"
            folder.mkdir()
            (folder / "saved_model.pb").write_bytes(b"\x99 this is no protobuf")
            folder.rename(base / str(version))
            version += 1
        served.add(float(version))  # before it is there: it may answer at once
        save(base / str(version), version)
        last = version
        for old in sorted(int(one.name) for one in base.iterdir() if one.name.isdigit())[:-5]:
            shutil.rmtree(base / str(old))
        if due > until:
            return last
        time.sleep(max(0.0, due - time.monotonic()))


def soak_versions(folder, seconds, clients):
    """What was wrong under callers and new versions; an empty list for nothing."""
    base = folder / "versions"
    base.mkdir()
    save(base / "1", 1)
    served = {1.0}
    server = Server(base, f"--grpc_max_threads={2 * clients}", f"--rest_api_num_threads={clients}")
    server.wait_for(1)
    callers = Callers(server, clients, served)
    started = time.monotonic()
    last = drop_versions(base, served, started + seconds)
    server.wait_for(last)
    callers.ending = time.monotonic()
    status = server.stop()
    callers.stop()
    spent = time.monotonic() - started
    print(f"versions: {callers.answers} answers in {spent:.0f} s, up to version {last}, {len(callers.wrong)} wrong")
    wrong = callers.wrong[:5]
    if status:
        wrong.append(f"the server ended with {status}")
    if callers.answers < clients:
        wrong.append(f"only {callers.answers} answers")
    return wrong


def soak_words(folder, words):
    """What was wrong when every word was new."""
    import keras_seq
    from serving import export_model

    tokenizer = keras_seq.train_tokenizer(LINES, "bpe", 300)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 14, "intermediate_dim": 23, "max_sequence_length": 37}
    base = folder / "words"
    export_model(keras_seq.GPT(tokenizer.vocabulary_size, **sizes), base, tokenizer)
    server = Server(base, "--file_system_poll_wait_seconds=0")
    server.wait_for(1)
    texts, per_text, memory = 50, 8, []
    numbers = itertools.count()
    with server.client() as client:
        for done in range(0, words, texts * per_text):
            batch = [" ".join(f"w{next(numbers):x}q" for _ in range(per_text)) for _ in range(texts)]
            client.predict(MODEL, batch, "score")
            if done >= words // 10 and (not memory or done % (words // 10) < texts * per_text):
                memory.append(server.memory())
    memory.append(server.memory())
    print(f"words: {next(numbers)} new ones; MiB after each tenth: {' '.join(f'{one:.0f}' for one in memory)}")
    server.stop()
    return [] if memory[-1] <= FLAT * memory[0] else [f"{memory[0]:.0f} MiB grew to {memory[-1]:.0f}"]


def soak_swaps(folder, swaps, weights=12_500_000):
    """What was wrong when large versions followed one another."""
    base = folder / "swaps"
    base.mkdir()
    save(base / "1", 1, weights)
    server = Server(base)
    server.wait_for(1)
    memory = [server.memory()]
    with server.client() as client:
        for version in range(2, swaps + 2):
            save(base / str(version), version, weights)
            server.wait_for(version)
            while {entry["version"]: entry["state"] for entry in client.status(MODEL)}[version - 1] != "END":
                time.sleep(0.05)
            memory.append(server.memory())
            shutil.rmtree(base / str(version - 1))
    print(f"swaps: MiB after each: {' '.join(f'{one:.0f}' for one in memory)}")
    server.stop()
    # The first swaps still grow the allocator's pools; after them nothing may stay behind, let alone a version.
    settled = max(memory[: max(2, swaps // 4)])
    return [] if memory[-1] <= FLAT * settled else [f"{settled:.0f} MiB grew to {memory[-1]:.0f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="of load with new versions")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--words", type=int, default=200_000)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--only", choices=("versions", "words", "swaps"))
    given = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if given.only in (None, "versions"):
            wrong += soak_versions(folder, given.seconds, given.clients)
        if given.only in (None, "words"):
            wrong += soak_words(folder, given.words)
        if given.only in (None, "swaps"):
            wrong += soak_swaps(folder, given.swaps)
        log = (folder / "server.log").read_text()
    if wrong:
        print(log[-5000:], file=sys.stderr)
    for problem in wrong:
        print(f"wrong: {problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
