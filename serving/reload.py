"""`python -m serving.reload FOLDER QUESTIONS ANSWERS`: what an export answers in a process that knows nothing else.

It loads the version as TensorFlow Serving does, into a Session, and imports neither the library nor Keras.
"""

import sys
from typing import Any

import numpy as np


def main(folder: str, questions: str, answers: str) -> None:
    """Answers the arrays in `questions` (signature|input, strings marked with "|" at their end) into `answers`."""
    import tensorflow as tf

    collected: dict[str, Any] = {}
    with np.load(questions) as given, tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], folder)
        for name in {key.partition("|")[0] for key in given.files}:
            signature = graph.signature_def[name]
            feed = {signature.inputs[key].name: _unmarked(given[f"{name}|{key}"]) for key in signature.inputs}
            fetched = session.run({key: info.name for key, info in signature.outputs.items()}, feed)
            collected |= {f"{name}|{key}": _marked(value) for key, value in fetched.items()}
    np.savez(answers, **collected)


def _unmarked(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "S":
        return array
    return np.array([value[:-1] for value in array.ravel()], dtype=object).reshape(array.shape)


def _marked(array: np.ndarray) -> np.ndarray:
    # NumPy drops zero bytes at the end of fixed-width strings: the mark keeps them.
    if array.dtype != object:
        return array
    return np.array([bytes(value) + b"|" for value in array.ravel()], dtype="S").reshape(array.shape)


if __name__ == "__main__":
    # TensorFlow imports Keras where it finds it, for a second of CPU time, and does without where it does not.
    sys.modules["keras"] = None  # type: ignore[assignment]
    main(*sys.argv[1:])
