"""Lines -> batches: nothing lost, nothing doubled, and what the model is asked for is what the text says."""

import random
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seq import train_tokenizer
from training import pipelines
from training.feed import count_tokens

LIMIT, PLACES, WIDTH = 23, 113, 3
WORDS = [f"w{i}" for i in range(41)]


def make_lines(count, seed, longest=31):
    rng = random.Random(seed)
    return [" ".join([f"n{i}", *rng.choices(WORDS, k=rng.randrange(longest))]) for i in range(count)]


LINES, OTHERS = make_lines(211, 3), make_lines(211, 5)
PAIRS = list(zip(LINES, [line.upper() for line in OTHERS]))
TOKENIZER = train_tokenizer(LINES, "word", 499)
TARGET = train_tokenizer([line for _, line in PAIRS], "word", 499)
PIECES = train_tokenizer(LINES + OTHERS, "wordpiece", 211)
TRIPLES = [(a, b, i % 2) for i, (a, b) in enumerate(zip(LINES, OTHERS))]
LABELS = ["blue", "green", "red"]
LABELLED = [(line, LABELS[len(line) % 3]) for line in LINES]


def translation(seed=None, tokens_per_batch=PLACES, start=0):
    return pipelines.translation_pairs(PAIRS, TOKENIZER, TARGET, LIMIT, tokens_per_batch, WIDTH, seed, start)


def lines(seed=None, tokens_per_batch=PLACES, start=0):
    return pipelines.text_lines(LINES, TOKENIZER, LIMIT, tokens_per_batch, WIDTH, seed, start)


def documents(seed=None, tokens_per_batch=PLACES, start=0, texts=LINES):
    return pipelines.packed_documents(texts, TOKENIZER, LIMIT, tokens_per_batch, seed, start)


def masked(seed=None, tokens_per_batch=PLACES, start=0, triples=TRIPLES, **options):
    return pipelines.masked_pairs(triples, PIECES, LIMIT, tokens_per_batch, WIDTH, seed, start, **options)


def labelled(seed=None, tokens_per_batch=PLACES, start=0):
    return pipelines.labelled_text(LABELLED, LABELS, PIECES, LIMIT, tokens_per_batch, WIDTH, seed, start)


BUCKETED = {"translation": translation, "lines": lines, "masked": masked, "labelled": labelled}


def numpy(dataset):
    return [tf.nest.map_structure(lambda x: x.numpy(), batch) for batch in dataset]


def equal(one, other):
    one, other = tf.nest.flatten(one), tf.nest.flatten(other)
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other))


def words(row, tokenizer):
    return " ".join(tokenizer.id_to_token(int(i)) for i in row if i)


def cut(line, count=LIMIT - 1):
    return " ".join(line.split()[:count])


# ---- Pairs and lines -----------------------------------------------------------------------------------------------


def test_the_decoder_is_fed_the_start_and_then_what_it_was_asked_for():
    for inputs, labels, weights in numpy(translation()):
        fed = inputs["decoder_token_ids"]
        assert np.all(fed[:, 0] == TARGET.start_token_id)
        real = weights[:, 1:] > 0
        np.testing.assert_array_equal(fed[:, 1:][real], labels[:, :-1][real])
        last = weights.sum(axis=1).astype(int) - 1
        assert np.all(labels[np.arange(len(labels)), last] == TARGET.end_token_id)


def test_every_pair_is_seen_exactly_once_in_order_of_its_text():
    seen = Counter()
    for inputs, labels, _ in numpy(translation()):
        for source, target in zip(inputs["encoder_token_ids"], labels):
            seen[words(source, TOKENIZER), words(target, TARGET)] += 1
    assert seen == Counter((f"{cut(a)} </s>", f"{cut(b)} </s>") for a, b in PAIRS)


def test_every_line_is_seen_exactly_once_and_fed_one_behind():
    seen = Counter()
    for inputs, labels, weights in numpy(lines()):
        for fed, asked, weight in zip(inputs["token_ids"], labels, weights):
            count = int(weight.sum())
            assert list(fed[1:count]) == list(asked[: count - 1])
            seen[words(fed[:count], TOKENIZER) + " | " + words(asked, TOKENIZER)] += 1
    assert seen == Counter(f"<s> {cut(line)} | {cut(line)} </s>" for line in LINES)


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=29).map(" ".join), min_size=1, max_size=17))
@settings(max_examples=17, deadline=None)
def test_lines_of_any_lengths_are_all_seen_once(some):
    batches = pipelines.text_lines(some, TOKENIZER, LIMIT, PLACES, WIDTH)
    seen = [words(row[row != TOKENIZER.end_token_id], TOKENIZER) for _, labels, _ in numpy(batches) for row in labels]
    assert sorted(seen) == sorted(map(cut, some))


