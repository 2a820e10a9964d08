"""keras_seq.sizes: parameter counts against formulas written out here and against the released checkpoints'."""

import pathlib
import re
import resource
import sys

import keras
import pytest

import keras_seq
from keras_seq import SIZES

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"
NAMES = [(model, size) for model in SIZES for size in SIZES[model]]
RELEASED = {
    ("BERT", "tiny"): 4_385_920,
    ("BERT", "mini"): 11_170_560,
    ("BERT", "small"): 28_763_648,
    ("BERT", "medium"): 41_373_184,
    ("BERT", "base"): 109_482_240,
    ("BERT", "large"): 335_141_888,
    ("GPT", "gpt1"): 116_534_784,
    ("GPT", "gpt2_small"): 124_439_808,
    ("GPT", "gpt2_medium"): 354_823_168,
    ("GPT", "gpt2_large"): 774_030_080,
    ("GPT", "gpt2_xl"): 1_557_611_200,
}


def dense(width, units):
    return width * units + units


def block(d, f, attentions=1):
    """Attention is four projections; a norm has a gain and a bias; one norm an attention, one for the feed-forward."""
    return attentions * (4 * dense(d, d) + 2 * d) + dense(d, f) + dense(f, d) + 2 * d


def bert(v, n, d, f, positions=512, segments=2):
    return (v + positions + segments) * d + 2 * d + n * block(d, f) + dense(d, d)


def gpt(v, n, d, f, positions, final_norm):
    return (v + positions) * d + n * block(d, f) + final_norm * 2 * d


def transformer(sizes, n, d, f):
    return sum(sizes) * d + n * (block(d, f) + block(d, f, attentions=2))


def cell(kind, width, units):
    return width * 4 * units + units * 4 * units + 4 * units if kind == "lstm" else 3 * units * (width + units + 2)


def recurrent(kind, sources, targets, e, u, n, context_width=0, bidirectional=False, score=0):
    """`context_width`: of what the decoder's cell and the readout are given beside the token, 0: nothing."""
    directions = 2 if bidirectional else 1
    encoder = sum(directions * cell(kind, e if i == 0 else directions * u, u) for i in range(n))
    gates = 4 if kind == "lstm" else 3
    decoder = sum(cell(kind, u if i else e, u) for i in range(n)) + context_width * gates * u
    bridges = n * (2 if kind == "lstm" else 1) * dense(2 * u, u) if bidirectional else 0
    readout = dense(u + context_width + e, u) if context_width else 0
    return (sources + targets) * e + encoder + decoder + bridges + score + readout + dense(u, targets)


V = {"source_vocabulary_size": 1013, "target_vocabulary_size": 1019}


def attention_seq2seq(kind, sources, targets, e, u):
    # The additive score: a matrix over the state, one over both directions' outputs, a vector.
    return recurrent(kind, sources, targets, e, u, 1, 2 * u, True, score=u * u + 2 * u * u + u)


FORMULAS = {
    ("Seq2Seq", "tiny"): recurrent("lstm", 1013, 1019, 128, 128, 1),
    ("Seq2Seq", "small"): recurrent("lstm", 1013, 1019, 256, 256, 2),
    ("Seq2Seq", "base"): recurrent("lstm", 1013, 1019, 512, 512, 2),
    ("Seq2Seq", "sutskever"): recurrent("lstm", 160_000, 80_000, 1000, 1000, 4),
    ("Seq2Seq", "cho"): recurrent("gru", 15_000, 15_000, 100, 1000, 1, context_width=1000),
    ("AttentionSeq2Seq", "tiny"): attention_seq2seq("lstm", 1013, 1019, 128, 128),
    ("AttentionSeq2Seq", "small"): attention_seq2seq("lstm", 1013, 1019, 256, 256),
    ("AttentionSeq2Seq", "base"): attention_seq2seq("lstm", 1013, 1019, 512, 512),
    ("AttentionSeq2Seq", "rnnsearch"): attention_seq2seq("gru", 30_000, 30_000, 620, 1000),
    ("Transformer", "tiny"): transformer([1013, 1019], 2, 128, 512),
    ("Transformer", "small"): transformer([1013, 1019], 4, 256, 1024),
    ("Transformer", "base"): transformer([37_000], 6, 512, 2048),
    ("Transformer", "big"): transformer([37_000], 6, 1024, 4096),
    ("BERT", "tiny"): bert(30_522, 2, 128, 512),
    ("BERT", "mini"): bert(30_522, 4, 256, 1024),
    ("BERT", "small"): bert(30_522, 4, 512, 2048),
    ("BERT", "medium"): bert(30_522, 8, 512, 2048),
    ("BERT", "base"): bert(30_522, 12, 768, 3072),
    ("BERT", "large"): bert(30_522, 24, 1024, 4096),
    ("GPT", "tiny"): gpt(1013, 2, 128, 512, 1024, True),
    ("GPT", "small"): gpt(1013, 4, 512, 2048, 1024, True),
    ("GPT", "base"): gpt(1013, 12, 768, 3072, 1024, True),
    ("GPT", "gpt1"): gpt(40_478, 12, 768, 3072, 512, False),
    ("GPT", "gpt2_small"): gpt(50_257, 12, 768, 3072, 1024, True),
    ("GPT", "gpt2_medium"): gpt(50_257, 24, 1024, 4096, 1024, True),
    ("GPT", "gpt2_large"): gpt(50_257, 36, 1280, 5120, 1024, True),
    ("GPT", "gpt2_xl"): gpt(50_257, 48, 1600, 6400, 1024, True),
}


