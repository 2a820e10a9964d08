"""The time of strings to ids, ours against KerasHub's tokenizers in a graph, in turn in one process.

    KERAS_SEQ_DATA=... python -m benchmarks.tokenizers [--lines 1000] [--rounds 7] [--batch 1 32 1000]

Each round runs both, one after the other, over the same lines with the same vocabulary, once as a call of a
`tf.function` for each batch and once as `dataset.map` over all of them. `call` and `map` are KerasHub's time over ours,
the medians of the rounds: above 1, ours is faster. `tokenizers` is the time of Hugging Face's library (Rust, outside
the graph, one thread) over ours in calls. KerasHub's byte pairs keep every word they have seen in a mutable table: they
are timed with all words in it.
"""

import argparse
import gzip
import os
import pathlib
import statistics
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXTS = {
    "English": "multi30k/train.en.gz",
    "German": "multi30k/train.de.gz",
    "Korean": "nsmc/ratings_train.txt.gz",
}


def read(folder, name, count):
    with gzip.open(folder / name, "rt", encoding="utf-8", newline="\n") as file:
        lines = [line.rstrip("\n") for _, line in zip(range(count + 1), file)]
    # Of the reviews, the text between the identifier and the label.
    return [line.split("\t")[1] if "\t" in line else line for line in lines][1:]


def word_pieces(folder):
    import keras_hub
    import tokenizers

    import keras_seq

    path = str(folder / "tokenizers" / "bert-base-uncased-vocab.txt")
    theirs = keras_hub.tokenizers.WordPieceTokenizer(path, lowercase=True, strip_accents=True)
    return keras_seq.WordPieceTokenizer(path), theirs, tokenizers.BertWordPieceTokenizer(path, lowercase=True)


def byte_pairs(folder):
    import keras_hub
    import tokenizers

    import keras_seq

    paths = [str(folder / "tokenizers" / name) for name in ("gpt2-encoder.json", "gpt2-vocab.bpe")]
    theirs = keras_hub.tokenizers.BytePairTokenizer(*paths)
    return keras_seq.BytePairTokenizer(*paths), theirs, tokenizers.ByteLevelBPETokenizer(*paths)


def in_calls(tokenize, batches):
    import tensorflow as tf

    function = tf.function(tokenize, input_signature=[tf.TensorSpec([None], tf.string)])
    batches = [tf.constant(batch) for batch in batches]

    def run():
        for batch in batches:
            function(batch)

    return run


def in_a_pipeline(tokenize, batches):
    import tensorflow as tf

    lines = tf.data.Dataset.from_generator(lambda: batches, output_signature=tf.TensorSpec([None], tf.string))
    ids = lines.cache().repeat().map(tokenize)
    # One step of the iterator, which starts once, goes through all batches; nothing is worked out beforehand.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    counts = iter(ids.map(lambda ids: tf.size(ids.flat_values)).batch(len(batches)).with_options(options))
    return lambda: next(counts)


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(runs, rounds):
    """Medians over the rounds of each run's seconds; each round runs all of them, one after another."""
    for run in runs:
        run()
        run()
    times = [[seconds(run) for run in runs] for _ in range(rounds)]
    return [statistics.median(one) for one in zip(*times)]


COLUMNS = (
    ("text", 8),
    ("tokenizer", 10),
    ("batch", 5),
    ("us/line", 8),
    ("call", 6),
    ("map", 6),
    ("tokenizers", 10),
)


def show(*cells):
    print(" ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS)), flush=True)


def measure(make, folder, batches, rounds):
    """Seconds of ours in calls, and the ratios of the table."""
    ours, theirs, host = make(folder)
    both = ours.tokenize, theirs.tokenize
    calls = [*(in_calls(tokenize, batches) for tokenize in both), lambda: [host.encode_batch(one) for one in batches]]
    call = in_turn(calls, rounds)
    mapped = in_turn([in_a_pipeline(tokenize, batches) for tokenize in both], rounds)
    return call[0], call[1] / call[0], mapped[1] / mapped[0], call[2] / call[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 1000])
    parser.add_argument(
        "--tokenizer", choices=["WordPiece", "byte pairs"], nargs="+", default=["WordPiece", "byte pairs"]
    )
    options = parser.parse_args()
    folder = pathlib.Path(os.environ.get("KERAS_SEQ_DATA", "data"))
    show(*(name for name, _ in COLUMNS))
    for language, name in TEXTS.items():
        lines = read(folder, name, options.lines)
        for kind in options.tokenizer:
            for batch in options.batch:
                some = lines[: batch * 100]
                batches = [some[i : i + batch] for i in range(0, len(some), batch)]
                make = word_pieces if kind == "WordPiece" else byte_pairs
                ours, *ratios = measure(make, folder, batches, options.rounds)
                show(language, kind, batch, f"{ours / len(some) * 1e6:.1f}", *(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
