"""Order and company of the tests: whoever runs them on two workers should not wait at the end for one long file, nor
make twice what two files share."""

import gc
import random
import socket

import pytest

# Of files with costly session fixtures or imports in common one worker runs all.
JOINED = {
    "tests/training/test_evaluate.py": "tests/training/test_run.py",
    "tests/training/test_gpt_tasks.py": "tests/training/test_run.py",
    "tests/serving/test_answers.py": "tests/serving/test_export.py",
    # They import KerasHub, and with it TensorFlow beside JAX.
    **dict.fromkeys(
        (f"tests/keras_seq/test_{name}.py" for name in ("blocks", "gpt", "positions", "transformer")),
        "tests/keras_seq/test_bert.py",
    ),
}


# Below those that a system gives to its outgoing connections: one might take the port between its finding and its use.
PORTS = range(12_000, 32_000)


def _free_port():
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@pytest.fixture(scope="session")
def free_port():
    """Finds a port that nobody listens on."""
    return _free_port


def pytest_collection_finish():
    """What the imports left, over a million objects, is not looked through again at every collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Files that hold a slow test come first."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(tryfirst=True, optionalhook=True)  # xdist asks only where it runs
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadfile: a worker takes a file, and the one that is joined to it."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return JOINED.get(file, file)

    return Scheduling(config, log)
