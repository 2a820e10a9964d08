"""Recipe, and RECIPES: every number in view. Two runs differ by two lines of a diff."""

import dataclasses
import difflib
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from training.corpora import CORPORA, SPLITS, kind_of
from training.readers import READERS

ARCHITECTURES = {
    "seq2seq": "pairs",
    "attention": "pairs",
    "transformer": "pairs",
    "bert": "documents",
    "bert-classify": "labelled",
    "bert-tokens": "tokens",
    "bert-spans": "spans",
    "bert-choices": "choices",
    "bert-pairs": "couples",
    "bert-similarity": "scored",
    "gpt": "lines, documents or text",
    "gpt-classify": "labelled",
    "gpt-choices": "choices",
    "gpt-pairs": "couples",
    "gpt-similarity": "scored",
}
TOKENIZERS = ("wordpiece", "bpe", "char", "word")
DECAYS = ("constant", "linear", "cosine", "inverse_square_root")


class RecipeError(ValueError):
    """A recipe that cannot be fit: which rule was broken, and what came."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides a run.

    Args:
        architecture: one of ARCHITECTURES.
        corpus: one of CORPORA, or of READERS for files of your own; of the kind the architecture reads.
        files: of a reader, for each split a path or a pattern such as data/train-*.tsv.gz, or a dataset's NAME:SPLIT.
        columns: of a reader, names or numbers with commas between; None: its own.
        stream: read the training files while training, for files larger than memory.
        model: arguments of the model's constructor, less vocabulary sizes and max_sequence_length; a Transformer's
            share_embeddings gives source and target one vocabulary.
        tokenizer: "wordpiece", "bpe", "char" or "word"; trained on the corpus, or that of the run it starts from.
        vocabulary_size: greatest number of tokens.
        min_frequency: how often a token must occur in the training examples.
        lowercase: lower-case the text.
        max_sequence_length: positions; longer text is cut.
        train_examples: examples read (None: all; of the built-in corpus 100,000); of a stream, all of which is read,
            those its vocabulary is trained on (None: 200,000).
        evaluate_examples: examples of the validation and test split that are used (None: all).
        steps: training steps, batches.
        steps_per_epoch: steps between two validations and checkpoints.
        tokens_per_batch: places in a batch, padding included.
        bucket_width: lengths that share a batch.
        pack_documents: of a GPT: rows of several lines or documents, none of which sees another.
        whole_words: of a BERT: hide all tokens of a word or none.
        learning_rate: the peak.
        warmup_steps: steps to the peak.
        decay: what comes after: "constant", "linear", "cosine", "inverse_square_root".
        final_learning_rate: what the decay ends at.
        label_smoothing: share of the target spread over the vocabulary.
        language_model_weight: of the second task of a GPT that is fine-tuned, beside its head's 1.0.
        weight_decay: of AdamW.
        beta_2: of AdamW.
        clip_norm: greatest global norm of a gradient; None: no clipping.
        gradient_accumulation: batches whose mean gradient makes one update; steps and warmup_steps count batches.
        ema_momentum: share of the old in the moving average of the weights that is validated and saved; None: none. It
            begins with the first weights, whose share after all steps is ema_momentum ** steps.
        average_checkpoints: of how many last checkpoints the saved weights are the mean.
        checkpoint_steps: steps between two checkpoints (None: one after each epoch; there is always one there).
        early_stopping: epochs without a better validation loss that end the run, whose best weights are then saved;
            None: train all steps.
        dtype: "float32", "mixed_bfloat16" or "mixed_float16".
        deterministic: on a GPU only with operations that give the same again, as a resumed run needs.
        jit_compile: train under XLA; worth it only where all batches have one shape.
        seed: of weights, dropout, data and order.
        start_from: a run's folder; its tokenizer and (for a classifier, its backbone's) weights are the start.
        max_new_tokens: the most tokens of an answer in evaluation and export.
    """

    architecture: str
    corpus: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    columns: str | None = None
    stream: bool = False
    tokenizer: str = "bpe"
    vocabulary_size: int = 8000
    min_frequency: int = 1
    lowercase: bool = False
    max_sequence_length: int = 64
    train_examples: int | None = None
    evaluate_examples: int | None = None
    steps: int = 1000
    steps_per_epoch: int = 200
    tokens_per_batch: int = 2048
    bucket_width: int = 4
    pack_documents: bool = False
    whole_words: bool = False
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay: str = "cosine"
    final_learning_rate: float = 0.0
    label_smoothing: float = 0.0
    language_model_weight: float = 0.5
    weight_decay: float = 0.01
    beta_2: float = 0.98
    clip_norm: float | None = 1.0
    gradient_accumulation: int = 1
    ema_momentum: float | None = None
    average_checkpoints: int = 1
    checkpoint_steps: int | None = None
    early_stopping: int | None = None
    dtype: str = "float32"
    deterministic: bool = True
    jit_compile: bool = False
    seed: int = 0
    start_from: str | None = None
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        _one_of("architecture", self.architecture, ARCHITECTURES)
        _one_of("corpus", self.corpus, [*CORPORA, *READERS])
        _one_of("tokenizer", self.tokenizer, TOKENIZERS)
        _one_of("decay", self.decay, DECAYS)
        _one_of("dtype", self.dtype, ("float32", "mixed_bfloat16", "mixed_float16"))
        kind = kind_of(self.corpus)
        if kind not in ARCHITECTURES[self.architecture]:
            wanted = ARCHITECTURES[self.architecture]
            raise RecipeError(f"{self.architecture} reads {wanted}, got corpus={self.corpus!r}, which holds {kind}.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or field.type is bool:
                continue
            rule = ">= 0" if field.name in MAY_BE_ZERO else "> 0"
            if not (math.isfinite(value) and (value > 0 or (value == 0 and field.name in MAY_BE_ZERO))):
                raise RecipeError(f"A recipe needs {field.name} {rule}, got {field.name}={value!r}.")
        if self.max_sequence_length < 2:  # one would be the end token alone
            raise RecipeError(f"A recipe needs max_sequence_length >= 2, got {self.max_sequence_length!r}.")
        for name in ("label_smoothing", "ema_momentum"):
            if not (getattr(self, name) or 0.0) < 1:
                raise RecipeError(f"A recipe needs {name} < 1, got {name}={getattr(self, name)!r}.")
        if self.final_learning_rate > self.learning_rate:
            raise RecipeError(
                f"A recipe needs final_learning_rate <= learning_rate={self.learning_rate!r}, "
                f"got final_learning_rate={self.final_learning_rate!r}."
            )
        for name, architecture in (("pack_documents", "gpt"), ("whole_words", "bert")):
            if getattr(self, name) and self.architecture != architecture:
                raise RecipeError(
                    f"A recipe needs architecture={architecture!r} for {name}, got {self.architecture!r}."
                )
        if self.architecture == "bert" and self.start_from is None and self.tokenizer != "wordpiece":
            raise RecipeError(f"bert needs tokenizer='wordpiece', with a token to hide others, got {self.tokenizer!r}.")
        if self.pack_documents and kind == "text":
            raise RecipeError(f"pack_documents needs lines or documents, got corpus={self.corpus!r}, one running text.")
        self._check_files(kind)
        self._check_weights_saved()

    def _check_files(self, kind: str) -> None:
        """A reader needs a file for each split, a built-in corpus takes none."""
        wanted = SPLITS if self.corpus in READERS else ()
        if set(self.files) != set(wanted) or not all(isinstance(one, str) for one in self.files.values()):
            raise RecipeError(f"corpus={self.corpus!r} needs files for {list(wanted)}, got files={dict(self.files)!r}.")
        if self.stream and (not wanted or kind == "text"):
            raise RecipeError(f"stream needs files of examples, got corpus={self.corpus!r}, which is read at once.")

    def _check_weights_saved(self) -> None:
        """Which weights the run leaves must be one thing: the best, a mean of checkpoints or a moving average; and some
        must have been learnt."""
        if self.gradient_accumulation > self.steps:
            raise RecipeError(
                f"A recipe needs gradient_accumulation <= steps={self.steps!r}, or nothing is ever updated, "
                f"got gradient_accumulation={self.gradient_accumulation!r}."
            )
        if self.average_checkpoints > 1 and (self.early_stopping is not None or self.ema_momentum is not None):
            raise RecipeError(
                "A recipe needs average_checkpoints=1 beside early_stopping or ema_momentum, "
                f"got average_checkpoints={self.average_checkpoints!r}."
            )

    def check_model(self) -> "Recipe":
        """The recipe itself, once every key of `model` is known to the constructor and those that it needs are there
        (this imports the models)."""
        known = model_arguments(self.architecture)
        for name in self.model:
            if name not in known:
                raise RecipeError(_unknown(f"model argument of {self.architecture}", str(name), known))
        missing = [name for name, default in known.items() if default is inspect.Parameter.empty]
        missing = [name for name in missing if name not in self.model]
        if missing and self.start_from is None:
            raise RecipeError(f"The model of {self.architecture} needs {missing}, got model={dict(self.model)!r}.")
        return self

    def replace(self, **changes: Any) -> "Recipe":
        """The recipe with some keys changed; those of model and files are written `model.KEY`, `files.SPLIT`."""
        plain = {name: value for name, value in changes.items() if not name.startswith(("model.", "files."))}
        _check_keys(plain)
        for group in ("model", "files"):
            inner = {
                name.removeprefix(f"{group}."): value for name, value in changes.items() if name.startswith(f"{group}.")
            }
            if inner:
                plain[group] = {**_typed(group, plain.get(group, getattr(self, group))), **inner}
        return dataclasses.replace(self, **{name: _typed(name, value) for name, value in plain.items()})

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, ready for JSON or YAML."""
        return {**dataclasses.asdict(self), "model": dict(self.model), "files": dict(self.files)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """A recipe from plain data.

        Raises:
            RecipeError: an unknown or missing key, or a value of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise RecipeError(f"A recipe needs keys and values, got {type(values).__name__}.")
        _check_keys(values)
        for name in ("architecture", "corpus"):
            if name not in values:
                raise RecipeError(f"A recipe needs the key {name!r}, got {sorted(values)}.")
        return cls(**{name: _typed(name, value) for name, value in values.items()})


MAY_BE_ZERO = {"seed", "language_model_weight", "final_learning_rate", "label_smoothing", "weight_decay"}


def model_arguments(architecture: str) -> dict[str, Any]:
    """The names a recipe's `model` may hold, with their defaults: the constructor's, less what the recipe decides."""
    decided = {"self", "kwargs", "vocabulary_size", "source_vocabulary_size", "target_vocabulary_size"}
    decided |= {"max_sequence_length", "dtype"}
    parameters = inspect.signature(model_class(architecture)).parameters
    return {name: one.default for name, one in parameters.items() if name not in decided}


def model_class(architecture: str) -> type:
    """The model that an architecture's recipe builds; one of a task builds its BERT or GPT."""
    import keras_seq

    names = {"seq2seq": "Seq2Seq", "attention": "AttentionSeq2Seq", "transformer": "Transformer", "gpt": "GPT"}
    return getattr(keras_seq, names.get(architecture.partition("-")[0], "BERT"))


def find(name: str) -> Recipe:
    """A built-in recipe by name, or one from the path of a YAML file.

    Raises:
        RecipeError: there is neither, or the file is not a recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError(_unknown("recipe", name, list(RECIPES)) + " A recipe of your own is a .yaml file.")
    if not path.is_file():
        raise RecipeError(f"There is no recipe file {name}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _KeysOnce)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe file {name} is not YAML: {' '.join(str(error).split())}") from error
    return Recipe.from_dict(values)


class _KeysOnce(yaml.SafeLoader):
    """YAML without a key twice in one mapping, of which the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
        return super().construct_mapping(node, deep)


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """`key=value` words from the command line, values read as YAML."""
    changes = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set needs key=value, got {setting!r}.")
        try:
            changes[key] = yaml.load(value, _KeysOnce)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {key} needs a YAML value, got {value!r}.") from error
    return changes


def _one_of(name: str, value: Any, known: Any) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value), list(known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise RecipeError(f"A recipe needs {name} in {tuple(known)}, got {name}={value!r}{hint}")


def _unknown(what: str, name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}."
    return f"Unknown {what} {name!r}{hint}"


def _check_keys(values: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in values:
        if name not in known:
            raise RecipeError(_unknown("recipe key", str(name), known))


def _typed(name: str, value: Any) -> Any:
    """The value as its field's type; YAML reads 1e-3 as a string."""
    kind = str(next(field.type for field in dataclasses.fields(Recipe) if field.name == name))
    if kind.endswith("None") and value is None:
        return None
    kind = kind.removesuffix(" | None").replace("<class '", "").replace("'>", "")
    try:
        if kind == "float" and not isinstance(value, bool):
            return float(value)
        if kind == "int" and not isinstance(value, bool) and float(value) == int(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        kind = f"{kind}, a number"
    accepted = {"str": str, "bool": bool}.get(kind, Mapping if "Mapping" in kind else None)
    if accepted is None or not isinstance(value, accepted):
        kind = "mapping of keys to values" if accepted is Mapping else kind
        raise RecipeError(f"A recipe needs {name} of type {kind}, got {name}={value!r}.")
    return value


_PAIRS: dict[str, Any] = {
    "corpus": "grammar-pairs",
    "tokenizer": "word",
    "vocabulary_size": 1000,
    "max_sequence_length": 48,
}

# The protocol of the published row of translators: see docs/results.md.
_PUBLISHED: dict[str, Any] = {
    "corpus": "multi30k-words",
    "tokenizer": "word",
    "min_frequency": 2,
    "tokens_per_batch": 1024,
    "steps": 4390,
    "steps_per_epoch": 439,
    "early_stopping": 10,
    "warmup_steps": 439,
    "weight_decay": 0.0,
}

# The translators at their best: sub-words with capitals, and a smoothed target.
_SUB_WORDS: dict[str, Any] = {
    "corpus": "multi30k",
    "tokenizer": "bpe",
    "vocabulary_size": 8000,
    "tokens_per_batch": 1024,
    "steps_per_epoch": 440,
    "warmup_steps": 440,
    "label_smoothing": 0.1,
    "learning_rate": 2e-3,
}

# For English there is no unlabelled text here to pre-train on: these begin from nothing, or from a run of the user's.
_SMALL_BERT = {"num_layers": 4, "num_heads": 4, "hidden_dim": 256, "intermediate_dim": 1024, "dropout": 0.1}

RECIPES = {
    "demo-seq2seq": Recipe(
        architecture="seq2seq",
        **_PAIRS,
        model={"hidden_dim": 192, "embedding_dim": 128, "cell": "gru"},
        steps=1200,
        tokens_per_batch=1000,
        learning_rate=3e-3,
    ),
    "demo-attention": Recipe(
        architecture="attention",
        **_PAIRS,
        model={"hidden_dim": 128, "embedding_dim": 128, "cell": "gru"},
        steps=1300,
        tokens_per_batch=800,
        learning_rate=4e-3,
    ),
    "demo-transformer": Recipe(
        architecture="transformer",
        **_PAIRS,
        model={"num_layers": 2, "num_heads": 4, "hidden_dim": 128, "intermediate_dim": 256, "dropout": 0.0},
        steps=1200,
        tokens_per_batch=1500,
        learning_rate=2e-3,
    ),
    "demo-bert": Recipe(
        architecture="bert",
        corpus="grammar-documents",
        tokenizer="wordpiece",
        vocabulary_size=1000,
        train_examples=20_000,
        model={"num_layers": 2, "num_heads": 4, "hidden_dim": 128, "intermediate_dim": 256, "dropout": 0.0},
        steps=1000,
        tokens_per_batch=2000,
        learning_rate=3e-3,
    ),
    "demo-bert-classify": Recipe(
        architecture="bert-classify",
        corpus="grammar-labelled",
        train_examples=20_000,
        steps=1200,
        steps_per_epoch=100,
        tokens_per_batch=1000,
        learning_rate=1e-3,
        start_from="runs/demo-bert",
    ),
    "demo-gpt": Recipe(
        architecture="gpt",
        corpus="grammar-lines",
        tokenizer="bpe",
        vocabulary_size=1000,
        model={"num_layers": 2, "num_heads": 4, "hidden_dim": 128, "intermediate_dim": 256, "dropout": 0.0},
        steps=1000,
        tokens_per_batch=1500,
        learning_rate=2e-3,
    ),
    "demo-gpt-classify": Recipe(
        architecture="gpt-classify",
        corpus="grammar-labelled",
        train_examples=20_000,
        steps=1000,
        steps_per_epoch=100,
        tokens_per_batch=1000,
        learning_rate=2e-3,
        start_from="runs/demo-gpt",
    ),
    "multi30k-seq2seq": Recipe(
        architecture="seq2seq",
        **_SUB_WORDS,
        model={"hidden_dim": 512, "embedding_dim": 256, "num_layers": 2, "dropout": 0.2, "go_backwards": True},
        steps=5280,
        ema_momentum=0.999,
        early_stopping=12,
    ),
    "multi30k-context": Recipe(
        architecture="seq2seq",
        **_SUB_WORDS,
        model={"hidden_dim": 512, "embedding_dim": 256, "cell": "gru", "context": "every_step", "dropout": 0.35},
        steps=3520,
        ema_momentum=0.995,
        early_stopping=8,
    ),
    "multi30k-attention": Recipe(
        architecture="attention",
        **_SUB_WORDS,
        model={"hidden_dim": 512, "embedding_dim": 256, "cell": "gru", "dropout": 0.35},
        steps=3520,
        ema_momentum=0.995,
        early_stopping=8,
    ),
    "multi30k-transformer": Recipe(
        architecture="transformer",
        **_SUB_WORDS,
        model={
            "num_layers": 3,
            "num_heads": 8,
            "hidden_dim": 256,
            "intermediate_dim": 512,
            "dropout": 0.15,
            "normalize_first": True,
            "position_encoding": "rotary",
        },
        steps=6160,
        ema_momentum=0.998,
        early_stopping=14,
    ),
    "multi30k-words-seq2seq": Recipe(
        architecture="seq2seq",
        **_PUBLISHED,
        model={"hidden_dim": 512, "embedding_dim": 256, "num_layers": 2, "dropout": 0.2, "go_backwards": True},
        learning_rate=2e-3,
    ),
    "multi30k-words-context": Recipe(
        architecture="seq2seq",
        **_PUBLISHED,
        model={"hidden_dim": 512, "embedding_dim": 256, "cell": "gru", "context": "every_step", "dropout": 0.2},
        learning_rate=2e-3,
    ),
    "multi30k-words-attention": Recipe(
        architecture="attention",
        **_PUBLISHED,
        model={"hidden_dim": 512, "embedding_dim": 256, "cell": "gru", "dropout": 0.2},
        learning_rate=2e-3,
    ),
    "multi30k-words-transformer": Recipe(
        architecture="transformer",
        **_PUBLISHED,
        model={"num_layers": 3, "num_heads": 8, "hidden_dim": 256, "intermediate_dim": 512, "dropout": 0.1},
        learning_rate=1e-3,
    ),
    "shakespeare-gpt": Recipe(
        architecture="gpt",
        corpus="tinyshakespeare",
        tokenizer="char",
        vocabulary_size=100,
        model={"num_layers": 4, "num_heads": 4, "hidden_dim": 128, "intermediate_dim": 512, "dropout": 0.0},
        max_sequence_length=64,
        steps=2000,
        steps_per_epoch=250,
        tokens_per_batch=768,
        learning_rate=1e-3,
        final_learning_rate=1e-4,
        weight_decay=0.1,
        beta_2=0.99,
    ),
    "nsmc-bert": Recipe(
        architecture="bert",
        corpus="nsmc-unlabelled",
        tokenizer="wordpiece",
        vocabulary_size=8000,
        model={"num_layers": 4, "num_heads": 4, "hidden_dim": 256, "intermediate_dim": 1024, "dropout": 0.1},
        steps=12_000,
        steps_per_epoch=500,
        tokens_per_batch=4096,
        bucket_width=16,
        warmup_steps=1000,
        learning_rate=5e-4,
    ),
    "nsmc-bert-classify": Recipe(
        architecture="bert-classify",
        corpus="nsmc",
        steps=3500,
        steps_per_epoch=500,
        tokens_per_batch=4096,
        bucket_width=8,
        warmup_steps=300,
        learning_rate=2e-4,
        ema_momentum=0.999,
        early_stopping=8,
        start_from="runs/nsmc-bert",
    ),
    "wnut17-bert-tokens": Recipe(
        architecture="bert-tokens",
        corpus="wnut17",
        tokenizer="wordpiece",
        vocabulary_size=8000,
        model=_SMALL_BERT,
        max_sequence_length=128,
        steps=1500,
        steps_per_epoch=100,
        early_stopping=4,
        learning_rate=5e-4,
    ),
    "xquad-bert-spans": Recipe(
        architecture="bert-spans",
        corpus="xquad",
        tokenizer="wordpiece",
        vocabulary_size=8000,
        lowercase=True,
        model=_SMALL_BERT,
        max_sequence_length=128,
        steps=1000,
        steps_per_epoch=100,
        tokens_per_batch=4096,
        early_stopping=3,
        learning_rate=3e-4,
    ),
    "korquad-bert-spans": Recipe(
        architecture="bert-spans",
        corpus="korquad",
        steps=3000,
        steps_per_epoch=250,
        tokens_per_batch=4096,
        early_stopping=3,
        learning_rate=2e-4,
        start_from="runs/nsmc-bert",
    ),
    "copa-bert-choices": Recipe(
        architecture="bert-choices",
        corpus="copa",
        tokenizer="wordpiece",
        vocabulary_size=2000,
        lowercase=True,
        model=_SMALL_BERT,
        steps=200,
        steps_per_epoch=20,
        early_stopping=4,
        warmup_steps=20,
        learning_rate=3e-4,
    ),
    "korsts-bert-similarity": Recipe(
        architecture="bert-similarity",
        corpus="korsts",
        steps=1500,
        steps_per_epoch=100,
        tokens_per_batch=4096,
        early_stopping=4,
        learning_rate=1e-4,
        start_from="runs/nsmc-bert",
    ),
}