@pytest.mark.parametrize("name", BUCKETED)
def test_masks_and_weights_are_one_on_the_first_places_and_where_something_is_asked_for(name):
    for inputs, labels, weights in numpy(BUCKETED[name]()):
        for key, mask in inputs.items():
            if key.endswith("padding_mask"):
                lengths = mask.sum(axis=1)
                np.testing.assert_array_equal(mask, np.arange(mask.shape[1]) < lengths[:, None])
                assert inputs[key.replace("padding_mask", "token_ids")][mask].all()
        if name in ("translation", "lines"):
            key = "decoder_padding_mask" if name == "translation" else "padding_mask"
            np.testing.assert_array_equal(weights, inputs[key])
            np.testing.assert_array_equal(weights, labels != 0)


@pytest.mark.parametrize("name", BUCKETED)
def test_a_batch_holds_rows_of_about_one_length_and_at_most_the_places_asked_for(name):
    for inputs, _, _ in numpy(BUCKETED[name]()):
        masks = [mask for key, mask in inputs.items() if key.endswith("padding_mask")]
        lengths = np.max([mask.sum(axis=1) for mask in masks], axis=0)
        # The target's row has its start too, which the decoder is not asked for: one place more.
        assert np.ptp(lengths) <= WIDTH
        assert lengths.size * lengths.max() <= PLACES


@pytest.mark.parametrize("name", BUCKETED)
@pytest.mark.parametrize("width", [2, 3, 4, 5])
def test_the_longest_rows_share_batches_as_all_others_do(name, width, monkeypatch):
    # As many rows as are cut to the limit, it matters: with a limit on a boundary they once went one by one.
    monkeypatch.setitem(globals(), "WIDTH", width)
    masks = [inputs[[key for key in inputs if key.endswith("padding_mask")][-1]] for inputs, *_ in BUCKETED[name]()]
    longest = max(mask.shape[1] for mask in masks)
    assert max(len(mask) for mask in masks if mask.shape[1] == longest) > 1


@pytest.mark.parametrize("name", [*BUCKETED, "documents"])
def test_nine_of_ten_places_hold_real_tokens(name, monkeypatch):
    if name == "translation":  # a translation is about as long as its source
        monkeypatch.setitem(globals(), "PAIRS", [(line, line.upper()) for line in LINES])
    counts = [count_tokens(inputs) for inputs, _, _ in numpy({**BUCKETED, "documents": documents}[name](7).take(41))]
    assert sum(real for real, _ in counts) > 0.9 * sum(places for _, places in counts)
    assert np.median([places for _, places in counts]) > 0.6 * PLACES


# ---- Seeds and steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUCKETED)
def test_a_seed_fixes_the_batches_and_another_changes_them(name):
    one, again, other = (numpy(BUCKETED[name](seed).take(19)) for seed in (7, 7, 11))
    assert equal(one, again)
    assert not equal(one, other)


@pytest.mark.parametrize("name", BUCKETED)
def test_a_stream_skipped_to_a_step_is_the_tail_of_the_whole(name):
    whole = numpy(BUCKETED[name](7).take(61))
    assert equal(numpy(BUCKETED[name](7, start=47).take(14)), whole[47:])


def test_a_shuffled_stream_goes_through_all_lines_again_and_again():
    seen = Counter(words(row, TOKENIZER) for _, labels, _ in numpy(lines(7).take(211)) for row in labels)
    assert set(seen) == {f"{cut(line)} </s>" for line in LINES}
    assert max(seen.values()) - min(seen.values()) <= 1


def test_a_counted_dataset_knows_its_number_of_batches_and_keeps_them():
    batches = pipelines.counted(lines())
    assert len(batches) == len(numpy(lines()))
    assert equal(numpy(batches), numpy(lines()))


# ---- Running text --------------------------------------------------------------------------------------------------

TEXT = "\n".join(make_lines(83, 7)) + "\n"
LETTERS = train_tokenizer([TEXT], "char", 97)
BLOCK, BATCH = 29, 5


def packed(seed=None, start_step=0, text=TEXT, tokenizer=LETTERS):
    return pipelines.packed_text(text, tokenizer, BLOCK, BATCH, seed, start_step)


def written(ids):
    return LETTERS.detokenize(tf.constant(ids)).numpy().decode()


