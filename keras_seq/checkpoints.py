"""Weights from and to other programs' files: Hugging Face's folders in both directions, Google's BERT checkpoints read.

What is called what stands in `checkpoint_rows` and `checkpoint_tables`. Neither torch nor transformers is needed;
TensorFlow for Google's alone.
"""

import functools
import json
import os
import pathlib
import re
import struct

import keras
import numpy as np
from keras import ops

from keras_seq import checkpoint_probe
from keras_seq.checkpoint_configs import architecture_name, arguments_of, config_of, with_label_ids, written_as
from keras_seq.checkpoint_tables import ARCHITECTURES, FAMILIES, ONE_ROW, TRANSPOSED, rows_of, shape_of
from keras_seq.embeddings import TokenEmbedding
from keras_seq.models.transformer import Transformer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GOOGLE_CONFIG, GOOGLE_WEIGHTS = "bert_config.json", "bert_model.ckpt"
PROBE = "keras_seq_probe.json"
# Of a checkpoint taken in the midst of training: the optimizer's.
NO_WEIGHTS = re.compile(r"(.*/)?(adam_[mv]|global_step|_CHECKPOINTABLE_OBJECT_GRAPH|save_counter.*)")


def load_checkpoint(path):
    """The model that a folder holds: architecture and arguments from its config, weights from its tensors.

    Hugging Face's form: `config.json` and `model.safetensors`, or its shards with `model.safetensors.index.json`;
    float32, float16 or bfloat16. Google's form: `bert_config.json` and `bert_model.ckpt.*`.

    What transformers calls it, and what it is here:
        BertModel: BERT.
        BertForPreTraining, BertForMaskedLM, BertForNextSentencePrediction: BERTForPreTraining, in which what the last
            two do not have, the pooler or a head, is 0.
        BertForSequenceClassification: BERTClassifier. BertForTokenClassification: BERTTokenClassifier.
        BertForQuestionAnswering: BERTSpanClassifier. BertForMultipleChoice: BERTMultipleChoice.
        GPT2LMHeadModel, GPT2Model, OpenAIGPTLMHeadModel, OpenAIGPTModel: GPT.
        MarianMTModel: Transformer, whose decoder starts with the config's `decoder_start_token_id`.
    Of several dropouts in a config the first is taken.

    The probe: once loaded, the model answers fixed inputs. If the folder has `keras_seq_probe.json`, written by
    `save_checkpoint` or from another program's answers, the largest difference from it is printed and noted in it,
    under this backend's name; a large one tells that weights, config or code are not what they were. If there is none,
    the answers are stored for the next load, perhaps on another backend. A folder that cannot be written to stays as it
    is.

    Args:
        path: the folder.

    Returns:
        A built model, in Keras' default float dtype.

    Raises:
        ValueError: a missing, cut or surplus tensor, one of a wrong shape, a missing or cut file, an unknown
            `model_type` or architecture, or a config that asks for what the model does not have: each by its name.
    """
    folder = pathlib.Path(path)
    config, tensors = _open(folder)
    architecture = ARCHITECTURES[architecture_name(config, tensors, folder)]
    model = architecture.build(arguments_of(config, architecture.model_type, folder), config)
    _fill(model, architecture, tensors)
    _compare(folder, model)
    return model


def save_checkpoint(model, path, **config):
    """Writes a model as a Hugging Face folder, which transformers' `from_pretrained` loads, with a probe beside it.

    The names are those of `load_checkpoint`: BERTForPreTraining becomes a BertForPreTraining; GPT a GPT2LMHeadModel or,
    with `normalize_first=False`, an OpenAIGPTLMHeadModel; Transformer, whose channels may have to be put into another
    order for it, a MarianMTModel. Every file is written beside its place and then renamed, so
    an interrupted write leaves the old ones as they were.

    Args:
        model: one of those.
        path: the folder; made if it is not there.
        **config: further keys of `config.json`: `eos_token_id`, `pad_token_id`, `decoder_start_token_id`, `id2label`
            (from which `label2id` is made where it is not given) and what else transformers' generation and pipelines
            want to know.

    Raises:
        ValueError: a model that has no such form, by the arguments that stand in the way; weights of integers.
    """
    _refuse_integers(model)
    written = _with_sines_first(model)
    name, architecture = written_as(written)
    files = {
        WEIGHTS: _safetensors_bytes(_tensors(written, architecture)),
        CONFIG: _json_bytes({**config_of(written, name, architecture), **with_label_ids(config)}),
        PROBE: _json_bytes(checkpoint_probe.of_model(model)),
    }
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder, files)


