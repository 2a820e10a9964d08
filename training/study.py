"""What the history of the three translators claims, measured: `python -m training study`.

One context vector forgets long sentences and starves early words of gradient; attention does not; without recurrence a
step takes as long for long sentences as for short. Three models of about as many parameters learn the built-in grammar,
whose relative clauses nest between subject and verb; results.json holds every number, table.md and pictures show them.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_seq
from keras_seq.packing import pack_start_end
from training import grammar, run, study_plots
from training.files import read_json, write_beside, write_json
from training.in_process import InProcess
from training.pipelines import translation_pairs
from training.recipes import Recipe
from training.run import Run

# Widths for about 0.8 million parameters each.
MODELS: dict[str, dict[str, Any]] = {
    "seq2seq": {"hidden_dim": 192, "embedding_dim": 128, "cell": "lstm"},
    "attention": {"hidden_dim": 112, "embedding_dim": 128, "cell": "lstm"},
    "transformer": {"num_layers": 2, "num_heads": 4, "hidden_dim": 128, "intermediate_dim": 256, "dropout": 0.0},
}
RATES = {"seq2seq": 3e-3, "attention": 3e-3, "transformer": 2e-3}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sizes of a study.

    Args:
        depths: nested relative clauses in the subject of every sentence; each is trained on alike.
        train_examples: sentences of each depth.
        test_examples: sentences of each depth that are translated.
        steps: of training.
        tokens_per_batch: places in a batch of training and of timing.
        gradient_depth: of the sentences whose gradients are taken.
        lengths: source and target tokens of the timed steps.
        rounds: timed turns.
        seed: of everything.
    """

    depths: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    train_examples: int = 20_000
    test_examples: int = 200
    steps: int = 2500
    tokens_per_batch: int = 1500
    gradient_depth: int = 4
    lengths: tuple[int, ...] = (8, 16, 32, 64, 128)
    rounds: int = 20
    seed: int = 0


FULL = Plan()
QUICK = Plan((0, 2), 60, 5, 4, 300, 2, (3, 7), 1)


def study(out: str | Path, plan: Plan = FULL, progress: bool = True) -> dict[str, Any]:
    """Trains (or goes on training) the three models in `out`, measures them, writes results.json, table.md, pictures.

    Returns:
        What results.json holds.
    """
    out = Path(out)
    files = write_corpus(out, plan)
    runs = {name: run.fit(recipe_of(name, plan, files), out / name, resume=True, progress=progress) for name in MODELS}
    started = time.perf_counter()
    results = measure(runs, plan)
    results["training_seconds"] = {name: read_json(out / name / "metrics.json")["seconds"] for name in MODELS}
    results["measuring_seconds"] = round(time.perf_counter() - started)
    write_json(out / "results.json", results)
    write_beside(out / "table.md", lambda beside: beside.write_text(table(results), "utf-8"))
    study_plots.draw(results, out)
    return results


def write_corpus(out: Path, plan: Plan) -> dict[str, str]:
    """Sentences of every depth, one after another, as the files of a recipe."""
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, count in (("train", plan.train_examples), ("validation", 20), ("test", plan.test_examples)):
        lines = [pair for depth in plan.depths for pair in grammar.sentence_pairs(split, count, plan.seed, depth=depth)]
        text = "".join(f"{english}\t{french}\n" for english, french in lines)
        write_beside(out / f"{split}.tsv", functools.partial(Path.write_text, data=text, encoding="utf-8"))
        files[split] = str(out / f"{split}.tsv")
    return files


