"""The run's own model, asked as an endpoint is: text in, text out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.run import Run

BATCH = 100  # texts asked at once


class InProcess:
    """The run's own model; each method asks for texts sorted by length, and answers in the order they came in."""

    def __init__(self, run: Run):
        self.run = run

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Greedy translations."""
        import tensorflow as tf

        from keras_seq.packing import pack_start_end
        from training.pipelines import token_rows

        run, limit = self.run, self.run.recipe.max_sequence_length
        target = run.target_tokenizer
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        answers = [""] * len(texts)
        new_tokens = min(run.recipe.max_new_tokens, limit)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            rows = token_rows(run.tokenizer, [texts[i] for i in chosen], limit - 1)
            rows = pack_start_end(rows, None, run.tokenizer.end_token_id)
            ids = rows.to_tensor(0)
            inputs = {
                "encoder_token_ids": ids,
                "encoder_padding_mask": tf.sequence_mask(rows.row_lengths(), ids.shape[1]),
            }
            written = run.model.generate(inputs, new_tokens, target.end_token_id, target.start_token_id)
            for i, answer in zip(chosen, target.detokenize(tf.constant(written["token_ids"])).numpy()):
                answers[i] = answer.decode()
        return answers

    def score(self, texts: Sequence[str]) -> tuple[float, int]:
        """Summed log-probability in nats and number of tokens, the end counted."""
        from training.pipelines import counted, text_lines

        recipe = self.run.recipe
        batches = text_lines(texts, self.run.tokenizer, recipe.max_sequence_length, recipe.tokens_per_batch)
        return self.total(counted(batches))

    def total(self, batches: Any) -> tuple[float, int]:
        """Summed log-probability of the labels under the logits, and their number, over real tokens."""
        import keras

        total, count = 0.0, 0
        for inputs, labels, weights in batches:
            logits = self.run.model.predict_on_batch(inputs)
            nll = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            total -= float(np.sum(np.asarray(nll, "float64") * np.asarray(weights)))
            count += int(np.sum(np.asarray(weights) > 0))
        return total, count

    def classify(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        from training.pipelines import segments, token_rows

        labels = self.run.labels or []
        answers = []
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            rows = token_rows(self.run.tokenizer, some, self.run.recipe.max_sequence_length - 2)
            logits = self.run.model(_dense(segments((rows,), self.run.tokenizer)), training=False)
            answers += [labels[i] for i in np.argmax(logits, axis=-1)]
        return answers

    def follows(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[float]:
        """The probability that each second sentence follows the first."""
        answers: list[float] = []
        for start in range(0, len(firsts), BATCH):
            inputs = self._pair(firsts[start : start + BATCH], seconds[start : start + BATCH])
            inputs["mask_positions"] = np.zeros((len(inputs["token_ids"]), 1), "int32")
            logits = np.asarray(self.run.model(inputs, training=False)["next_sentence"])
            answers += list(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])))
        return answers

    def fill(self, first: Sequence[str | None], second: Sequence[str | None]) -> list[str]:
        """The likeliest word for each None in a pair of sentences."""
        tokenizer = self.run.tokenizer
        texts = (
            " ".join(word or tokenizer.id_to_token(tokenizer.mask_token_id) for word in half)
            for half in (first, second)
        )
        inputs = self._pair(*([text] for text in texts))
        places = np.flatnonzero(np.asarray(inputs["token_ids"])[0] == tokenizer.mask_token_id).astype("int32")
        logits = self.run.model({**inputs, "mask_positions": places[None]}, training=False)["masked_lm"]
        return [tokenizer.id_to_token(int(i)) for i in np.argmax(logits, axis=-1)[0]]

    def _pair(self, firsts: Sequence[str], seconds: Sequence[str]) -> dict[str, Any]:
        from training.pipelines import segments, token_rows

        half = (self.run.recipe.max_sequence_length - 3) // 2
        rows = [token_rows(self.run.tokenizer, texts, half) for texts in (firsts, seconds)]
        return _dense(segments(rows, self.run.tokenizer))


def _dense(rows: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    lengths = rows["token_ids"].row_lengths()
    dense = {name: part.to_tensor(0) for name, part in rows.items()}
    return {**dense, "padding_mask": tf.sequence_mask(lengths, dense["token_ids"].shape[1])}
