"""The readers: of the built-in corpus, and of each file of the real data."""

import pytest

from training import corpora, grammar
from training.corpora import CORPORA, DATA, SPLITS
from training.readers import Files
from training.recipes import Recipe

FILES = {
    "multi30k": "multi30k/train.de.gz",
    "multi30k-words": "multi30k/train.de.gz",
    "tinyshakespeare": "tinyshakespeare/input.txt",
    "nsmc": "nsmc/ratings_train.txt.gz",
    "nsmc-unlabelled": "nsmc/unlabelled.txt.gz",
    "wnut17": "wnut17/wnut17train.conll",
    "xquad": "xquad/xquad.en.json",
    "korquad": "korquad/KorQuAD_v1.0_dev.json.gz",
    "copa": "copa/copa-dev.xml",
    "korsts": "korsts/sts-train.tsv",
}
BUILT_IN = [name for name in CORPORA if name not in FILES]


@pytest.fixture
def read(needs_data):
    """Reads a corpus, or skips where its files are absent."""

    def read(name, split, count=None, seed=0):
        needs_data(FILES[name])
        return CORPORA[name].read(split, count, seed)

    return read


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_corpus_gives_the_number_asked_for_and_the_same_again(name):
    first, again, other = (CORPORA[name].read("train", 31, seed) for seed in (3, 3, 5))
    assert len(first) == 31
    assert first == again != other


def test_the_lines_are_the_english_side_of_the_pairs():
    pairs = CORPORA["grammar-pairs"].read("test", 31, 7)
    assert CORPORA["grammar-lines"].read("test", 31, 7) == [english for english, _ in pairs]


@pytest.mark.parametrize("name", ["grammar-pairs", "grammar-labelled", "grammar-documents"])
def test_splits_of_a_built_in_corpus_share_no_sentence(name):
    def sentences(split):
        examples = CORPORA[name].read(split, 499, 0)
        return {line for one in examples for line in (one if name == "grammar-documents" else one[:1])}

    seen = [sentences(split) for split in SPLITS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert all(grammar.split_of(line) == split for split, lines in zip(SPLITS, seen) for line in lines)


def test_all_of_the_built_in_validation_and_test_split_is_a_set_number():
    assert [len(CORPORA["grammar-lines"].read(split, None, 0)) for split in SPLITS[1:]] == [500, 1000]


def test_the_corpora_with_splits_of_their_own_have_the_published_counts(read):
    assert [len(read("wnut17", split)) for split in SPLITS] == [3394, 1009, 1287]
    assert [len(read("korsts", split)) for split in SPLITS] == [5749, 1500, 1379]
    assert all(len(words) == len(labels) for words, labels in read("wnut17", "test"))
    assert {label[:2] for _, labels in read("wnut17", "train") for label in labels} == {"O", "B-", "I-"}
    assert all(0 <= float(score) <= 5 for *_, score in read("korsts", "train"))


@pytest.mark.parametrize(("name", "count"), [("xquad", 1190), ("korquad", 5774), ("copa", 500)])
def test_what_has_no_split_is_split_by_articles_of_which_none_is_in_two(name, count, read):
    parts = [read(name, split) for split in SPLITS]
    assert sum(map(len, parts)) == count and 0.55 < len(parts[0]) / count < 0.85
    texts = [{one.prompt if name == "copa" else one.context for one in part} for part in parts]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


def test_an_answer_stands_in_its_context_where_it_is_said_to(read):
    for name in ("xquad", "korquad"):
        for one in read(name, "test", 101):
            assert one.answers and all(one.context[at : at + len(text)] == text for text, at in one.answers)


def test_a_choice_is_asked_with_the_question_of_its_item(read):
    (cook,) = [one for one in read("copa", "train") + read("copa", "test") + read("copa", "validation")
               if one.prompt.startswith("My body cast a shadow over the grass.")]  # fmt: skip
    assert cook.prompt.endswith("What was the cause of this?")
    assert cook.choices[cook.label] == "The sun was rising."


def test_multi30k_has_the_published_counts(read):
    assert [len(read("multi30k", split)) for split in SPLITS] == [29_000, 1_014, 1_000]
    assert read("multi30k", "test")[0] == (
        "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",
        "A man in an orange hat starring at something.",
    )


def test_the_words_of_multi30k_are_its_lines_in_lower_case_with_blanks_between_words(read):
    plain, words = (read(name, "test") for name in ("multi30k", "multi30k-words"))
    assert words[0] == (
        "ein mann mit einem orangefarbenen hut , der etwas anstarrt .",
        "a man in an orange hat starring at something .",
    )
    assert read("multi30k-words", "test", 17, 3) == [
        words[plain.index(pair)] for pair in read("multi30k", "test", 17, 3)
    ]
    for side, language in enumerate(("de", "en")):  # a blank before a quotation mark has two ways back
        lines = corpora.from_moses_words(language, [pair[side] for pair in words])
        assert sum(line == pair[side].lower() for line, pair in zip(lines, plain)) > 990


def test_multi30k_splits_are_disjoint(read):
    train, validation, test = (set(read("multi30k", split)) for split in SPLITS)
    assert not (train & validation or train & test or validation & test)


def test_a_count_draws_examples_of_the_whole_file_under_the_seed(read):
    some = read("multi30k", "test", 17, 3)
    assert len(set(some)) == 17
    assert set(some) < set(read("multi30k", "test"))
    assert some == read("multi30k", "test", 17, 3) != read("multi30k", "test", 17, 5)


def test_tinyshakespeare_is_cut_at_nine_tenths(read):
    train, rest = read("tinyshakespeare", "train"), read("tinyshakespeare", "test")
    whole = corpora.data_file("tinyshakespeare/input.txt").read_bytes().decode()
    assert (len(train), len(whole)) == (1_003_854, 1_115_394)
    assert train + rest == whole
    assert read("tinyshakespeare", "validation") == rest
    assert read("tinyshakespeare", "train", 31) == train[:31]


def test_nsmc_has_its_reviews_once_and_both_labels(read):
    train, validation, test = (read("nsmc", split) for split in SPLITS)
    assert len(validation) == 5_000
    # Of 150,000 and 25,000 rows a few have no text.
    assert 149_990 <= len(train) + len(validation) < 150_000
    assert 24_990 <= len(test) <= 25_000
    for split in (train, validation, test):
        assert 0.45 < sum(label == "positive" for _, label in split) / len(split) < 0.55
        assert {label for _, label in split} == {"positive", "negative"}


def test_nsmc_splits_are_the_rows_of_the_file_once_each(read):
    read_back = [text for split in SPLITS[:2] for text, _ in read("nsmc", split)]
    rows = [line.split("\t")[1] for line in corpora._lines("nsmc/ratings_train.txt.gz")[1:]]
    assert sorted(read_back) == sorted(text for text in rows if text)


def test_unlabelled_reviews_are_all_there_by_film(read):
    splits = [read("nsmc-unlabelled", split) for split in SPLITS]
    assert sum(len(film) for split in splits for film in split) == 639_270
    films = sum(map(len, splits))
    assert all(abs(len(split) - films / 100) <= 1 for split in splits[1:])
    assert not {id(film) for film in splits[1]} & {id(film) for film in splits[2]}
    assert all(film and all(film) for split in splits for film in split)


def test_an_absent_file_is_named_with_the_variable_that_names_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA, str(tmp_path))
    for name, file in FILES.items():
        with pytest.raises(FileNotFoundError) as caught:
            CORPORA[name].read("train", None, 0)
        assert file in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        assert DATA in str(caught.value)