def recipe_of(name: str, plan: Plan, files: dict[str, str]) -> Recipe:
    """How one of MODELS is trained."""
    return Recipe(
        architecture=name,
        corpus="tsv-pairs",
        files=files,
        model=MODELS[name],
        tokenizer="word",
        vocabulary_size=2000,
        max_sequence_length=56,
        max_new_tokens=56,
        steps=plan.steps,
        steps_per_epoch=max(1, plan.steps // 10),
        tokens_per_batch=plan.tokens_per_batch,
        warmup_steps=max(1, plan.steps // 20),
        learning_rate=RATES[name],
        seed=plan.seed,
    )


def measure(runs: dict[str, Run], plan: Plan) -> dict[str, Any]:
    """All that the study shows of trained models, as plain data."""
    fresh = {name: fresh_model(one) for name, one in runs.items()}
    like = same_length(grammar.sentence_pairs("test", 40 * plan.test_examples, plan.seed, depth=plan.gradient_depth))
    return {
        "plan": dataclasses.asdict(plan),
        "parameters": {name: one.model.count_params() for name, one in runs.items()},
        "exact": exact(runs, plan),
        "gradients": {
            "tokens": 1 + like[0][0].count(" ") + 1,
            "sentences": len(like[:100]),
            "before": {name: gradients(fresh[name], runs[name], like[:100]) for name in runs},
            "after": {name: gradients(one.model, one, like[:100]) for name, one in runs.items()},
        },
        "seconds_per_step": {
            "encoder": seconds(fresh, encoder_step, plan),
            "whole": seconds(fresh, whole_step, plan),
        },
        "attention": attention({name: one for name, one in runs.items() if name != "seq2seq"}, plan),
    }


def fresh_model(one: Run) -> keras.Model:
    """The run's model as it was before training."""
    keras.utils.set_random_seed(one.recipe.seed)
    return run.build_model(one.recipe, one.tokenizer, one.target_tokenizer, one.labels)


# ---- Exact translations ----------------------------------------------------------------------------------------------


def exact(runs: dict[str, Run], plan: Plan) -> list[dict[str, Any]]:
    """For each depth the mean number of English words, and each model's share of translations without any error."""
    rows = []
    for depth in plan.depths:
        pairs = grammar.sentence_pairs("test", plan.test_examples, plan.seed, depth=depth)
        english, french = [a for a, _ in pairs], [b for _, b in pairs]
        shares = {
            name: float(np.mean([a == b for a, b in zip(InProcess(one).translate(english), french, strict=True)]))
            for name, one in runs.items()
        }
        rows.append({"depth": depth, "words": float(np.mean([1 + one.count(" ") for one in english])), **shares})
    return rows


# ---- The gradient that reaches each source position ------------------------------------------------------------------


def same_length(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs whose English has the commonest number of words, so that their positions can be averaged."""
    words = [one.count(" ") for one, _ in pairs]
    return [pair for pair, count in zip(pairs, words, strict=True) if count == statistics.mode(words)]


def gradients(model: keras.Model, one: Run, pairs: list[tuple[str, str]]) -> list[float]:
    """For each source position, the norm of the gradient of the last French word's loss by the position's embedding.

    Args:
        model: the run's, or one of its kind.
        one: whose tokenizers are used.
        pairs: with as many English words each.

    Returns:
        one mean over the pairs for each position, the end token's the last.
    """
    recipe = one.recipe
    batches = translation_pairs(pairs, one.tokenizer, one.target_tokenizer, recipe.max_sequence_length, 10**6, 100)
    inputs, labels, weights = next(iter(batches))
    embedding = model.source_embedding
    name = embedding.output.name
    from_embedded = keras.Model({**model.input, name: embedding.output}, model.output)
    embedded = embedding(inputs["encoder_token_ids"])
    last = tf.one_hot(tf.reduce_sum(tf.cast(weights, tf.int32), axis=1) - 2, tf.shape(labels)[1])  # then comes the end
    with tf.GradientTape() as tape:
        tape.watch(embedded)
        logits = from_embedded({**inputs, name: embedded})
        nll = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        loss = tf.reduce_sum(nll * last)  # of rows that do not touch one another: each keeps its own gradient
    norms_bs = tf.norm(tf.convert_to_tensor(tape.gradient(loss, embedded)), axis=-1)
    return tf.reduce_mean(norms_bs, axis=0).numpy().tolist()


# ---- Time ------------------------------------------------------------------------------------------------------------


def seconds(models: dict[str, keras.Model], make_step: Callable, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Seconds of a forward and backward pass at each length, the models in turn; each step has as many tokens.

    Returns:
        for each model and length {"length", "seconds" (of the fastest turn, which others on the machine disturbed
        least), "ratio" (the median, over the turns, to the transformer's)}.
    """
    steps = {name: make_step(model) for name, model in models.items()}
    batches = {length: random_batch(length, plan) for length in plan.lengths}
    taken: dict[tuple[str, int], list[float]] = {(name, length): [] for name in models for length in plan.lengths}
    for turn in range(plan.rounds + 1):  # the first is not counted: it traces
        for length, batch in batches.items():
            for name, step in steps.items():
                began = time.perf_counter()
                step(batch)
                if turn:
                    taken[name, length].append(time.perf_counter() - began)

    def told(name: str, length: int) -> dict[str, Any]:
        times, others = taken[name, length], taken["transformer", length]
        ratio = statistics.median(a / b for a, b in zip(times, others, strict=True))
        return {"length": length, "seconds": min(times), "ratio": ratio}

    return {name: [told(name, length) for length in plan.lengths] for name in models}


def random_batch(length: int, plan: Plan) -> dict[str, tf.Tensor]:
    """Inputs of a translator, all places real, `tokens_per_batch` of them in source and target each."""
    rows = max(1, plan.tokens_per_batch // length)
    ids = tf.constant(np.random.default_rng(plan.seed).integers(4, 100, (rows, length)), tf.int32)
    real = tf.ones((rows, length), tf.bool)
    return {
        "encoder_token_ids": ids,
        "encoder_padding_mask": real,
        "decoder_token_ids": ids,
        "decoder_padding_mask": real,
    }


def _step(model: keras.Model, loss_of: Callable) -> Callable:
    def step(inputs: dict[str, tf.Tensor]) -> list[Any]:
        with tf.GradientTape() as tape:
            loss = loss_of(inputs, model({name: inputs[name] for name in model.input}, training=True))
        return tape.gradient(loss, model.trainable_variables)

    ids, real = tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, None), tf.bool)
    names = ("encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask")
    signature = {name: real if name.endswith("mask") else ids for name in names}
    return tf.function(step, input_signature=[signature])  # one trace for all lengths


def encoder_step(model: keras.Model) -> Callable:
    """Forward and backward through the encoder alone."""
    last = model.encoder_blocks[-1] if hasattr(model, "encoder_blocks") else model.encoder
    inputs = {name: tensor for name, tensor in model.input.items() if name.startswith("encoder")}
    return _step(keras.Model(inputs, last.output[0]), lambda _, encoded: tf.reduce_mean(tf.square(encoded)))


def whole_step(model: keras.Model) -> Callable:
    """Forward and backward through the whole model."""
    loss = keras_seq.TokenCrossentropy()
    return _step(model, lambda inputs, logits: loss(inputs["decoder_token_ids"], logits))


# ---- Attention -------------------------------------------------------------------------------------------------------


def attention(runs: dict[str, Run], plan: Plan) -> dict[str, dict[str, Any]]:
    """Of one sentence, where each model looked while it wrote its translation: tokens and weights (t, s)."""
    depth = min(2, max(plan.depths))
    pairs = grammar.sentence_pairs("test", 21, plan.seed + 1, depth=depth)
    english, _ = sorted(pairs, key=lambda pair: len(pair[0]))[10]  # of middling length, to be legible
    maps = {}
    for name, one in runs.items():
        french = InProcess(one).translate([english])[0]
        source = pack_start_end(one.tokenizer.tokenize([english]), None, one.tokenizer.end_token_id).to_tensor()
        target = one.target_tokenizer
        written = pack_start_end(target.tokenize([french]), target.start_token_id, target.end_token_id).to_tensor()
        inputs = {
            "encoder_token_ids": source,
            "encoder_padding_mask": tf.ones_like(source, tf.bool),
            "decoder_token_ids": written[:, :-1],
            "decoder_padding_mask": tf.ones_like(written[:, :-1], tf.bool),
        }
        weights_ts = one.model.attention_model(inputs)[0].numpy()
        maps[name] = {
            "source": [*english.split(" "), "[end]"],
            "target": [target.id_to_token(int(token)) for token in written[0, 1:-1]] + ["[end]"],
            "weights": weights_ts.tolist(),
        }
    return maps


# ---- The table -------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """The numbers in Markdown."""
    names = list(results["parameters"])
    heads = [study_plots.LABELS[name] for name in names]
    counts = [f"{results['parameters'][name]:,}" for name in names]
    lines = [
        "| | " + " | ".join(heads) + " |",
        "|---" * (1 + len(names)) + "|",
        f"| parameters | {' | '.join(counts)} |",
    ]
    for row in results["exact"]:
        shares = " | ".join(f"{row[name]:.1%}" for name in names)
        lines.append(f"| exact translations, depth {row['depth']}, {row['words']:.1f} words | {shares} |")
    for when in ("before", "after"):
        found = [results["gradients"][when][name] for name in names]
        ratios = " | ".join(f"{one[0] / one[-2]:.2g}" for one in found)
        lines.append(f"| gradient at the first word / at the last, {when} training | {ratios} |")
    for part, what in (("encoder", "encoder"), ("whole", "whole model")):
        for at, length in enumerate(results["plan"]["lengths"]):
            ratios = " | ".join(f"{results['seconds_per_step'][part][name][at]['ratio']:.2f}" for name in names)
            lines.append(f"| time of a step, {what}, {length} tokens, in Transformers | {ratios} |")
    return "\n".join([*lines, ""])
