"""Named sizes of the five models, as data: `BERT.from_size("base")`, `GPT.parameter_count("gpt2_xl")`.

A name that belongs to a paper or a released checkpoint holds everything that decides its number of parameters, the
vocabulary included; the others need the vocabulary's size. What a published figure counts otherwise stands beside it.
"""

import concurrent.futures
import dataclasses

import keras


@dataclasses.dataclass(frozen=True)
class Size:
    """Constructor arguments under a name.

    Args:
        arguments: of the model's constructor; whatever is not named keeps its default.
        source: where they come from, and how the published number of parameters differs from ours.
    """

    arguments: dict
    source: str


def _blocks(num_layers, num_heads, hidden_dim, **others):
    sizes = {"num_layers": num_layers, "num_heads": num_heads, "hidden_dim": hidden_dim}
    return {**sizes, "intermediate_dim": 4 * hidden_dim, **others}


def _recurrent(hidden_dim, num_layers, **others):
    return {"hidden_dim": hidden_dim, "num_layers": num_layers, **others}


_OURS = "ours"
_TURC = (
    "Turc et al. 2019, table 1, as released by Google: encoder with pooler; the paper's {} million are these and the "
    "masked-LM head's"
)
_GPT2 = "Radford et al. 2019, table 2, which says {} million; the released checkpoint has as many as this"
_UNCASED = {"vocabulary_size": 30522}
_GPT2_TEXT = {"vocabulary_size": 50257, "max_sequence_length": 1024}
_VASWANI = {"source_vocabulary_size": 37000, "target_vocabulary_size": 37000, "share_embeddings": True}

SIZES = {
    "Seq2Seq": {
        "tiny": Size(_recurrent(128, 1), _OURS),
        "small": Size(_recurrent(256, 2), _OURS),
        "base": Size(_recurrent(512, 2), _OURS),
        "sutskever": Size(
            _recurrent(1000, 4, cell="lstm", source_vocabulary_size=160000, target_vocabulary_size=80000),
            "Sutskever et al. 2014, section 3.4; the paper's 384 million leave out the biases, 112,000",
        ),
        "cho": Size(
            _recurrent(
                1000, 1, cell="gru", context="every_step", embedding_dim=100,
                source_vocabulary_size=15000, target_vocabulary_size=15000,
            ),
            "Cho et al. 2014, section 4.1.1; its readout is a maxout layer of 500 units, ours a dense tanh of 1000",
        ),
    },
    "AttentionSeq2Seq": {
        "tiny": Size(_recurrent(128, 1), _OURS),
        "small": Size(_recurrent(256, 1), _OURS),
        "base": Size(_recurrent(512, 1), _OURS),
        "rnnsearch": Size(
            _recurrent(
                1000, 1, cell="gru", embedding_dim=620, source_vocabulary_size=30000, target_vocabulary_size=30000
            ),
            "Bahdanau et al. 2015, appendix A.2.3 and section 4.2; its readout is a maxout layer of 500 units, ours a "
            "dense tanh of 1000",
        ),
    },
    "Transformer": {
        "tiny": Size(_blocks(2, 2, 128), _OURS),
        "small": Size(_blocks(4, 4, 256), _OURS),
        "base": Size(
            _blocks(6, 8, 512, dropout=0.1, **_VASWANI),
            "Vaswani et al. 2017, table 3, English-German; the paper's 65 million are 63.1 by its own description",
        ),
        "big": Size(
            _blocks(6, 16, 1024, dropout=0.3, **_VASWANI),
            "Vaswani et al. 2017, table 3, English-German; the paper's 213 million are 214.2 by its own description",
        ),
    },
    "BERT": {
        "tiny": Size(_blocks(2, 2, 128, **_UNCASED), _TURC.format("4.4")),
        "mini": Size(_blocks(4, 4, 256, **_UNCASED), _TURC.format("11.3")),
        "small": Size(_blocks(4, 8, 512, **_UNCASED), _TURC.format("29.1")),
        "medium": Size(_blocks(8, 8, 512, **_UNCASED), _TURC.format("41.7")),
        "base": Size(_blocks(12, 12, 768, **_UNCASED), _TURC.format("110.1") + "; bert-base-uncased"),
        "large": Size(
            _blocks(24, 16, 1024, **_UNCASED),
            "Devlin et al. 2019, section 3, which says 340 million; bert-large-uncased: encoder with pooler",
        ),
    },
    "GPT": {
        "tiny": Size(_blocks(2, 2, 128), _OURS),
        "small": Size(_blocks(4, 8, 512), _OURS),
        "base": Size(_blocks(12, 12, 768), _OURS),
        "gpt1": Size(
            _blocks(12, 12, 768, vocabulary_size=40478, max_sequence_length=512, normalize_first=False),
            "Radford et al. 2018, section 4.1; openai-gpt, its language-model head tied",
        ),
        "gpt2_small": Size(_blocks(12, 12, 768, **_GPT2_TEXT), _GPT2.format("117")),
        "gpt2_medium": Size(_blocks(24, 16, 1024, **_GPT2_TEXT), _GPT2.format("345")),
        "gpt2_large": Size(_blocks(36, 20, 1280, **_GPT2_TEXT), _GPT2.format("762")),
        "gpt2_xl": Size(_blocks(48, 25, 1600, **_GPT2_TEXT), _GPT2.format("1542")),
    },
}  # fmt: skip


def configuration(model_class, size, overrides):
    """The constructor arguments of a named size, some of them replaced.

    Raises:
        ValueError: a model without named sizes, or an unknown name.
    """
    name = model_class.__name__
    if name not in SIZES:
        raise ValueError(f"{name} has no named sizes; {tuple(SIZES)} have, and may be its backbone where it has one.")
    if size not in SIZES[name]:
        raise ValueError(f"{name} has the sizes {tuple(SIZES[name])}, got size={size!r}.")
    arguments = {**SIZES[name][size].arguments, **overrides}
    if missing := [one for one in _VOCABULARIES[name] if one not in arguments]:
        raise ValueError(f"{name} of size {size!r} needs {' and '.join(missing)}.")
    return arguments


_VOCABULARIES = {
    name: ("vocabulary_size",) if name in ("BERT", "GPT") else ("source_vocabulary_size", "target_vocabulary_size")
    for name in SIZES
}


def parameter_count(model_class, arguments):
    """How many parameters a model of these arguments would have; nothing is allocated."""

    def count():
        with keras.StatelessScope(initialize_variables=False):
            return model_class(**arguments).count_params()

    # Keras keeps the variables without a value in a list a thread, and fills all of them at the end of the next scope
    # that initializes: in a thread of their own they go with it.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(count).result()