def _compare(folder, model):
    place = folder / PROBE
    if place.exists():
        probe = _json(place, inputs=dict, outputs=dict, written_by=str)
        difference, probe = checkpoint_probe.compared(model, probe, place)
        print(f"{folder}: largest difference {difference:.1e} from the answers in {PROBE} of {probe['written_by']}")
    else:
        probe = checkpoint_probe.of_model(model)
        print(f"{folder}: no {PROBE} to compare with; this model's answers become it")
    try:
        _replace(folder, {PROBE: _json_bytes(probe)})
    except OSError as error:
        print(f"{folder}: {PROBE} stays as it is, {error.strerror}")


# === Tensors ===


def _fill(model, architecture, tensors):
    """Every variable of a built model from its tensor."""
    family = FAMILIES[architecture.model_type]
    # Old files of BERT call a norm's weight gamma and its bias beta.
    found = {}
    for name, tensor in tensors.items():
        short = re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name)).removeprefix(family.prefix)
        if short in found:
            raise ValueError(f"load_checkpoint needs one tensor {short!r}, got {found[short][0]!r} and {name!r}.")
        found[short] = (tensor.called or name, tensor)
    rows = {row.theirs: row for row in rows_of(architecture, model)}
    _settle_ties(family, found, rows)
    ignored = re.compile("|".join(family.ignored))
    surplus = [name for short, (name, _) in found.items() if short not in rows and not ignored.fullmatch(short)]
    # A part that may lack does so as a whole: with one of its tensors the others belong to it.
    lacks = [part for part in architecture.optional if not any(one.startswith(part) for one in found if one in rows)]
    may_lack = (*lacks, *architecture.unused)
    missing = [short for short in rows if short not in found and not any(map(short.startswith, may_lack))]
    if missing:
        prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""
        missing = [short if rows[short].head else prefix + short for short in missing]
        raise ValueError(f"load_checkpoint needs tensor {_list(missing)}, which the checkpoint does not have.")
    if surplus:
        raise ValueError(f"load_checkpoint knows no place for tensor {_list(surplus)} in {type(model).__name__}.")
    for short, row in rows.items():
        if short in found:
            _assign(row, *found[short])
        else:
            for variable in row.ours:
                variable.assign(ops.zeros(variable.shape, variable.dtype))


def _settle_ties(family, found, rows):
    """Tensors that are another's second name: used where the first is missing, else compared and set aside."""
    for tied, firsts in family.tied.items():
        if tied not in found or tied in rows:
            continue
        first = next(one for one in firsts if one in rows)
        name, tensor = found.pop(tied)
        if first not in found:
            found[first] = (name, tensor)
        elif not np.array_equal(tensor.read(), found[first][1].read()):
            raise ValueError(
                f"load_checkpoint needs tensor {name!r} to equal {found[first][0]!r}, which it is tied to."
            )


def _assign(row, name, tensor):
    if tensor.shape != shape_of(row):
        got = f"{tensor.shape} in {tensor.file}"
        raise ValueError(f"load_checkpoint needs shape {shape_of(row)} for tensor {name!r}, got {got}.")
    if not re.fullmatch(r"(b?f(loat)?|bfloat)\d+", tensor.dtype.lower()):
        raise ValueError(f"load_checkpoint needs floats for tensor {name!r}, got {tensor.dtype} in {tensor.file}.")
    value = tensor.read()
    value = value.T if row.form == TRANSPOSED else value[0] if row.form == ONE_ROW else value
    ends = np.cumsum([variable.shape[-1] for variable in row.ours])[:-1]
    for variable, part in zip(row.ours, np.split(value, ends, axis=-1)):
        variable.assign(np.ascontiguousarray(part))