def test_windows_in_order_are_the_text_from_its_beginning_each_place_asked_for_once():
    asked = "".join(written(row) for _, labels, _ in numpy(packed()) for row in labels)
    whole = (len(TEXT) - 1) // BLOCK * BLOCK
    assert asked == TEXT[1 : 1 + whole]


def test_random_windows_are_the_texts_own_and_asked_for_one_behind():
    for inputs, labels, weights in numpy(packed(3).take(13)):
        assert inputs["token_ids"].shape == labels.shape == weights.shape == (BATCH, BLOCK)
        assert inputs["padding_mask"].all() and weights.all()
        for fed, asked in zip(inputs["token_ids"], labels):
            assert written(fed) + written(asked[-1:]) == written(fed[:1]) + written(asked)
            assert written(fed) + written(asked[-1:]) in TEXT


def test_random_windows_reach_both_ends_of_a_text():
    text = TEXT[: BLOCK + 3]
    fed = {written(row) for inputs, *_ in numpy(packed(3, text=text).take(13)) for row in inputs["token_ids"]}
    assert fed == {text[i : i + BLOCK] for i in range(3)}


def test_a_text_of_more_tokens_than_characters_is_read_to_its_end():
    tokenizer, text = train_tokenizer(["abc"], "bpe", 260), "가나다라" * 3
    ids = tokenizer.tokenize(tf.constant(text)).numpy()
    windows = [batch[0]["token_ids"] for batch in pipelines.packed_text(text, tokenizer, 5, 1).as_numpy_iterator()]
    np.testing.assert_array_equal(np.ravel(windows), ids[: (len(ids) - 1) // 5 * 5])


def test_packed_text_is_fixed_by_its_seed_and_can_start_at_any_step():
    whole = numpy(packed(3).take(17))
    assert equal(numpy(packed(3, start_step=11).take(6)), whole[11:])
    assert not equal(numpy(packed(5).take(17)), whole)


@pytest.mark.parametrize("kind", ["bpe", "char", "wordpiece"])
def test_a_text_cut_into_pieces_tokenizes_as_the_whole(kind):
    text = ("A line.\n\n\nAnother,\n  and one more\n" * 301) + "end"
    tokenizer = train_tokenizer([text], kind, 401)
    pieces = pipelines.pieces_of(text)
    assert len(pieces) > 3 and "".join(pieces) == text
    parts = [i for row in tokenizer.tokenize(tf.constant(pieces)).to_list() for i in row]
    assert parts == tokenizer.tokenize(tf.constant([text])).to_list()[0]


# ---- Packed documents ----------------------------------------------------------------------------------------------


def test_packed_documents_are_each_there_once_fed_one_behind_and_whole_where_they_fit():
    seen, cut_up = Counter(), Counter()
    for inputs, _, weights in numpy(documents(3).take(11)):
        np.testing.assert_array_equal(inputs["segment_ids"] > 0, inputs["padding_mask"])
        np.testing.assert_array_equal(weights > 0, inputs["padding_mask"])
    for inputs, labels, _ in numpy(documents()):
        for fed, asked, numbers in zip(inputs["token_ids"], labels, inputs["segment_ids"]):
            for number in range(1, numbers.max() + 1):
                one, its = fed[numbers == number], asked[numbers == number]
                np.testing.assert_array_equal(one[1:], its[:-1])
                text = words(np.append(one, its[-1:]), TOKENIZER)
                (seen if text.startswith("<s>") and text.endswith("</s>") else cut_up)[text] += 1
    short = [f"<s> {line} </s>" for line in LINES if len(line.split()) < LIMIT]
    assert seen == Counter(short) and len(short) < len(LINES)
    assert sum(text.startswith("<s>") for text in cut_up) == len(LINES) - len(short)


@given(st.lists(st.integers(1, 13), min_size=1, max_size=41))
@settings(max_examples=41, deadline=None)
def test_packed_rows_hold_every_piece_once_and_are_never_too_long(lengths):
    rows = pipelines.pack(lengths, 13)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in row) for row in rows]
    assert max(sizes) <= 13
    # No two rows would have gone into one.
    assert len(sizes) < 2 or sum(sorted(sizes)[:2]) > 13


# ---- Masked text ---------------------------------------------------------------------------------------------------


def restored(inputs, labels, weights):
    """The ids as they were before they were hidden."""
    ids = inputs["token_ids"].copy()
    for row, places, true_ids, real in zip(ids, inputs["mask_positions"], labels["masked_lm"], weights["masked_lm"]):
        row[places[real > 0]] = true_ids[real > 0]
    return ids


