"""For command lines: imports TensorFlow without its start-up chatter, which would bury the lines that matter."""

import os
import sys


def hush() -> None:
    """Tells TensorFlow and gRPC, which are yet to be imported, to keep their chatter to themselves."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # at 2 it still tells of GPUs that are not there
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def import_tensorflow() -> None:
    """Imports TensorFlow and looks for its devices with stderr held shut; an ImportError still comes out.

    TensorFlow writes some of these lines before it reads TF_CPP_MIN_LOG_LEVEL, and past Python's `sys.stderr`.
    """
    hush()
    sys.stderr.flush()
    saved, closed = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(closed, 2)
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(closed)
