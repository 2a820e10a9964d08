"""keras_seq.text: strings to ids and back, compared with Hugging Face's tokenizers and with Python's own decoding."""

import functools
import gzip
import json
import os
import pathlib
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import keras_seq
from keras_seq import text

tf = pytest.importorskip("tensorflow")
hf = pytest.importorskip("tokenizers")

LINES = [
    "Two young, White males are outside near many bushes.",
    "Ein Hund läuft über die Straße; zwei Männer schauen zu!",
    "The dogs' owner isn't running, she's walking and they'll wait: we've 13 dogs, I'd say 2'000.",
    "한국어 문장을 나누는 것은 어렵다. 中文没有空格。 日本語も。",
    "naïve café ÀÉÎÕÜ Ωμέγα ΣΊΣΥΦΟΣ İstanbul",
    "   spaces\tand\n\nlines   ",
    "שָׁלוֹם עולם مرحبا بالعالم नमस्ते 🙂👩‍👩‍👧",
]
HOSTILE = [
    *"abcdestmrlv XYZ'’\"#.,!?()[]{}<>|_-=+$^`~@\\/01²Ⅷ",
    *"\x00\x01\x07\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x7f\x85\xa0\xad\u200b\u200d\u2003\u2028\u2029\u202e\u3000\ufeff\ufffd\ufffe",
    *"éÉ\u0301\u0308\u0327İıßẞΣςſﬁǅ가각한\u1100\u1161\u11a8中豈ツ丽אשָׁمَرनम्क्षกำ",
    *"🙂👩🏽\u200d\U000e0001\U000f0000\U0010ffff𝒜",
    *(
        "'s",
        "'re",
        " 'll",
        "''s",
        " '",
        "[MASK]",
        "[SEP]",
        "[CLS",
        "[[UNK]]",
        "##",
        "<|endoftext|>",
        "  ",
        "a" * 97,
        "dog" * 43,
    ),
]
hostile_strings = st.lists(st.sampled_from(HOSTILE), max_size=23).map("".join)
hypothesis_settings = settings(
    max_examples=53,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SIGNATURE = [tf.TensorSpec([None], tf.string)]


def data(name):
    folder = os.environ.get("KERAS_SEQ_DATA")
    if not folder:
        pytest.skip("KERAS_SEQ_DATA is not set")
    path = pathlib.Path(folder) / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def real_lines(count=997):
    lines = []
    for name in ("multi30k/train.en.gz", "multi30k/train.de.gz", "nsmc/ratings_train.txt.gz"):
        with gzip.open(data(name), "rt", encoding="utf-8", newline="\n") as file:
            lines += [line for line, _ in zip(file, range(count))]
    shakespeare = data("tinyshakespeare/input.txt").read_text(encoding="utf-8")
    return lines + [shakespeare[i : i + 1009] for i in range(0, 100 * 1009, 1009)]


@pytest.fixture(scope="session")
def wordpiece():
    return text.train_tokenizer(LINES, "wordpiece", 307, lowercase=True)


@pytest.fixture(scope="session")
def cased():
    return text.train_tokenizer(LINES, "wordpiece", 307)


@pytest.fixture(scope="session")
def bpe():
    return text.train_tokenizer(LINES * 3, "bpe", 401)


@pytest.fixture(scope="session")
def char():
    return text.train_tokenizer(LINES, "char", 101, lowercase=True)


@pytest.fixture(scope="session")
def word():
    return text.train_tokenizer(LINES, "word", 53)


def gpt1_model(vocabulary, merges):
    return hf.models.BPE(vocabulary, merges, unk_token="<unk>", end_of_word_suffix="</w>")


def gpt1_pipeline(model):
    """What transformers makes of GPT-1's files."""
    other = hf.Tokenizer(model)
    other.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    other.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    other.decoder = hf.decoders.BPEDecoder(suffix="</w>")
    other.add_special_tokens(["<unk>"])
    return other


@pytest.fixture(scope="session")
def gpt1():
    other = gpt1_pipeline(gpt1_model({}, []))
    trainer = hf.trainers.BpeTrainer(
        vocab_size=307, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    other.train_from_iterator(LINES, trainer)
    model = json.loads(other.to_str())["model"]
    return text.OpenAIGPTTokenizer(model["vocab"], model["merges"])


@pytest.fixture(params=[*text.KINDS, "gpt1"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)


@functools.cache
def reference(tokenizer):
    """The same vocabulary in Hugging Face's tokenizers."""
    ids = {token: i for i, token in enumerate(tokenizer.vocabulary)}
    if tokenizer.kind == "openai-gpt":
        return gpt1_pipeline(gpt1_model(ids, tokenizer.merges))
    if tokenizer.kind == "bpe":
        other = hf.Tokenizer(hf.models.BPE(ids, tokenizer.merges))
        other.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        other.decoder = hf.decoders.ByteLevel()
        return other
    other = hf.Tokenizer(hf.models.WordPiece(ids, unk_token="[UNK]"))
    other.normalizer = hf.normalizers.BertNormalizer(
        lowercase=tokenizer.lowercase, strip_accents=tokenizer.strip_accents
    )
    other.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    other.decoder = hf.decoders.WordPiece()
    other.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return other


def byte_places(string):
    return np.cumsum([0, *(len(char.encode("utf-8", "surrogatepass")) for char in string)])


def assert_as_reference(tokenizer, other, strings):
    ids, starts, ends = (values.to_list() for values in tokenizer.tokenize_with_offsets(strings))
    expected = other.encode_batch(strings, add_special_tokens=False)
    for string, ids_, starts_, ends_, theirs in zip(strings, ids, starts, ends, expected):
        assert ids_ == theirs.ids, string
        places = byte_places(string)
        assert [(start, end) for start, end in zip(starts_, ends_)] == [
            (places[start], places[end]) for start, end in theirs.offsets
        ], string


# --- against the reference, on made-up strings


@hypothesis_settings
@given(st.lists(hostile_strings, min_size=1, max_size=31))
@example(["x" * 100, "x" * 101, "é" * 100, "e\u0301" * 100])
def test_wordpiece_gives_the_reference_ids_and_offsets_of_hostile_strings(wordpiece, strings):
    assert_as_reference(wordpiece, reference(wordpiece), strings)


@hypothesis_settings
@given(st.lists(hostile_strings, min_size=1, max_size=31))
def test_cased_wordpiece_gives_the_reference_ids_and_offsets_of_hostile_strings(cased, strings):
    assert_as_reference(cased, reference(cased), strings)


@hypothesis_settings
@given(st.lists(hostile_strings, min_size=1, max_size=31))
@example(["aaaa aaaaa aaaaaa", "'s's 's\n's''s'st'll'", "a  b \n c\n\n d   ", " ", "  ", "\n", "\u3000a", " \u3000 a"])
def test_byte_pairs_give_the_reference_ids_and_offsets_of_hostile_strings(bpe, strings):
    assert_as_reference(bpe, reference(bpe), strings)


@hypothesis_settings
@given(st.lists(hostile_strings, min_size=1, max_size=31))
@example(["<unk>", "a<unk>b <unk>", "<un k>", "x" * 511, "x" * 512, "dog" * 43 + "\u0301"])
def test_gpt1_gives_the_reference_ids_and_offsets_of_hostile_strings(gpt1, strings):
    assert_as_reference(gpt1, reference(gpt1), strings)


@hypothesis_settings
@given(st.lists(st.integers(-3, 311), max_size=23))
def test_gpt1_ids_decode_as_the_reference(gpt1, ids):
    shown = [i for i in ids if 0 <= i < gpt1.vocabulary_size]
    theirs = reference(gpt1).decode(shown, skip_special_tokens=False)
    assert gpt1.detokenize([ids, []]).numpy()[0].decode() == theirs


@functools.cache
def stable_characters():
    """Characters that are what they were in Unicode 3.2, so that all programs agree on them."""
    old = unicodedata.ucd_3_2_0
    characters = (chr(code) for code in range(0x110000) if not 0xE000 <= code < 0xF900 and code < 0xF0000)
    return [
        char
        for char in characters
        if (kind := old.category(char)) == unicodedata.category(char) and kind not in ("Cn", "Cs")
    ]


@pytest.mark.parametrize("lowercase, strip_accents", [(True, None), (False, None), (True, False), (False, True)])
def test_wordpiece_normalizes_every_character_as_the_reference(lowercase, strip_accents):
    characters = stable_characters()[:: 1 if strip_accents is None else 3]
    assert len(characters) > 30_000
    normal = hf.normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    seen = sorted(set(normal.normalize_str("".join(characters))) - {" "})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *seen, *("##" + char for char in seen)]
    tokenizer = text.WordPieceTokenizer(vocabulary, lowercase, strip_accents)
    strings = [f"a{char}b" for char in characters]
    assert_as_reference(tokenizer, reference(tokenizer), strings)


def test_byte_pairs_cut_at_every_character_as_the_reference(bpe):
    strings = [f"a{char}1{char} {char}! {char}{char}?" for char in stable_characters()[::3]]
    assert_as_reference(bpe, reference(bpe), strings)


# --- against the reference, on real text


def test_bert_vocabulary_gives_the_reference_ids_and_offsets_of_real_text():
    path = data("tokenizers/bert-base-uncased-vocab.txt")
    tokenizer, other = text.WordPieceTokenizer(path), hf.BertWordPieceTokenizer(str(path), lowercase=True)
    lines = real_lines()
    assert_as_reference(tokenizer, other, lines)
    ids = tokenizer.tokenize(lines)
    assert [string.decode() for string in tokenizer.detokenize(ids).numpy()] == other.decode_batch(
        ids.to_list(), skip_special_tokens=False
    )


def test_gpt2_vocabulary_gives_the_reference_ids_and_offsets_of_real_text():
    paths = [data("tokenizers/gpt2-encoder.json"), data("tokenizers/gpt2-vocab.bpe")]
    tokenizer, other = text.BytePairTokenizer(*paths), hf.ByteLevelBPETokenizer(*map(str, paths))
    assert_as_reference(tokenizer, other, real_lines())
    assert (tokenizer.start_token_id, tokenizer.end_token_id, tokenizer.pad_token_id) == (50256, 50256, None)


def test_gpt1_vocabulary_gives_the_reference_ids_and_offsets_of_real_text():
    paths = [data("tokenizers/gpt1-encoder_bpe_40000.json"), data("tokenizers/gpt1-vocab_40000.bpe")]
    tokenizer = text.OpenAIGPTTokenizer(*paths)
    other, lines = reference(tokenizer), real_lines(199)
    assert_as_reference(tokenizer, other, lines)
    ids = tokenizer.tokenize(lines)
    assert [string.decode() for string in tokenizer.detokenize(ids).numpy()] == other.decode_batch(
        ids.to_list(), skip_special_tokens=False
    )
    assert (tokenizer.unknown_token_id, tokenizer.pad_token_id, tokenizer.start_token_id) == (0, None, None)


# --- bytes


def replaced(raw):
    """raw decoded as Python replaces what is invalid, and where in raw each character begins; with the end."""
    string, places = "", [0]
    while places[-1] < len(raw):
        rest = raw[places[-1] :]
        try:
            valid, width = rest.decode("utf-8"), 0
        except UnicodeDecodeError as error:
            valid, width = rest[: error.start].decode("utf-8"), error.end - error.start
        string += valid + "\ufffd" * (width > 0)
        places += [places[-1] + int(place) for place in byte_places(valid)[1:]]
        places += [places[-1] + width] * (width > 0)
    assert string == raw.decode("utf-8", "replace")
    return string, places


broken_bytes = st.lists(
    st.one_of(
        st.binary(max_size=3),
        st.sampled_from([char.encode() for char in "aé한🙂 "]),
        st.sampled_from(
            [b"\xe2\x82", b"\xf0\x9f\x99", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xf8", b"\xff"]
        ),
    ),
    max_size=13,
).map(b"".join)


@hypothesis_settings
@given(st.lists(broken_bytes, max_size=11))
def test_invalid_bytes_are_read_where_python_replaces_them(bpe, strings):
    ids, starts, ends = (values.to_list() for values in bpe.tokenize_with_offsets(tf.constant(strings, tf.string)))
    assert len(ids) == len(strings)
    for i, raw in enumerate(strings):
        string, places = replaced(raw)
        ids_, starts_, ends_ = bpe.tokenize_with_offsets(string)
        assert ids[i] == ids_.numpy().tolist(), raw
        place_of = {int(place): places[k] for k, place in enumerate(byte_places(string))}
        assert starts[i] == [place_of[start] for start in starts_.numpy()], raw
        assert ends[i] == [place_of[end] for end in ends_.numpy()], raw
        assert bpe.detokenize(ids_).numpy().decode() == string


@hypothesis_settings
@given(st.lists(st.text(max_size=29), max_size=11))
@example(["\x00", "", "\U0010ffff\ufffe\ufeff"])
def test_detokenize_inverts_tokenize_for_every_utf8_string(bpe, strings):
    assert [raw.decode() for raw in bpe.detokenize(bpe.tokenize(strings)).numpy()] == strings


@hypothesis_settings
@given(st.data())
def test_characters_and_words_of_the_vocabulary_come_back_and_others_as_unknown(char, word, data):
    known = st.text(st.sampled_from([token for token in char.vocabulary if len(token) == 1]), max_size=23)
    strings = data.draw(st.lists(known, min_size=1, max_size=7))
    assert [one.decode() for one in char.detokenize(char.tokenize(strings)).numpy()] == strings
    words = st.lists(st.sampled_from(word.vocabulary[4:]) | st.just("no-such-word"), max_size=13)
    space = data.draw(st.sampled_from([" ", "  ", "\t", "\n ", "\u3000"]))
    rows = data.draw(st.lists(words, min_size=1, max_size=7))
    shown = [" ".join("<unk>" if one == "no-such-word" else one for one in row) for row in rows]
    ids, starts, ends = (one.to_list() for one in word.tokenize_with_offsets([space.join(row) for row in rows]))
    assert [one.decode() for one in word.detokenize(ids).numpy()] == shown
    for row, starts_, ends_ in zip(rows, starts, ends):
        raw = space.join(row).encode()
        assert [raw[start:end].decode() for start, end in zip(starts_, ends_)] == row


@hypothesis_settings
@given(st.lists(st.integers(-3, 403), max_size=23))
def test_byte_pairs_of_any_ids_decode_as_the_reference(bpe, ids):
    shown = [i for i in ids if 3 <= i < bpe.vocabulary_size]
    assert bpe.detokenize([ids, []]).numpy()[0].decode() == reference(bpe).decode(shown)


SMALL = text.CharacterTokenizer(["a", "<pad>"]), text.WordTokenizer(["<unk>", "dog", "a"])


@hypothesis_settings
@given(st.lists(hostile_strings.map(str.encode) | broken_bytes, min_size=1, max_size=13))
def test_content_never_raises_and_ids_stay_inside_the_vocabulary(strings):
    for tokenizer in SMALL:
        ids, starts, ends = tokenizer.tokenize_with_offsets(strings)
        assert ids.shape[0] == len(strings)
        assert all(0 <= i < tokenizer.vocabulary_size for i in ids.flat_values.numpy())
        for raw, starts_, ends_ in zip(strings, starts.to_list(), ends.to_list()):
            assert all(0 <= start < end <= len(raw) for start, end in zip(starts_, ends_))


# --- shapes, edges


def test_one_string_gives_a_vector_and_a_batch_gives_rows(any_tokenizer):
    one, batch = any_tokenizer.tokenize(LINES[0]), any_tokenizer.tokenize(LINES)
    assert one.shape.rank == 1 and one.dtype == tf.int32
    assert isinstance(batch, tf.RaggedTensor) and batch.dtype == tf.int32 and batch.shape[0] == len(LINES)
    assert batch[0].numpy().tolist() == one.numpy().tolist()
    strings = any_tokenizer.detokenize(batch)
    assert strings.shape == (len(LINES),)
    assert any_tokenizer.detokenize(one).numpy() == strings.numpy()[0]


def test_no_strings_and_empty_strings_give_no_tokens(any_tokenizer):
    assert any_tokenizer.tokenize([]).shape[0] == 0
    assert any_tokenizer.tokenize("").shape == (0,)
    ids, starts, ends = any_tokenizer.tokenize_with_offsets(["", LINES[0], ""])
    assert ids.row_lengths().numpy().tolist()[::2] == [0, 0]
    assert (
        starts.row_lengths().numpy().tolist()
        == ends.row_lengths().numpy().tolist()
        == ids.row_lengths().numpy().tolist()
    )
    assert any_tokenizer.detokenize(ids).numpy()[0] == b""
    assert any_tokenizer.detokenize(tf.zeros([3, 0], tf.int32)).numpy().tolist() == [b""] * 3
    assert any_tokenizer.detokenize(tf.zeros([0, 5], tf.int32)).shape == (0,)


def test_a_string_gets_the_same_ids_alone_and_in_company(any_tokenizer):
    together = any_tokenizer.tokenize(LINES).to_list()
    assert together == [any_tokenizer.tokenize(line).numpy().tolist() for line in LINES]


def test_detokenize_drops_padding_start_and_end_and_shows_unknown_and_mask(wordpiece):
    ids = [[2, *wordpiece.tokenize("dogs [MASK] \u4e00,").numpy(), 3, 0, 0], [3, 2, -1, 10**6, 0]]
    assert wordpiece.detokenize(ids).numpy().tolist() == [b"dogs [MASK] [UNK],", b""]
    assert wordpiece.detokenize(tf.constant([[2**32 + 7, -(2**32) + 7]], tf.int64)).numpy().tolist() == [b""]
    assert wordpiece.detokenize(tf.constant(ids[1:] * 6, shape=(3, 2, 5))).numpy().tolist() == [[b""] * 2] * 3


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint32", "uint64"])
def test_ids_stored_in_any_integers_are_the_same_text(wordpiece, dtype):
    stored = np.array([[*range(5, 100), np.iinfo(dtype).max]], dtype)
    shown = wordpiece.detokenize([[i for i in stored[0].tolist() if i < wordpiece.vocabulary_size]]).numpy().tolist()
    assert len(shown[0]) > 95
    for ids in (stored, tf.RaggedTensor.from_tensor(stored)):
        assert wordpiece.detokenize(ids).numpy().tolist() == shown


def test_tokens_shown_to_people_are_text_where_they_are_text(bpe, wordpiece):
    ids = tf.constant([[3, bpe.token_to_id("Ġ"), bpe.token_to_id("ê")], [-1, 401, 0]])
    assert bpe.ids_to_tokens(ids).numpy().tolist() == [[b"!", b" ", "ê".encode()], [b"", b"", b"<pad>"]]
    ragged = wordpiece.tokenize(LINES)
    tokens = wordpiece.ids_to_tokens(ragged)
    assert tokens.row_lengths().numpy().tolist() == ragged.row_lengths().numpy().tolist()


def test_special_tokens_in_strings_are_read_only_where_asked_for(wordpiece, bpe):
    assert wordpiece.tokenize("a[MASK]b").numpy()[1] == wordpiece.mask_token_id
    blind = text.WordPieceTokenizer(wordpiece.vocabulary, special_tokens_in_strings=False)
    assert wordpiece.mask_token_id not in blind.tokenize("a[MASK]b").numpy()
    assert bpe.end_token_id not in bpe.tokenize("a </s>").numpy()
    seeing = text.BytePairTokenizer(bpe._ids, bpe.merges, special_tokens_in_strings=True)
    ids, starts, ends = seeing.tokenize_with_offsets("a  </s></s> b")
    assert [(s, e) for i, s, e in zip(ids.numpy(), starts.numpy(), ends.numpy()) if i == seeing.end_token_id] == [
        (3, 7),
        (7, 11),
    ]


def test_byte_pairs_that_read_special_tokens_cut_around_them_as_the_reference(bpe):
    seeing = text.BytePairTokenizer(bpe._ids, bpe.merges, special_tokens_in_strings=True)
    other = reference(seeing)
    other.add_special_tokens(["<pad>", "<s>", "</s>"])
    assert_as_reference(seeing, other, ["a  </s></s> b", "<s>the dog's  <pad>'s", "<s", "</s>", "<</s>>", "\n <s> \n"])


def test_a_word_named_like_a_special_token_is_unknown(word):
    assert word.tokenize("<s> Two <pad>").numpy().tolist() == [3, word.token_to_id("Two"), 3]


def test_a_megabyte_without_a_space_takes_bounded_time(wordpiece, bpe):
    random = np.random.default_rng(7)
    strings = ["a" * 2**20, bytes(random.choice(list(b"abdefghinorstu"), 2**17)).decode()]
    assert wordpiece.tokenize(strings).to_list() == [[wordpiece.unknown_token_id]] * 2
    ids = bpe.tokenize(strings)
    assert bpe.detokenize(ids).numpy().tolist() == [string.encode() for string in strings]


def test_wordpiece_follows_no_long_word_to_its_end():
    tokenizer = text.WordPieceTokenizer(["[UNK]", "a", "##a", "##aa", "b", ","])
    strings = ["a" * 2**20, "a" * 100 + ",b" * 2**15, ("a" * 101 + " ") * 97]
    counts = [1, 51 + 2**16, 97]  # a, ##aa 49 times and ##a
    ids, starts, ends = tokenizer.tokenize_with_offsets(strings)
    assert ids.row_lengths().numpy().tolist() == counts
    assert (ids[0].numpy().tolist(), starts[0].numpy().tolist(), ends[0].numpy().tolist()) == ([0], [0], [2**20])
    assert (starts[2].numpy() == np.arange(97) * 102).all() and (ends[2].numpy() - starts[2].numpy() == 101).all()


def test_wordpiece_without_an_unknown_token_drops_the_words_it_cannot_make_up():
    tokenizer = text.WordPieceTokenizer(["the", "dog", "##s"])
    ids, starts, ends = (one.to_list() for one in tokenizer.tokenize_with_offsets(["The cat's dogs", "dogx", ""]))
    assert (ids, starts, ends) == ([[0, 1, 2], [], []], [[0, 10, 13], [], []], [[3, 13, 14], [], []])


# --- graphs and files

ALIEN = ("mutable", "pyfunc", "xla", "wordpiece", "sentencepiece", "tftext", "numpyfunction")


@pytest.mark.parametrize("kind", [*text.KINDS, "gpt1"])
def test_an_exported_graph_gives_the_same_ids_from_core_operations_alone(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    module = tf.Module()
    module.resources = tokenizer.resources

    @tf.function(input_signature=SIGNATURE)
    def tokenize(strings):
        ids, starts, ends = tokenizer.tokenize_with_offsets(strings)
        return {
            "ids": ids.to_tensor(-1),
            "starts": starts.to_tensor(-1),
            "ends": ends.to_tensor(-1),
            "tokens": tokenizer.ids_to_tokens(ids).to_tensor(""),
            "text": tokenizer.detokenize(ids),
        }

    module.tokenize = tokenize
    tf.saved_model.save(module, str(tmp_path / "export"), signatures={"serving_default": tokenize})
    served = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    strings = tf.constant([*LINES, "", "".join(HOSTILE), b"\xff\xc3"])
    ours, theirs = tokenize(strings), served(strings)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    ids = tokenizer.tokenize(strings)
    np.testing.assert_array_equal(theirs["ids"], ids.to_tensor(-1))
    np.testing.assert_array_equal(theirs["text"], tokenizer.detokenize(ids))

    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((tmp_path / "export" / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    operations = {node.op for node in nodes}
    assert ("LookupTableFindV2" in operations) == bool(tokenizer.resources)
    assert not [name for name in operations if any(word in name.lower() for word in ALIEN)]
    assert not any("_XlaMustCompile" in node.attr for node in nodes)


def test_tokenize_works_inside_a_data_pipeline(any_tokenizer):
    lines = tf.data.Dataset.from_tensor_slices(LINES).batch(3).map(any_tokenizer.tokenize)
    assert [row for batch in lines for row in batch.to_list()] == any_tokenizer.tokenize(LINES).to_list()


def test_a_tokenizer_may_first_be_used_inside_a_graph(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path)
    inside, mapped = text.load_tokenizer(tmp_path), text.load_tokenizer(tmp_path)
    expected = any_tokenizer.tokenize(LINES).to_list()
    assert tf.function(inside.tokenize, input_signature=SIGNATURE)(LINES).to_list() == expected
    lines = tf.data.Dataset.from_tensors(LINES).map(lambda lines: (mapped.tokenize(lines), mapped.tokenize(lines[0])))
    assert [(batch.to_list(), one.numpy().tolist()) for batch, one in lines] == [(expected, expected[0])]


def test_a_saved_tokenizer_comes_back_with_its_fingerprint(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path / "tokenizer")
    any_tokenizer.save(tmp_path / "tokenizer")  # over itself
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]
    loaded = text.load_tokenizer(tmp_path / "tokenizer")
    assert type(loaded) is type(any_tokenizer) and loaded.fingerprint == any_tokenizer.fingerprint
    assert loaded.vocabulary == any_tokenizer.vocabulary
    assert loaded.tokenize(LINES).to_list() == any_tokenizer.tokenize(LINES).to_list()


def test_a_changed_file_is_refused(char, tmp_path):
    char.save(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary[::-1]))
    with pytest.raises(ValueError, match=r"load_tokenizer needs the files with fingerprint .*, got "):
        text.load_tokenizer(tmp_path)


def test_fingerprints_differ_where_ids_may_differ(wordpiece, cased):
    blind = text.WordPieceTokenizer(wordpiece.vocabulary, special_tokens_in_strings=False)
    accents = text.WordPieceTokenizer(wordpiece.vocabulary, strip_accents=False)
    assert len({tokenizer.fingerprint for tokenizer in (wordpiece, cased, blind, accents)}) == 4


# --- vocabularies


def test_trained_vocabularies_begin_with_their_special_tokens(wordpiece, bpe, char, word):
    assert wordpiece.vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert bpe.vocabulary[:3] == ["<pad>", "<s>", "</s>"] and bpe.unknown_token_id is None
    for tokenizer in (char, word):
        assert tokenizer.vocabulary[:4] == ["<pad>", "<s>", "</s>", "<unk>"]
        assert (tokenizer.start_token_id, tokenizer.end_token_id, tokenizer.unknown_token_id) == (1, 2, 3)
    assert (wordpiece.pad_token_id, wordpiece.start_token_id, wordpiece.end_token_id) == (0, 2, 3)
    assert (wordpiece.unknown_token_id, wordpiece.mask_token_id, word.mask_token_id) == (1, 4, None)


def test_a_word_of_the_text_takes_no_special_tokens_place():
    lines = ["he wrote [PAD] and [UNK] , [CLS] [SEP] [MASK] <mask> <|endoftext|> here"] * 2
    tokenizer = keras_seq.train_tokenizer(lines, "word", 50)
    ids = [getattr(tokenizer, f"{role}_token_id") for role in ("pad", "start", "end", "unknown", "mask")]
    assert ids == [0, 1, 2, 3, None]
    assert tokenizer.detokenize([[*tokenizer.tokenize("he wrote here").numpy().tolist(), 0]]) == [b"he wrote here"]


@pytest.mark.parametrize("kind, size", [("wordpiece", 7), ("wordpiece", 83), ("bpe", 269), ("char", 11), ("word", 13)])
def test_a_trained_vocabulary_is_as_large_as_asked_for(kind, size):
    tokenizer = text.train_tokenizer(iter(LINES * 5), kind, size)
    assert size - 1 <= tokenizer.vocabulary_size <= size
    ids = tokenizer.tokenize(LINES).flat_values.numpy()
    assert ids.min() >= 0 and ids.max() < tokenizer.vocabulary_size


def alone(code):
    """Output of code in a fresh process that has `text` and what it imports, and nothing else of the library."""
    package = "import sys, types; package = sys.modules['keras_seq'] = types.ModuleType('keras_seq')"
    code = f"{package}; package.__path__ = {keras_seq.__path__!r}; from keras_seq import text; {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_the_same_lines_give_the_same_vocabulary_in_every_process(kind):
    code = f"print(text.train_tokenizer({LINES!r}, {kind!r}, 331).fingerprint)"
    assert {alone(code) for _ in range(3)} == {text.train_tokenizer(LINES, kind, 331).fingerprint + "\n"}


def test_words_below_the_least_frequency_are_left_out():
    tokenizer = text.train_tokenizer(["a b a", "B c  a"], "word", min_frequency=2, lowercase=True)
    assert tokenizer.vocabulary[4:] == ["a", "b"]
    assert tokenizer.detokenize(tokenizer.tokenize("A  b\tC")).numpy() == b"a b <unk>"


def test_characters_below_the_least_frequency_are_no_pieces_of_words():
    tokenizer = text.train_tokenizer(["abab q", "aba bz"], min_frequency=2)
    assert {"a", "##a", "##b"} <= set(tokenizer.vocabulary) and not {"q", "##q", "z", "##z"} & set(tokenizer.vocabulary)
    assert tokenizer.detokenize(tokenizer.tokenize("ab q")).numpy() == b"ab [UNK]"


def test_tokens_and_ids_are_each_others_inverse(any_tokenizer):
    size = any_tokenizer.vocabulary_size
    assert [any_tokenizer.token_to_id(any_tokenizer.id_to_token(i)) for i in range(size)] == list(range(size))
    assert any_tokenizer.token_to_id("no such token") is None
    with pytest.raises(IndexError, match=f"needs 0 <= id < {size}, got id={size}"):
        any_tokenizer.id_to_token(size)


def test_the_longest_token_is_counted_in_bytes_of_text():
    merges = [("Ġ", "í"), ("Ġí", "ķ")]
    tokenizer = text.BytePairTokenizer({"Ġ": 0, "í": 1, "ķ": 2, "Ġí": 3, "Ġíķ": 4}, merges)
    assert tokenizer.max_token_bytes == 3
    assert text.CharacterTokenizer(["é", "한"]).max_token_bytes == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kind": "unigram"}, r"needs kind in \('wordpiece', 'bpe', 'char', 'word'\), got kind='unigram'"),
        (
            {"kind": "bpe", "vocabulary_size": 258},
            r"\(kind='bpe'\) needs vocabulary_size >= 259, got vocabulary_size=258",
        ),
        ({"kind": "char", "min_frequency": 0}, r"needs min_frequency >= 1, got min_frequency=0"),
        ({"kind": "bpe", "lowercase": True}, r"keeps strings as they are, got lowercase=True"),
    ],
)
def test_training_names_the_rule_that_was_broken(arguments, message):
    with pytest.raises(ValueError, match=message):
        text.train_tokenizer(LINES, **arguments)


@pytest.mark.parametrize(
    "kind, lines, message",
    [
        *(
            (kind, ["", " \n"], r"something occurs min_frequency=1 times or more, got a vocab")
            for kind in ("wordpiece", "word")
        ),
        *(
            (kind, iter([]), r"something occurs min_frequency=1 times or more, got a vocab")
            for kind in ("wordpiece", "char")
        ),
        *((kind, "one line", r"needs an iterable of lines, got one str of 8 characters") for kind in text.KINDS),
        *((kind, ["a", b"b"], r"needs lines of str, got b'b'") for kind in text.KINDS),
    ],
)
def test_training_names_what_is_wrong_with_the_lines(kind, lines, message):
    with pytest.raises(ValueError, match=message):
        text.train_tokenizer(lines, kind)


@pytest.mark.parametrize("kind, size", [("wordpiece", 10), ("bpe", 262), ("char", 8), ("word", 6)])
def test_a_small_text_gives_the_vocabulary_that_it_has_however_large_it_may_be(kind, size):
    tokenizer = text.train_tokenizer((line for line in ["ab ab", "", "ab c"]), kind, 10**6)
    assert tokenizer.vocabulary_size == size
    assert tokenizer.detokenize(tokenizer.tokenize(["ab c", ""])).numpy().tolist() == [b"ab c", b""]


def test_a_vocabulary_of_special_tokens_alone_reads_everything_as_unknown():
    tokenizer = text.WordTokenizer(["<pad>", "<unk>"])
    assert tokenizer.tokenize(["a b", ""]).to_list() == [[1, 1], []]


def test_vocabularies_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"needs a vocabulary of different tokens, got 3 tokens, repeated: \['a'\]"):
        text.WordTokenizer(["a", "b", "a"])
    with pytest.raises(ValueError, match=r"needs tokens without line breaks, got 'a\\n'"):
        text.WordPieceTokenizer(["[UNK]", "a\n"])
    with pytest.raises(ValueError, match="needs the ids 0 to 1, each once, got 2 ids from 0 to 2"):
        text.BytePairTokenizer({"a": 0, "b": 2}, [])
    with pytest.raises(ValueError, match=r"needs merges of two tokens into a third, got \('a', 'c'\)"):
        text.BytePairTokenizer({"a": 0, "b": 1}, ["a c"])
    with pytest.raises(ValueError, match=r"needs one string or a batch \(b,\) of them, got shape=\(1, 1\)"):
        text.WordTokenizer(["a"]).tokenize([["a"]])
    with pytest.raises(ValueError, match=r"needs ids with at least one axis, got shape=\(\)"):
        text.WordTokenizer(["a"]).detokenize(3)


def test_the_module_and_training_import_no_tensorflow():
    code = f"import sys; text.train_tokenizer({LINES!r}); print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    assert alone(code) == "False False\n"