def _tensors(model, architecture):
    """Every variable as a tensor of the file."""
    prefix = "" if architecture.bare else FAMILIES[architecture.model_type].prefix
    tensors = {}
    for row in rows_of(architecture, model):
        if any(map(row.theirs.startswith, architecture.unused)):
            continue
        value = np.concatenate([_array(one) for one in row.ours], axis=-1)
        value = value.T if row.form == TRANSPOSED else value[None] if row.form == ONE_ROW else value
        tensors[row.theirs if row.head else prefix + row.theirs] = np.ascontiguousarray(value)
    return tensors


def _refuse_integers(model):
    for one in getattr(model, "weights", ()):  # what is no model is refused with those that have no such form
        if "int" in str(one.dtype):
            raise ValueError(f"save_checkpoint needs float weights, got {one.dtype} for {one.path!r}.")


def _array(variable):
    # Not NumPy's own conversion: under NumPy 2 a variable of Keras 3.15 answers it with a warning.
    return np.asarray(ops.convert_to_tensor(variable), "float32")


def _with_sines_first(model):
    """A Transformer in Marian's form: channels in the order of its positions, and a bias for the logits, 0 if there was
    none. No output changes, for the order of the channels is nothing but the names they go by."""
    if type(model) is not Transformer or model.position_encoding != "sine":
        return model
    if model.logits_bias and not model.interleave_positions:
        return model
    copy = Transformer.from_config({**model.get_config(), "interleave_positions": False, "logits_bias": True})
    order = np.arange(model.hidden_dim)
    order = np.concatenate([order[0::2], order[1::2]]) if model.interleave_positions else order
    into_heads = ("query", "key", "value", "intermediate")  # out of the model's channels; "output" leads back to them
    for new, old in zip(copy._flatten_layers(), model._flatten_layers()):
        if isinstance(old, keras.layers.Dense):
            kernel, bias = _array(old.kernel), _array(old.bias)
            new.set_weights([kernel[order], bias] if old.name in into_heads else [kernel[:, order], bias[order]])
        elif isinstance(old, keras.layers.LayerNormalization):
            new.set_weights([_array(old.gamma)[order], _array(old.beta)[order]])
        elif isinstance(old, TokenEmbedding):
            new.embeddings.assign(ops.take(old.embeddings, order, axis=1))
            if old.logits_bias:
                new.bias.assign(old.bias)
    return copy


def _list(names):
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in sorted(names)[:3]) + more


# === Files ===


class _Tensor:
    """One tensor of a file, not read yet; `called` there where that is not the name it is kept by."""

    def __init__(self, file, shape, dtype, read, called=None):
        self.file, self.shape, self.dtype, self._read, self.called = file, tuple(shape), dtype, read, called

    def read(self):
        return np.asarray(self._read()).astype("float32", copy=False)


def _open(folder):
    """The config, and the tensors by name."""
    there = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else "no such folder"
    if GOOGLE_CONFIG in there and CONFIG not in there:
        return {**_json(folder / GOOGLE_CONFIG), "model_type": "bert"}, _google(folder)
    if CONFIG not in there:
        raise ValueError(f"load_checkpoint needs {CONFIG} or {GOOGLE_CONFIG} in {folder}, got {there}.")
    config = _json(folder / CONFIG)
    if WEIGHTS in there:
        return config, _safetensors(folder / WEIGHTS)
    if INDEX not in there:
        raise ValueError(f"load_checkpoint needs {WEIGHTS} or {INDEX} in {folder}, got {there}.")
    return config, _sharded(folder, there)


def _sharded(folder, there):
    """The tensors of an index and of its shards, which have to agree."""
    places, shards = _json(folder / INDEX, weight_map=dict)["weight_map"], {}
    for name, shard in places.items():
        if shard not in there:
            raise ValueError(f"load_checkpoint needs file {shard} for tensor {name!r}, got {there} in {folder}.")
        if shard not in shards:
            shards[shard] = _safetensors(folder / shard)
        if name not in shards[shard]:
            raise ValueError(
                f"load_checkpoint needs tensor {name!r} in {shard}, where {INDEX} has it; it is not there."
            )
    for shard, tensors in shards.items():
        surplus = [name for name in tensors if name not in places]
        if surplus:
            raise ValueError(f"load_checkpoint needs every tensor of {shard} in {INDEX}, which lacks {_list(surplus)}.")
    return {name: shards[shard][name] for name, shard in places.items()}