def vocabulary(model, size):
    """What the size leaves open."""
    names = ("vocabulary_size",) if model in ("BERT", "GPT") else tuple(V)
    return {one: V.get(one, 1013) for one in names if one not in SIZES[model][size].arguments}


@pytest.mark.parametrize("model, size", NAMES)
def test_a_named_size_has_the_parameters_of_its_formula(model, size):
    def counted(**changes):
        return getattr(keras_seq, model).parameter_count(size, **vocabulary(model, size), **changes)

    num_layers = SIZES[model][size].arguments.get("num_layers", 1)
    if num_layers <= 4:
        assert counted() == FORMULAS[model, size]
    else:  # all layers after the first have as many: counting 48 of them takes seconds
        second = counted(num_layers=2) - counted(num_layers=1)
        assert counted(num_layers=3) + (num_layers - 3) * second == FORMULAS[model, size]


def test_the_formulas_are_the_released_checkpoints_counts_and_every_name_has_one():
    assert FORMULAS.keys() == set(NAMES)
    assert {name: FORMULAS[name] for name in RELEASED} == RELEASED


def test_the_published_figures_are_these_with_what_the_table_says():
    masked_lm_heads = {"tiny": 128, "mini": 256, "small": 512, "medium": 512, "base": 768}
    for size, d in masked_lm_heads.items():
        published = re.search(r"([\d.]+) million", SIZES["BERT"][size].source)[1]
        assert f"{(FORMULAS['BERT', size] + dense(d, d) + 2 * d + 30_522) / 1e6:.1f}" == published
    assert FORMULAS["Seq2Seq", "sutskever"] == 384_000_000 + 112_000
    for size, figure in (("base", "63.1"), ("big", "214.2")):
        assert f"{FORMULAS['Transformer', size] / 1e6:.1f}" == figure and figure in SIZES["Transformer"][size].source


def test_the_readme_shows_these_counts():
    rows = re.findall(r'^\| `(\w+)\.from_size\("(\w+)"\)` \| ([\d,]+) \|', README.read_text("utf-8"), re.MULTILINE)
    assert {(model, size) for model, size, _ in rows} == {name for name in NAMES if not vocabulary(*name)}
    for model, size, count in rows:
        assert int(count.replace(",", "")) == FORMULAS[model, size]


def test_counting_allocates_nothing_and_leaves_nothing_behind():
    def peak():  # bytes; Linux counts in KiB, macOS in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    before = peak()
    # 4.3 GB in float32.
    assert keras_seq.Seq2Seq.parameter_count("sutskever", hidden_dim=2500) > 1e9
    # The end of this scope would fill variables left without a value.
    with keras.StatelessScope():
        pass
    assert peak() - before < 1e9


def test_a_size_is_a_model_and_overrides_win():
    model = keras_seq.BERT.from_size("tiny", vocabulary_size=11, num_layers=1)
    assert (model.vocabulary_size, model.num_layers, model.hidden_dim) == (11, 1, 128)
    assert model.count_params() == keras_seq.BERT.parameter_count("tiny", vocabulary_size=11, num_layers=1)


def test_errors_name_the_sizes_and_the_value(shared):
    with pytest.raises(ValueError, match=r"GPT has the sizes \('tiny', 'small', .*\), got size='huge'\."):
        keras_seq.GPT.from_size("huge")
    with pytest.raises(ValueError, match=r"Transformer of size 'tiny' needs target_vocabulary_size\."):
        keras_seq.Transformer.from_size("tiny", source_vocabulary_size=11)
    for build in (keras_seq.GPT.from_size, keras_seq.GPT.parameter_count):
        with pytest.raises(ValueError, match=r"needs vocabulary_size >= 1, got vocabulary_size=0\."):
            build("tiny", vocabulary_size=0)
    with pytest.raises(ValueError, match=r"BERTClassifier has no named sizes; \('Seq2Seq', .*backbone"):
        keras_seq.BERTClassifier.from_size("base")