def originals(triples=TRIPLES):
    half = (LIMIT - 3) // 2
    rows = [pipelines.token_rows(PIECES, [triple[i] for triple in triples], half) for i in (0, 1)]
    return pipelines.segments(rows, PIECES)


def test_masked_text_comes_back_to_the_original_through_its_labels():
    seen = Counter()
    for inputs, labels, weights in numpy(masked()):
        for row, follows in zip(restored(inputs, labels, weights), labels["next_sentence"]):
            seen[tuple(row[row > 0]), int(follows)] += 1
    expected = zip(originals()["token_ids"].to_list(), TRIPLES)
    assert seen == Counter((tuple(row), triple[2]) for row, triple in expected)


def test_fifteen_per_cent_are_hidden_and_of_these_eighty_ten_ten():
    hidden, free, kinds = 0, 0, Counter()
    specials = [PIECES.pad_token_id, PIECES.start_token_id, PIECES.end_token_id]
    for inputs, labels, weights in numpy(masked(7, 2003).take(71)):
        before, real = restored(inputs, labels, weights), weights["masked_lm"] > 0
        free += np.sum(~np.isin(before, specials))
        hidden += real.sum()
        shown = np.take_along_axis(inputs["token_ids"], inputs["mask_positions"], axis=1)[real]
        true = labels["masked_lm"][real]
        kinds["mask"] += np.sum(shown == PIECES.mask_token_id)
        kinds["same"] += np.sum(shown == true)
        kinds["random"] += np.sum((shown != true) & (shown != PIECES.mask_token_id))
    assert hidden > 5_000
    assert abs(hidden / free - 0.15) < 0.01
    assert {kind: round(count / hidden, 1) for kind, count in kinds.items()} == {
        "mask": 0.8,
        "same": 0.1,
        "random": 0.1,
    }


def test_whole_words_are_hidden_or_none_of_their_tokens():
    starts = pipelines.starts_word(PIECES)
    assert starts[PIECES.token_to_id("w")] and not starts[PIECES.token_to_id("##1")]
    hidden = free = parts = 0
    specials = [PIECES.pad_token_id, PIECES.start_token_id, PIECES.end_token_id]
    for inputs, labels, weights in numpy(masked(7, 2003, whole_words=True).take(31)):
        before = restored(inputs, labels, weights)
        for row, places, real in zip(before, inputs["mask_positions"], weights["masked_lm"] > 0):
            chosen = np.isin(np.arange(len(row)), places[real])
            assert real.sum() == chosen.sum() >= 1
            inside = ~starts[row] & ~np.isin(row, specials)
            inside[1:] &= ~np.isin(row[:-1], specials)  # what follows [CLS] or [SEP] begins a word
            np.testing.assert_array_equal(chosen[1:][inside[1:]], chosen[:-1][inside[1:]])
            parts += (chosen & inside).sum()
        free += np.sum(~np.isin(before, specials))
        hidden += weights["masked_lm"].sum()
    assert parts > 100 and abs(hidden / free - 0.15) < 0.02


def test_where_words_begin_byte_pairs_say_too_and_letters_do_not():
    tokenizer = train_tokenizer(LINES, "bpe", 401)
    ids = tokenizer.tokenize(tf.constant("w3 n17, w5")).numpy()
    began = pipelines.starts_word(tokenizer)[ids]
    pieces = [tokenizer.id_to_token(int(i)) for i in ids]
    assert [piece for piece, one in zip(pieces[1:], began[1:]) if one] == [p for p in pieces[1:] if p[0] in "Ġ,"]
    # A byte in the middle of a character begins no word.
    tokenizer = train_tokenizer(["naïve 영화"] * 3, "bpe", 265)
    ids = tokenizer.tokenize(tf.constant("naïve 영화, 영")).numpy()
    began = [tokenizer.id_to_token(int(i)) for i in ids[pipelines.starts_word(tokenizer)[ids]]]
    assert len(ids) > 9 and [token[0] for token in began] == ["Ġ", ",", "Ġ"]
    with pytest.raises(ValueError, match="Whole words need a tokenizer of word pieces or byte pairs"):
        pipelines.starts_word(LETTERS)


def test_specials_are_never_hidden_and_no_place_twice():
    specials = [PIECES.pad_token_id, PIECES.start_token_id, PIECES.end_token_id]
    for inputs, labels, weights in numpy(masked(7).take(41)):
        assert not np.isin(labels["masked_lm"][weights["masked_lm"] > 0], specials).any()
        for places, real in zip(inputs["mask_positions"], weights["masked_lm"]):
            assert 1 <= real.sum() == len(set(places[real > 0]))


