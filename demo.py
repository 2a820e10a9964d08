"""`make demo`: five models from text to a served answer, with the public commands alone.

Fits the demo recipes, exports each, serves them together, asks each over REST and over gRPC, and compares both
answers with the model in process. Exits with 1 if any two of them differ. With --keep the server goes on, and how to
ask it is shown.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(".demo")
# Two lanes side by side, for two cores; the classifier starts from the pre-trained BERT of its own lane.
LANES = (
    ("demo-attention", "demo-seq2seq", "demo-gpt"),
    ("demo-transformer", "demo-bert", "demo-bert-classify"),
)
TRANSLATED = ("i am a student", "the doctor that the small sailors know does not see her black boats")
QUESTIONS = {
    "demo-seq2seq": TRANSLATED,
    "demo-attention": TRANSLATED,
    "demo-transformer": TRANSLATED,
    "demo-bert": ("the cook [MASK] a cake in the kitchen", "the nurse is not [MASK]"),
    "demo-bert-classify": ("the opera that i hate is not bad", "my soup is not good"),
    "demo-gpt": ("the sailors that", "she does not"),
}
QUALITY = {
    "demo-seq2seq": ("{exact:.1%} exact, {exact_up_to_7_words:.0%} short, {exact_from_12_words:.0%} long"),
    "demo-attention": ("{exact:.1%} exact, {exact_up_to_7_words:.0%} short, {exact_from_12_words:.0%} long"),
    "demo-transformer": ("{exact:.1%} exact, {exact_up_to_7_words:.0%} short, {exact_from_12_words:.0%} long"),
    "demo-bert": (
        "masked words {masked_accuracy:.1%} of at best {masked_accuracy_best:.1%}, "
        "next sentence {next_sentence_accuracy:.1%} of at best {next_sentence_accuracy_best:.1%}"
    ),
    "demo-bert-classify": "{accuracy:.1%} right",
    "demo-gpt": "{nats_per_word:.3f} nats a word, entropy {entropy_per_word:.3f}",
}


def run(name: str, *command: str) -> None:
    """One public command, its output line by line behind the recipe's name."""
    command = (sys.executable, "-m", *command)
    # A lane has one core: a second thread would only wait for it.
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "COLUMNS": "100"}
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    CHILDREN.append(process)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(name):
            print(line, end="", flush=True)
    if process.wait():
        raise SystemExit(f"error: {' '.join(command[1:])} failed:\n{''.join(lines)}")


CHILDREN: list[subprocess.Popen] = []


def fit_and_export(name: str) -> None:
    """From a recipe to a version folder."""
    start = ("--set", f"start_from={ROOT}/runs/demo-bert") if name == "demo-bert-classify" else ()
    run(name, "training", "fit", name, "--out", f"{ROOT}/runs/{name}", *start)
    run(name, "serving", "export", f"{ROOT}/runs/{name}", f"{ROOT}/exports/{name}")


def lane(names: tuple[str, ...]) -> None:
    for name in names:
        fit_and_export(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_available(server: subprocess.Popen, client, names: tuple[str, ...]) -> None:
    from serving.client import ServingError

    for name in names:
        while True:
            if server.poll() is not None:
                raise SystemExit(f"error: the server ended with {server.returncode}.")
            try:
                if client.status(name)[0]["state"] == "AVAILABLE":
                    break
            except ServingError:
                pass  # it does not listen yet
            time.sleep(0.2)


def ask(client, name: str) -> tuple[list[str], float]:
    """The answers to a model's questions, and the median milliseconds of one of five calls."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        (answers,) = client.predict(name, list(QUESTIONS[name])).values()
        times.append(1000 * (time.perf_counter() - started))
    return answers, sorted(times)[2]


def in_process(name: str) -> list[str]:
    """What the fitted model itself says, without export or server."""
    import tensorflow as tf

    from serving.answers import answers_for
    from serving.export import load_run
    from serving.signatures import SIGNATURES

    answers = answers_for(**load_run(ROOT / "runs" / name))
    function = getattr(answers, SIGNATURES[answers.kind]["serving_default"].function)
    (told,) = function(tf.constant(QUESTIONS[name]))
    return [answer.decode() for answer in told.numpy()]


def main(keep: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    from serving.client import Client
    from serving.model_server import quiet

    quiet.import_tensorflow()
    started = time.perf_counter()
    shutil.rmtree(ROOT, ignore_errors=True)
    with ThreadPoolExecutor(len(LANES)) as pool:
        lanes = [pool.submit(lane, names) for names in LANES]
        try:
            for done in lanes:
                done.result()
        except BaseException:  # the pool waits for both lanes, and a lane for its command: end that first
            stop_children()
            raise
    names = tuple(QUESTIONS)
    port, rest_api_port = (8500, 8501) if keep else (free_port(), free_port())
    ports = ("--port", str(port), "--rest_api_port", str(rest_api_port))
    print("serving", flush=True)
    output = None if keep else subprocess.DEVNULL
    server = subprocess.Popen(
        (sys.executable, "-m", "serving", "serve", f"{ROOT}/exports", *ports), stdout=output, start_new_session=keep
    )
    CHILDREN.append(server)
    rest = Client(rest_api_port=rest_api_port)
    wait_until_available(server, rest, names)
    grpc = Client(port=port, transport="grpc")
    table = Table("model", "parameters", "fit s", "held-out", "asked", "REST", "gRPC", "ms", title="make demo")
    different = []
    for name in names:
        (over_rest, rest_ms), (over_grpc, grpc_ms), told = ask(rest, name), ask(grpc, name), in_process(name)
        if not over_rest == over_grpc == told:
            different.append(f"{name}: REST {over_rest}, gRPC {over_grpc}, in process {told}")
        metrics = json.loads((ROOT / "runs" / name / "metrics.json").read_text())
        numbers = (f"{metrics['parameters']:,}", f"{metrics['seconds']:.0f}", QUALITY[name].format(**metrics["test"]))
        texts = ("\n".join(one) for one in (QUESTIONS[name], over_rest, over_grpc))
        table.add_row(name, *numbers, *texts, f"{rest_ms:.1f} REST\n{grpc_ms:.1f} gRPC", end_section=True)
    Console(width=max(150, Console().width)).print(table)
    for line in different:
        print(f"error: the answers differ. {line}", file=sys.stderr)
    print(f"REST, gRPC and the model in process {'differ' if different else 'agree'}; "
          f"{time.perf_counter() - started:.0f} s in all.")  # fmt: skip
    if keep:
        CHILDREN.remove(server)
        print(f"The server goes on as process {server.pid}; kill {server.pid} ends it. Ask it:")
        print('  .venv/bin/python -m serving ask demo-transformer "i am a student"')
        print(
            '  curl -d \'{"instances": ["i am a student"]}\' http://127.0.0.1:8501/v1/models/demo-transformer:predict'
        )
    return 1 if different else 0


def stop_children() -> None:
    """Ends what is still running, whatever happened."""
    for process in CHILDREN:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in CHILDREN:
        process.wait()


if __name__ == "__main__":
    # A killed demo ends its children too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = main("--keep" in sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    finally:
        stop_children()
    sys.exit(code)
