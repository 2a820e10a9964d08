"""A user's call of `generate`, `stream` or `score`: its arguments, checked and converted, and its traces."""

import dataclasses
import operator
import weakref

import numpy as np
from keras import ops

from keras_seq import backend
from keras_seq.positions import check_length
from keras_seq.samplers import BeamSampler, Constraints, GreedySampler, RandomSampler


class Call:
    """The arguments of `generate`, checked: Python ints where a trace depends on them, tensors where it does not.

    Attributes:
        inputs: dict of tensors, without the decoder's.
        batch: b.
        max_new_tokens, ends, start: int, tuple of int, int or None.
        options: of sampler and constraints, two dicts of tensors.
    """

    def __init__(self, model, inputs, max_new_tokens, end_token_id, start_token_id, sampler, constraints):
        self.sampler = GreedySampler() if sampler is None else sampler
        if not isinstance(self.sampler, GreedySampler | RandomSampler | BeamSampler):
            raise ValueError(f"generate needs a GreedySampler, RandomSampler or BeamSampler, got {sampler!r}.")
        if isinstance(self.sampler, BeamSampler):
            self.sampler = dataclasses.replace(self.sampler, num_beams=_whole("num_beams", self.sampler.num_beams))
        known, vocabulary = vocabulary_sizes(model)
        self.constraints = _settings(Constraints(**constraints), vocabulary)
        self.max_new_tokens = _whole("max_new_tokens", max_new_tokens)
        if self.max_new_tokens < 1:
            raise ValueError(f"generate needs max_new_tokens >= 1, got max_new_tokens={max_new_tokens!r}.")
        self.ends = tuple(_id("end_token_id", one, vocabulary, -1) for one in _several(end_token_id))
        self.start = None if start_token_id is None else _id("start_token_id", start_token_id, vocabulary)
        needed = [name for name in model.input if not name.startswith("decoder_")]
        if sorted(inputs) != sorted(needed):
            raise ValueError(f"generate needs inputs {needed}, got {sorted(inputs)}.")
        prompted = "token_ids" in inputs
        if start_token_id is None and not prompted:
            raise ValueError(f"generate needs start_token_id for {type(model).__name__}, got None.")
        if prompted and isinstance(sampler, BeamSampler) and sampler.covers:
            raise ValueError(f"coverage_penalty needs a model with a source, got {type(model).__name__}.")
        # One dtype each, for whatever ints or bools the masks came as there is one trace.
        names = sorted(needed, reverse=True)  # the ids, the mask
        texts = checked(names[0], *(inputs[name] for name in names), known, padded_right=prompted)
        self.inputs = {name: ops.convert_to_tensor(text) for name, text in zip(names, texts)}
        self.batch, length = texts[0].shape
        if not length and self.start is None:
            raise ValueError(f"generate needs prompts of a token or more, or a start_token_id, got {texts[0].shape}.")
        new = self.max_new_tokens + (length + (self.start is not None) if prompted else 0)
        check_length(model, max(length, new), getattr(model, "max_sequence_length", None))
        sampler_options, sampler_key = self.sampler.options(self.batch)
        constraint_options, constraint_key = self.constraints.options(self.batch)
        self.options = (sampler_options, constraint_options)
        self.key = (sampler_key, constraint_key, self.max_new_tokens, self.ends, self.start)
        self.model = model

    def function(self, run, any_shape=False):
        """`run(model, inputs, sampler, constraints)` compiled; the same for every call of one setting."""
        key = (run.__qualname__, *self.key)
        # Adapters and quantisation put other weights in the place of those that a trace has.
        weights = [id(variable) for variable in self.model.variables]
        if _COMPILED.get(self.model, ((), {}))[0] != weights:
            _COMPILED[self.model] = weights, {}
        functions = _COMPILED[self.model][1]
        if key not in functions:
            # Weakly: the function is kept for as long as the model lives, and would else keep it alive.
            model, sampler, constraints = weakref.ref(self.model), self.sampler, self.constraints

            def compilable(inputs, options):
                chosen = dataclasses.replace(sampler, **options[0])
                return run(model(), inputs, chosen, dataclasses.replace(constraints, **options[1]))

            functions[key] = backend.compiled(compilable, self.model, any_shape)
        return functions[key]


_COMPILED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def forget(model):
    """Drops what was traced for a model whose weights are no longer the same objects, and with it the old ones."""
    _COMPILED.pop(model, None)


def vocabulary_sizes(model):
    """How many tokens a model reads and how many it writes."""
    if "token_ids" in model.input:
        return model.vocabulary_size, model.vocabulary_size
    return model.source_vocabulary_size, model.target_vocabulary_size


def _whole(name, value):
    """The same as an int: traces are told apart by their settings' values, and True, 1 and 1.0 are equal."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"generate needs {name} as a whole number, got {value!r}.") from None


def _id(name, value, vocabulary, least=0):
    value = _whole(name, value)
    if not least <= value < vocabulary:
        raise ValueError(f"generate needs {name} from {least} to {vocabulary - 1}, got {value}.")
    return value


def _several(ids):
    """One id or a sequence of them as a list."""
    return np.ravel(ids).tolist() if np.size(ids) else []


def _settings(constraints, vocabulary):
    """The constraints with whole numbers as ints, and ids that the vocabulary has."""
    size = _whole("no_repeat_ngram_size", constraints.no_repeat_ngram_size)
    never = tuple(_id("suppress_tokens", one, vocabulary) for one in _several(constraints.suppress_tokens))
    if len({*never}) == vocabulary:
        raise ValueError(f"generate needs suppress_tokens that leave a token, got all {vocabulary}.")
    if constraints.prefix is not None and np.size(constraints.prefix) and np.max(constraints.prefix) >= vocabulary:
        raise ValueError(f"generate needs a prefix of ids < {vocabulary}, got {np.max(constraints.prefix)}.")
    return dataclasses.replace(constraints, no_repeat_ngram_size=size, suppress_tokens=never)


def checked(name, ids, mask, vocabulary, padded_right):
    """Ids (b, t) as int32, 0 where they are padding, and their mask as bool.

    Raises:
        ValueError: another shape or dtype, an id that the vocabulary does not have, padding on the left.
    """
    ids, mask = np.asarray(ids), np.asarray(mask)
    if ids.ndim != 2 or mask.shape != ids.shape:
        raise ValueError(f"{name} needs a mask of its shape (b, t), got {ids.shape} and {mask.shape}.")
    if ids.dtype.kind not in "iuf" or mask.dtype.kind not in "biuf":
        raise ValueError(f"{name} needs numbers, and so does its mask, got {ids.dtype} and {mask.dtype}.")
    mask = mask.astype("bool")
    real = ids[mask]
    wrong = real[~((real >= 0) & (real < vocabulary) & (real == np.floor(real)))]
    if wrong.size:
        raise ValueError(f"{name} needs ids from 0 to {vocabulary - 1}, got {wrong[0]}.")
    left = np.any(mask[:, 1:] & ~mask[:, :-1], axis=1)
    if padded_right and np.any(left):
        got = f"{mask[np.argmax(left)].astype(int).tolist()} in row {np.argmax(left)}"
        raise ValueError(f"{name} needs padding on the right, got the mask {got}.")
    return np.where(mask, ids, 0).astype("int32"), mask
