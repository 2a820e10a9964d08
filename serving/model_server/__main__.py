"""`python -m serving.model_server`: the embedded server with tensorflow_model_server's flags."""

import gc
import logging
import signal
import sys
import threading

from serving.model_server import quiet


def main(arguments: list[str]) -> int:
    """Serves until SIGTERM or SIGINT; 0 after an orderly stop, 1 when it cannot start, 2 for a wrong flag."""
    quiet.hush()
    from serving.model_server import flags  # without TensorFlow: a wrong flag is told at once

    if {"--help", "-h", "-help"} & set(arguments):
        print(flags.help_text())
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        values = flags.parse_flags(arguments)
        if values["version"]:
            quiet.import_tensorflow()
            print(flags.version_text())
            return 0
        models = flags.models_from_flags(values)
        flags.batching_from_flags(values)
    except flags.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return serve(models, values)


def serve(models: list, values: dict) -> int:
    """Starts, waits for a signal, stops."""
    quiet.import_tensorflow()
    from serving.model_server import flags
    from serving.model_server.server import ModelServer

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    # The collector runs once after each swap; what was imported, most of all objects, need not be looked at again.
    gc.freeze()
    try:
        server = ModelServer(models, **values)
        server.start(stopping)
    except flags.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stopping.wait()
    logging.getLogger("serving.model_server").info("stopping")
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
