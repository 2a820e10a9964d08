"""The run's own model, asked as an endpoint is: text in, text out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_seq import GPT, BeamSampler, GPTSimilarityClassifier
from keras_seq.packing import pack_task
from training.run import Run

BATCH = 100  # texts asked at once
SPANS = 20  # questions, each with all windows of its context


class InProcess:
    """The run's own model, asked for texts of about one length together; the answers are in the order of the texts."""

    def __init__(self, run: Run, beams: BeamSampler | None = None):
        self.run, self.beams = run, beams

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The best translations, greedy ones or of the beams."""
        import tensorflow as tf

        from keras_seq.packing import MAX_SOURCE, pack_start_end
        from training.pipelines import token_rows

        run = self.run
        limit = getattr(run.model, "max_sequence_length", MAX_SOURCE)  # as served: a recurrent model has no positions
        target = run.target_tokenizer
        new_tokens = min(run.recipe.max_new_tokens, limit)

        def ask(some: Sequence[str]) -> list[str]:
            rows = token_rows(run.tokenizer, some, limit - 1)
            rows = pack_start_end(rows, None, run.tokenizer.end_token_id)
            ids = rows.to_tensor(0)
            inputs = {
                "encoder_token_ids": ids,
                "encoder_padding_mask": tf.sequence_mask(rows.row_lengths(), ids.shape[1]),
            }
            written = run.model.generate(inputs, new_tokens, target.end_token_id, target.start_token_id, self.beams)
            token_ids = written["token_ids"] if self.beams is None else written["token_ids"][:, 0]
            return [answer.decode() for answer in target.detokenize(tf.constant(token_ids)).numpy()]

        return answered(ask, texts)

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
        for inputs, labels, weights in batches.as_numpy_iterator():  # JAX takes no tensors of TensorFlow
            logits = self.run.model.predict_on_batch(inputs)
            nll = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            total -= float(np.sum(np.asarray(nll, "float64") * np.asarray(weights)))
            count += int(np.sum(np.asarray(weights) > 0))
        return total, count

    def classify(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        from training.pipelines import token_rows

        labels = self.run.labels or []

        def ask(some: Sequence[str]) -> list[str]:
            logits = self._logits(self._joined(token_rows(self.run.tokenizer, some, self._limit - 2)))
            return [labels[i] for i in np.argmax(logits, axis=-1)]

        return answered(ask, texts)

    def follows(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[float]:
        """The probability that each second sentence follows the first."""

        def ask(some: Sequence[str], others: Sequence[str]) -> list[float]:
            inputs = self._pair(some, others)
            inputs["mask_positions"] = np.zeros((len(inputs["token_ids"]), 1), "int32")
            logits = np.asarray(self.run.model(inputs, training=False)["next_sentence"])
            return list(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])))

        return answered(ask, firsts, seconds)

    def fill(self, first: Sequence[str | None], second: Sequence[str | None]) -> list[str]:
        """The likeliest word for each None in a pair of sentences; "" where it lies beyond what the model reads."""
        tokenizer = self.run.tokenizer
        texts = (
            " ".join(word or tokenizer.id_to_token(tokenizer.mask_token_id) for word in half)
            for half in (first, second)
        )
        inputs = self._pair(*([text] for text in texts))
        places = np.flatnonzero(np.asarray(inputs["token_ids"])[0] == tokenizer.mask_token_id).astype("int32")
        logits = self.run.model({**inputs, "mask_positions": places[None]}, training=False)["masked_lm"]
        words = [tokenizer.id_to_token(int(i)) for i in np.argmax(logits, axis=-1)[0]]
        halves, answers = np.asarray(inputs["segment_ids"])[0, places], []
        for i, half in enumerate((first, second)):
            read = [word for word, segment in zip(words, halves, strict=True) if segment == i]
            answers += read + [""] * (half.count(None) - len(read))
        return answers

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """The label of each word: that of its first sub-word."""
        from training.fine_tuning import with_offsets
        from training.pipelines import segments

        names = self.run.labels or []

        def ask(some: Sequence[Sequence[str]]) -> list[list[str]]:
            offsets = with_offsets(self.run.tokenizer, joined(some))
            ids, starts, ends = (part[:, : self._limit - 2] for part in offsets)
            best = np.argmax(self.run.model(_dense(segments((ids,), self.run.tokenizer)), training=False), axis=-1)
            return [
                labels_of_words(words, first, last, [names[i] for i in row[1 : 1 + len(first)]])
                for words, row, first, last in zip(some, best, starts.to_list(), ends.to_list())
            ]

        return answered(ask, sentences)

    def find(self, questions: Sequence[str], contexts: Sequence[str], null: bool) -> list[str]:
        """The best answer in each context; with `null` "" where no answer scores more."""
        return answered(lambda some, where: self._find(some, where, null), questions, contexts, size=SPANS)

    def _find(self, questions: Sequence[str], contexts: Sequence[str], null: bool) -> list[str]:
        from keras_seq import best_spans
        from keras_seq.packing import MAX_WINDOWS, pack_windows
        from training.fine_tuning import with_offsets
        from training.pipelines import token_rows

        tokenizer, limit = self.run.tokenizer, self._limit
        ids, starts, ends = with_offsets(tokenizer, contexts)
        asked = token_rows(tokenizer, questions, (limit - 3) // 2)
        packed = pack_windows(asked, ids, tokenizer.start_token_id, tokenizer.end_token_id, limit, MAX_WINDOWS)
        inputs = _dense({name: packed[name] for name in ("token_ids", "segment_ids")})
        begins, lengths = packed["starts"].numpy()[:, None], packed["token_ids"].row_lengths().numpy()[:, None]
        places = np.arange(inputs["token_ids"].shape[1])[None]
        inputs["answer_mask"] = (places >= begins) & (places < lengths - 1)
        logits = self.run.model(inputs, training=False)
        found = {
            name: np.asarray(one) for name, one in best_spans(logits["start_logits"], logits["end_logits"]).items()
        }
        best = [(0.0 if null else -np.inf, "")] * len(questions)
        for window, row in enumerate(packed["rows"].numpy()):
            score = -float(found["null_difference"][window])
            if inputs["answer_mask"][window].any() and score > best[row][0]:
                shift = int(packed["firsts"][window] - packed["starts"][window])
                first, last = (int(found[side][window, 0]) + shift for side in ("starts", "ends"))
                text = contexts[row].encode()[int(starts[row][first]) : int(ends[row][last])]
                best[row] = (score, text.decode(errors="replace"))
        return [text for _, text in best]

    def choose(self, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[int]:
        """The number of the likeliest choice of each prompt, from 0."""
        answers = []
        for prompt, row in zip(prompts, choices):
            inputs = {name: part[None] for name, part in self._pair([prompt] * len(row), row).items()}
            answers.append(int(np.argmax(self._logits(inputs)[0])))
        return answers

    def classify_pairs(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[str]:
        """The likeliest label of each pair."""
        return [(self.run.labels or [])[i] for i in np.argmax(self._pair_logits(firsts, seconds), axis=-1)]

    def similarity(self, firsts: Sequence[str], seconds: Sequence[str]) -> list[float]:
        """The expected number of the scale for each pair."""
        logits = self._pair_logits(firsts, seconds)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        scale = np.array([float(label) for label in self.run.labels or []])
        return list(shares @ scale / shares.sum(-1))

    def _pair_logits(self, firsts: Sequence[str], seconds: Sequence[str]) -> np.ndarray:
        def ask(some: Sequence[str], others: Sequence[str]) -> list[np.ndarray]:
            inputs = self._pair(some, others)
            if isinstance(self.run.model, GPTSimilarityClassifier):  # reads both orders
                turned = self._pair(others, some)
                inputs = {name: np.stack([part, turned[name]], axis=1) for name, part in inputs.items()}
            return list(np.asarray(self._logits(inputs), "float64"))

        return np.stack(answered(ask, firsts, seconds))

    @property
    def _limit(self) -> int:
        """A served model reads as many positions as it has, whatever the recipe trained on."""
        return self.run.model.backbone.max_sequence_length

    def _pair(self, firsts: Sequence[str], seconds: Sequence[str]) -> dict[str, Any]:
        from training.pipelines import token_rows

        half = (self._limit - 3) // 2
        return self._joined(*(token_rows(self.run.tokenizer, texts, half) for texts in (firsts, seconds)))

    def _joined(self, *rows: Any) -> dict[str, Any]:
        """Ids of one or two texts in a row as the model reads them."""
        from training.pipelines import segments

        tokenizer = self.run.tokenizer
        if isinstance(self.run.model.backbone, GPT):
            return _dense({"token_ids": pack_task(rows, tokenizer.vocabulary_size)})
        return _dense(segments(rows, tokenizer))

    def _logits(self, inputs: dict[str, Any]) -> Any:
        """Of the model's head."""
        told = self.run.model(inputs, training=False)
        return told["logits"] if isinstance(told, dict) else told