def test_masks_are_fresh_in_each_epoch():
    places = [tuple(inputs["mask_positions"][0]) for inputs, *_ in numpy(masked(7, 1, triples=TRIPLES[-1:]).take(17))]
    assert len(set(places)) > 5


def test_masks_of_a_row_do_not_depend_on_the_batch_it_is_in():
    def rows(tokens_per_batch):
        return sorted(
            tuple(row[row > 0]) for inputs, *_ in numpy(masked(None, tokens_per_batch)) for row in inputs["token_ids"]
        )

    assert rows(37) == rows(997)


def test_text_of_specials_alone_has_nothing_to_hide_and_is_no_error():
    ((inputs, labels, weights),) = numpy(masked(triples=[("", "", 1)]))
    assert inputs["token_ids"].tolist() == [[PIECES.start_token_id, PIECES.end_token_id, PIECES.end_token_id]]
    assert not weights["masked_lm"].any() and not labels["masked_lm"].any()


def test_segments_are_zero_up_to_the_first_separator_and_one_behind():
    for row, kinds in zip(originals()["token_ids"].to_list(), originals()["segment_ids"].to_list()):
        first = row.index(PIECES.end_token_id)
        assert kinds == [0] * (first + 1) + [1] * (len(row) - first - 1)
        assert row[0] == PIECES.start_token_id and row[-1] == PIECES.end_token_id
        assert row.count(PIECES.end_token_id) == 2
        assert len(row) <= LIMIT


# ---- Sentence pairs and classes ------------------------------------------------------------------------------------

DOCUMENTS = [[f"d{d} s{s}" for s in range(1 + d % 5)] for d in range(23)]


def test_half_of_the_sentence_pairs_are_neighbours_and_half_of_two_documents():
    pairs = pipelines.next_sentence_pairs(DOCUMENTS, 2003, 3)
    assert len(pairs) == 2003
    assert abs(sum(follows for *_, follows in pairs) / 2003 - 0.5) < 0.05
    for first, second, follows in pairs:
        (d, s), (other, t) = ((int(word[1:]) for word in text.split()) for text in (first, second))
        assert (other == d and t == s + 1) if follows else other != d


def test_sentence_pairs_come_from_all_documents_and_are_fixed_by_the_seed():
    pairs = pipelines.next_sentence_pairs(DOCUMENTS, 2003, 3)
    assert {second for _, second, follows in pairs if not follows} == {line for text in DOCUMENTS for line in text}
    assert {first for first, *_ in pairs} == {line for text in DOCUMENTS for line in text[:-1]}
    assert (
        pairs == pipelines.next_sentence_pairs(DOCUMENTS, 2003, 3) != pipelines.next_sentence_pairs(DOCUMENTS, 2003, 5)
    )


def test_every_labelled_text_is_seen_once_with_its_own_label():
    seen = Counter()
    for inputs, labels, weights in numpy(labelled()):
        assert not inputs["segment_ids"].any() and weights.all()
        seen.update((tuple(row[row > 0]), int(label)) for row, label in zip(inputs["token_ids"], labels))
    rows = pipelines.segments((pipelines.token_rows(PIECES, LINES, LIMIT - 2),), PIECES)["token_ids"].to_list()
    assert seen == Counter((tuple(row), LABELS.index(label)) for row, (_, label) in zip(rows, LABELLED))


def test_more_lines_than_a_chunk_tokenize_as_line_by_line(monkeypatch):
    whole = pipelines.token_rows(TOKENIZER, LINES, LIMIT).to_list()
    monkeypatch.setattr(pipelines, "CHUNK", 17)
    assert pipelines.token_rows(TOKENIZER, iter(LINES), LIMIT).to_list() == whole


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pipelines.token_rows(TOKENIZER, [], 7), "token_rows needs one line or more, got 0"),
        (lambda: packed(text=TEXT[:BLOCK]), "packed_text needs more than block=29 tokens, got 29"),
        (
            lambda: pipelines.places_of(["b", "c"], ["a", "b"]),
            "The label 'c' has no example to train on: those that have are a, b.",
        ),
        (lambda: pipelines.next_sentence_pairs([["a", "b"]], 3, 3), "needs two documents .*, got 1 documents"),
        (lambda: pipelines.next_sentence_pairs([["a"], ["b"]], 3, 3), "one of two sentences, got 2 documents"),
    ],
)
def test_an_error_names_the_rule_and_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
