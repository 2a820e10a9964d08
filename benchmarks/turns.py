"""Several programs measured in turn, each in a process of its own: A B C A B C ..., so that a noisy minute strikes all
alike; speeds are told as ratios, memory above that of the bare imports.

A contestant is a generator function: it imports what it needs and yields; builds everything and yields a function that
does the work once.
"""

import dataclasses
import importlib
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time

ROUNDS = 7
FLOOR = "its matrix products alone"  # no rival but a bound: told in the tables, not drawn
RESULTS = pathlib.Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one contestant showed.

    Args:
        seconds: of each round.
        memory: greatest resident memory above the bare imports, MiB.
        answer: what the work returned, for a comparison.
    """

    seconds: list
    memory: float
    answer: object

    @property
    def median(self):
        return statistics.median(self.seconds)


def measure(contestants, rounds=ROUNDS):
    """Runs all contestants in turn.

    Args:
        contestants: dict of name -> (generator function at the top of a module, dict of its arguments).
        rounds: timed turns of each, after two that are not.

    Returns:
        dict of name -> Reading.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, (function, arguments) in contestants.items():
        ours, theirs = context.Pipe()
        module = sys.modules[function.__module__].__spec__
        path = (module.name if module else function.__module__, function.__name__)
        process = context.Process(target=_work, args=(theirs, path, arguments), daemon=True)
        process.start()
        theirs.close()
        workers[name] = (process, ours)
        _receive(name, ours)  # One after another: the memory of a start-up is not to be shared by two.
    seconds = {name: [] for name in contestants}
    for turn in range(rounds + 2):
        for name, (_, pipe) in workers.items():
            pipe.send("go")
            taken = _receive(name, pipe)
            if turn >= 2:
                seconds[name].append(taken)
    readings = {}
    for name, (process, pipe) in workers.items():
        pipe.send("stop")
        memory, answer = _receive(name, pipe)
        readings[name] = Reading(seconds[name], memory, answer)
        process.join()
    return readings


def _receive(name, pipe):
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError(f"The contestant {name!r} ended before its time; what it said stands above.") from None


def _work(pipe, path, arguments):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stages = getattr(importlib.import_module(path[0]), path[1])(**arguments)
    next(stages)
    bare = _resident()
    work = next(stages)
    pipe.send("ready")
    answer = None
    while pipe.recv() == "go":
        start = time.perf_counter()
        answer = work()
        pipe.send(time.perf_counter() - start)
    pipe.send((_resident("VmHWM") - bare, answer))


def _resident(what="VmRSS"):
    """Resident memory now, or the greatest so far ("VmHWM"), MiB: `ru_maxrss` would begin with that of the parent."""
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(what))


def report(title, readings, unit, amount):
    """Prints a table in Markdown, each contestant's speed against the first's, and keeps it for benchmarks.plot.

    Args:
        title: of the table.
        readings: from `measure`; the first is ours.
        unit: of the time told, e.g. "ms/step".
        amount: by which a work's milliseconds are divided.
    """
    first = next(iter(readings.values()))
    lines = [f"| program | {unit} | ours is faster by | memory above imports, MiB |", "|---|---:|---:|---:|"]
    kept = []
    for name, reading in readings.items():
        ratios = [theirs / ours for theirs, ours in zip(reading.seconds, first.seconds)]
        ratio = statistics.median(ratios)
        told = "" if reading is first else f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        milliseconds = reading.median * 1000 / amount
        lines.append(f"| {name} | {milliseconds:.1f} | {told} | {reading.memory:,.0f} |")
        kept.append({"program": name, unit: milliseconds, "ratio": ratio, "range": [min(ratios), max(ratios)]})
    print(f"\n### {title}\n\n" + "\n".join(lines), flush=True)
    keep(title, kept)


def keep(title, programs):
    """Writes a table down for benchmarks.plot.

    Args:
        title: of the table.
        programs: a dict for each, the first ours: its name as "program", its "ratio" to ours, the "range" of that.
    """
    RESULTS.mkdir(exist_ok=True)
    slug = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    (RESULTS / f"{slug}.json").write_text(json.dumps({"title": title, "programs": programs}, indent=1) + "\n", "utf-8")