def test_without_the_variable_the_folder_is_data(tmp_path, monkeypatch):
    monkeypatch.delenv(DATA, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "here.txt").write_text("x")
    assert corpora.data_file("here.txt").read_text() == "x"


# ---- Files of a user's own -----------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A recipe of three files of 17 pairs."""
    for split in SPLITS:
        (tmp_path / f"{split}.tsv").write_text("".join(f"{split} {i}\tw{i}\n" for i in range(17)))
    files = {split: str(tmp_path / f"{split}.tsv") for split in SPLITS}
    return Recipe("transformer", "tsv-pairs", files=files)


def test_files_of_ones_own_are_a_corpus_with_its_splits(own):
    kind, read = corpora.corpus_of(own)
    assert (kind, corpora.kind_of("tsv-pairs")) == ("pairs", "pairs")
    for split in SPLITS:
        assert read(split, None, 3) == [(f"{split} {i}", f"w{i}") for i in range(17)]
        assert read(split, 5, 3) == read(split, None, 3)[:5]
    assert corpora.corpus_of(own.replace(corpus="grammar-pairs", files={})) is CORPORA["grammar-pairs"]


def test_a_split_without_an_example_is_named(own, tmp_path):
    (tmp_path / "empty").write_text("\n")
    recipe = own.replace(**{"files.validation": str(tmp_path / "empty")})
    with pytest.raises(ValueError, match=r"There is no example in .*empty, the files of validation"):
        corpora.corpus_of(recipe).read("validation", None, 0)


def test_a_stream_is_of_the_training_files_alone(own):
    read = corpora.corpus_of(own.replace(stream=True, columns="1,0")).read
    assert list(read("train", 5, 3)) == [(f"w{i}", f"train {i}") for i in range(17)]
    assert isinstance(read("train", 5, 3), Files) and isinstance(read("validation", 5, 3), list)


def test_a_running_text_of_ones_own_is_cut_to_characters(own):
    recipe = own.replace(architecture="gpt", corpus="text-running")
    assert corpora.corpus_of(recipe).read("test", 11, 0) == "test 0\tw0\nt"