def answered(ask: Callable[..., list], *columns: Sequence[Any], size: int | None = None) -> list:
    """What `ask` answers to the rows of texts, each in the place of its row.

    `size` (None: BATCH) of about one length are asked at a time: what is padded is computed too.
    """
    answers: list = [None] * len(columns[0])
    order = sorted(range(len(answers)), key=lambda i: sum(len(column[i]) for column in columns))
    step = size or BATCH
    for chosen in (order[start : start + step] for start in range(0, len(order), step)):
        for i, answer in zip(chosen, ask(*([column[i] for i in chosen] for column in columns)), strict=True):
            answers[i] = answer
    return answers


def joined(sentences: Sequence[Sequence[str]]) -> list[str]:
    """Words as a text, of which `first_pieces` finds them again."""
    return [" ".join(words) for words in sentences]


def labels_of_words(
    words: Sequence[str], starts: Sequence[int], ends: Sequence[int], labels: Sequence[str]
) -> list[str]:
    """Of labelled tokens those that begin a word; a word without a token, or beyond what was read, is in no entity."""
    from training.fine_tuning import OUTSIDE, first_pieces

    return [OUTSIDE if piece is None else labels[piece] for piece in first_pieces(words, starts, ends)]


def _dense(rows: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    lengths = rows["token_ids"].row_lengths()
    dense = {name: part.to_tensor(0) for name, part in rows.items()}
    return {**dense, "padding_mask": tf.sequence_mask(lengths, dense["token_ids"].shape[1])}