def _json(place, **types):
    """The object in a file, and in it what it cannot do without."""
    try:
        content = json.loads(place.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"load_checkpoint needs JSON in {place}: {error}.") from error
    if not isinstance(content, dict) or any(not isinstance(content.get(key), one) for key, one in types.items()):
        needed = f" with {', '.join(f'{key} ({one.__name__})' for key, one in types.items())}" if types else ""
        raise ValueError(f"load_checkpoint needs an object{needed} in {place}, got {content!r:.100}.")
    return content


def _safetensors(place):
    # Safetensors asks NumPy for "bfloat16", which NumPy knows by this import alone.
    import ml_dtypes  # noqa: F401
    from safetensors import SafetensorError, safe_open

    def read(name):
        # From the file opened anew: one that stays open keeps all that was read of it in memory.
        with safe_open(place, "np") as file:
            return file.get_tensor(name)

    try:
        with safe_open(place, "np") as file:
            parts = {name: file.get_slice(name) for name in list(file.keys())}
            return {
                name: _Tensor(place.name, part.get_shape(), part.get_dtype(), functools.partial(read, name))
                for name, part in parts.items()
            }
    except SafetensorError as error:
        raise ValueError(f"load_checkpoint needs whole files, got {place.name} {_cut_at(place)} ({error}).") from error


def _cut_at(place):
    """Where a broken file of safetensors ends: it is the header's length, the header in JSON, and the tensors."""
    size = place.stat().st_size
    with place.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            return "cut within its header"
        try:
            header = json.loads(file.read(length))
            parts = {name: one for name, one in header.items() if name != "__metadata__"}
            ends = {name: 8 + length + int(one["data_offsets"][1]) for name, one in parts.items()}
        except (ValueError, AttributeError, TypeError, KeyError, IndexError):
            return "without a header of tensors"
    lost = sorted((end, name) for name, end in ends.items() if end > size)
    return f"cut within tensor {lost[0][1]!r}, {len(lost)} of {len(ends)} lost" if lost else "not as its header says"


def _google(folder):
    """Google's tensors under Hugging Face's names, and lying as Hugging Face's do."""
    import tensorflow as tf

    try:
        file = tf.train.load_checkpoint(str(folder / GOOGLE_WEIGHTS))
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"load_checkpoint needs {GOOGLE_WEIGHTS}.index and .data-* in {folder}: {error}") from error

    def read(name, transposed):
        try:
            value = file.get_tensor(name)
        except (tf.errors.OpError, IndexError) as error:
            raise ValueError(f"load_checkpoint cannot read tensor {name!r} of {GOOGLE_WEIGHTS}: {error}") from error
        return value.T if transposed else value

    tensors, dtypes = {}, file.get_variable_to_dtype_map()
    for name, shape in file.get_variable_to_shape_map().items():
        if NO_WEIGHTS.fullmatch(name):
            continue
        theirs = re.sub(r"layer_(\d+)", r"layer.\1", name.replace("/", "."))
        theirs = theirs.replace("output_weights", "weight").replace("output_bias", "bias")
        theirs = re.sub(r"_embeddings$", r"\g<0>.weight", theirs)
        kernel = theirs.endswith(".kernel")
        tensors[re.sub(r"\.kernel$", ".weight", theirs)] = _Tensor(
            GOOGLE_WEIGHTS,
            shape[::-1] if kernel else shape,
            dtypes[name].name,
            lambda name=name, kernel=kernel: read(name, kernel),
            name,
        )
    return tensors


def _safetensors_bytes(tensors):
    from safetensors.numpy import save

    return save(tensors, metadata={"format": "pt"})  # without it transformers refuses the file


def _json_bytes(content):
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _replace(folder, files):
    """All files beside their places first, then each renamed into it."""
    places = {folder / f".{name}.{os.getpid()}": folder / name for name in files}
    try:
        for beside, content in zip(places, files.values()):
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for beside, place in places.items():
            beside.replace(place)
    finally:
        for beside in places:
            beside.unlink(missing_ok=True)
