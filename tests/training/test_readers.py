"""Each reader against a file written by hand, and files larger than what is kept of them."""

import gzip
import importlib.machinery
import json
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import tensorflow as tf

from training import readers
from training.readers import READERS, Choice, Files, Question, in_turn

CONTENT = {
    "text-lines": ("a\r\n\n b\nc", ["a", " b", "c"]),
    "text-documents": ("a\nb\n\n\nc\n", [["a", "b"], ["c"]]),
    "text-running": ("a\n\nb", ["a\n\nb"]),
    "tsv-pairs": ("a\tb\tx\n\nc \td\n", [("a", "b"), ("c ", "d")]),
    "tsv-labelled": ("a\tb\n", [("a", "b")]),
    "jsonl-lines": ('{"text": "é"}\n\n{"text": "b", "x": 1}', ["é", "b"]),
    "jsonl-pairs": ('{"target": "b", "source": "a"}', [("a", "b")]),
    "jsonl-labelled": ('{"text": "a", "label": 1}', [("a", "1")]),
    "tsv-couples": ("a\tb\tyes\n", [("a", "b", "yes")]),
    "tsv-scored": ("a\tb\t2.5\n", [("a", "b", "2.5")]),
    "jsonl-choices": ('{"prompt": "a", "choices": ["b", "c"], "label": 1}', [Choice("a", ["b", "c"], 1)]),
    "conll": (
        "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\nPeter NNP B-PER\n",
        [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter"], ["B-PER"])],
    ),
    "squad": (
        json.dumps(
            {"data": [{"paragraphs": [{"context": "A b.", "qas": [
                {"id": 7, "question": "Who?", "answers": [{"text": "b", "answer_start": 2}]}
            ]}]}]}
        ),
        [Question("7", "Who?", "A b.", [("b", 2)])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_reader_gives_what_the_file_says(name, ending, tmp_path):
    content, expected = CONTENT[name]
    path = tmp_path / f"file{ending}"
    path.write_bytes(gzip.compress(content.encode()) if ending else content.encode())
    assert list(Files(name, str(path))) == expected


def test_every_reader_is_tested_here():
    assert {name for name in READERS if not name.startswith("tfds")} == set(CONTENT)


@pytest.mark.parametrize(
    ("name", "content", "columns", "expected"),
    [
        ("tsv-pairs", "a\tb\tc\n", "2,0", [("c", "a")]),
        ("tsv-pairs", "id\tde\ten\n1\tx\ty\n", "en, de", [("y", "x")]),
        ("jsonl-pairs", '{"translation": {"de": "x", "en": "y"}}', "translation.de,translation.en", [("x", "y")]),
        ("conll", "a\tX\tY\n", "0,1", [(["a"], ["X"])]),
    ],
)
def test_columns_are_chosen_by_number_or_by_name(name, content, columns, expected, tmp_path):
    (tmp_path / "file").write_text(content)
    assert list(Files(name, str(tmp_path / "file"), columns)) == expected


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("tsv-pairs", "a\tb\nc\n", None, r"file, line 2 needs column 1, got 1 columns: 'c'"),
        ("tsv-pairs", "a\tb\n", "a,c", r"file has no column 'c' in its first line: \['a', 'b'\]"),
        ("jsonl-lines", '{"text": 1}\n[', None, r"file, line 2 needs an object with \['text'\], got '\['"),
        ("jsonl-lines", '{"x": 1}', None, r"file, line 1 needs an object with \['text'\].*: no 'text'"),
        ("jsonl-lines", "7", None, r"file, line 1 needs an object with \['text'\], got '7'"),
        ("conll", "a B\nc\n", None, r"file, line 2 needs a token and a label in columns 0 and -1, got 'c'"),
        ("conll", "a B\n", "0,2", r"file, line 1 needs a token and a label in columns 0 and 2, got 'a B'"),
        ("conll", "a B\n", "word,tag", r"conll needs the numbers of two columns, got 'word,tag'"),
        ("tsv-pairs", "a\tb\n", "0", r"tsv-pairs takes 2 columns, as '0,1', got columns='0'"),
        ("jsonl-choices", '{"prompt": "a", "choices": ["b"], "label": -1}', None, r"file, line 1 needs an object with"),
        (
            "jsonl-choices",
            '{"prompt": "a", "choices": ["b"], "label": 1}',
            None,
            "1 is not the number, from 0, of one of 1 c",
        ),
        ("jsonl-choices", '{"prompt": "a", "choices": "bc", "label": 1}', None, r"file, line 1 needs an object with"),
        ("jsonl-choices", '{"prompt": null, "choices": ["b"], "label": 0}', None, r"file, line 1 needs an object with"),
        ("jsonl-choices", '{"prompt": "a", "choices": [null], "label": 0}', None, r"file, line 1 needs an object with"),
        ("jsonl-choices", '{"prompt": "a", "choices": ["b"], "label": 0.9}', None, r"line 1 needs an object with"),
        ("jsonl-choices", '{"prompt": "a", "choices": ["b"], "label": false}', None, r"line 1 needs an object with"),
        ("jsonl-labelled", '{"text": null, "label": 1}', None, r"file, line 1 needs an object .*: text is NoneType"),
        ("jsonl-labelled", '{"text": {"en": "a"}, "label": 1}', None, r"file, line 1 needs an object with"),
        ("tsv-scored", "a\tb\t1\na\tc\tnan\n", None, r"file needs a number in column 2, got 'nan' beside 'a'"),
        ("tsv-scored", "a\tb\thigh\n", None, r"file needs a number in column 2, got 'high' beside 'a'"),
        ("squad", "{", None, r"file is not in SQuAD's form: JSONDecodeError"),
        ("squad", '{"data": [{}]}', None, r"file is not in SQuAD's form: KeyError 'paragraphs'"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file_and_line(name, content, columns, message, tmp_path):
    (tmp_path / "file").write_text(content)
    with pytest.raises(ValueError, match=message):
        list(Files(name, str(tmp_path / "file"), columns))


@pytest.mark.parametrize("name", ["text-lines", "text-running", "squad"])
def test_a_gzip_file_that_breaks_off_or_is_none_is_named(name, tmp_path):
    whole = gzip.compress(b'{"data": []}' * 997)
    for content in (whole[:-9], whole[:11] + b"\xff" * 9 + whole[20:], b"plain"):
        (tmp_path / "a.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.gz is no whole gzip file: "):
            list(Files(name, str(tmp_path / "a.gz")))


def test_a_missing_file_and_an_empty_one_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The corpus tsv-pairs needs the file .*absent"):
        Files("tsv-pairs", str(tmp_path / "absent"))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match=r"There is no example in .*empty"):
        next(Files("text-lines", str(tmp_path / "empty")).pools(7, 3))


@pytest.mark.parametrize(
    ("name", "columns"), [("tsv-labelled", "text,label"), ("jsonl-labelled", None), ("conll", None)]
)
def test_a_byte_order_mark_is_no_part_of_the_first_line(name, columns, tmp_path):
    content = {"tsv-labelled": "text\tlabel\na\tO\n", "jsonl-labelled": '{"text": "a", "label": "O"}', "conll": "a O\n"}
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf" + content[name].encode())
    assert list(Files(name, str(tmp_path / "file"), columns)) == [(["a"], ["O"]) if name == "conll" else ("a", "O")]


def test_bytes_that_are_no_text_become_the_replacement_character(tmp_path):
    (tmp_path / "file").write_bytes(b"a\xffb\n")
    assert list(Files("text-lines", str(tmp_path / "file"))) == ["a\ufffdb"]


def test_half_a_character_in_json_becomes_the_replacement_character_and_a_whole_one_stays(tmp_path):
    (tmp_path / "file").write_text('{"text": "a\\ud83d"}\n{"text": "\\ud83d\\ude00"}\n')
    assert list(Files("jsonl-lines", str(tmp_path / "file"))) == ["a\ufffd", "\U0001f600"]


def test_a_no_break_space_is_part_of_a_token(tmp_path):
    (tmp_path / "file").write_text("10\u00a0000  B-NUM\n", "utf-8")
    assert list(Files("conll", str(tmp_path / "file"))) == [(["10\u00a0000"], ["B-NUM"])]


def test_a_path_with_the_signs_of_a_pattern_is_a_path_and_folders_are_no_files(tmp_path):
    (tmp_path / "run[1]" / "more").mkdir(parents=True)
    (tmp_path / "run[1]" / "a.txt").write_text("a\n")
    assert list(Files("text-lines", str(tmp_path / "run[1]" / "a.txt"))) == ["a"]
    assert list(Files("text-lines", str(tmp_path / "run[[]1]" / "*"))) == ["a"]


# ---- Streams -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """Seven files of 0 to 12 lines."""
    for i in range(7):
        (tmp_path / f"shard-{i}.txt").write_text("".join(f"{i} {j}\n" for j in range(2 * i)))
    return Files("text-lines", str(tmp_path / "shard-*.txt"))


def test_shards_are_read_in_turn_each_example_once(shards):
    pools = list(shards.pools(5, None))
    assert [len(pool) for pool in pools] == [5] * 7 + [7], "few at the end join those before"
    assert sorted(line for pool in pools for line in pool) == sorted(shards)
    assert len({line.split()[0] for line in pools[1]}) > 2


def test_a_seed_gives_another_order_of_shards_in_each_pass_and_the_same_again(shards):
    passes = []
    for seed in (3, 3, 5):
        pools = shards.pools(42, seed)
        passes.append([next(pools), next(pools)])
    assert passes[0] == passes[1] != passes[2]
    assert passes[0][0] != passes[0][1] and sorted(passes[0][0]) == sorted(passes[0][1]) == sorted(shards)


def test_a_stream_changed_gives_its_pools_changed(shards):
    assert next(shards.map(lambda pool: [len(pool)]).map(lambda pool: [*pool, 3]).pools(5, None)) == [5, 3]


def test_of_files_no_more_is_read_than_what_is_asked_for(monkeypatch):
    read, opened = [], []

    def numbers(path, columns):
        opened.append(path)
        for i in range(1000):
            read.append(i)
            yield i

    monkeypatch.setitem(READERS, "text-lines", readers.Reader("lines", numbers))
    files = Files("tfds-lines", "a")
    files.reader, files.paths = READERS["text-lines"], [f"{i}" for i in range(11)]
    pools = files.pools(8, None)
    assert next(pools) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (len(read), len(opened)) == (16, readers.OPEN_FILES), "the next pool is looked at: few would join"
    assert Counter(in_turn(map(iter, ["ab", "", "c"] * 3))) == Counter("abc" * 3)


# ---- TensorFlow Datasets -------------------------------------------------------------------------------------------


def test_without_tensorflow_datasets_the_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package tensorflow-datasets, which is not installed"):
        list(Files("tfds-lines", "imdb_reviews:train"))


def test_a_dataset_is_asked_for_by_name_and_split(monkeypatch):
    asked = []

    def load(name, split):
        asked.append((name, split))
        return tf.data.Dataset.from_tensor_slices({"text": ["a", "é"], "label": [0, 1]})

    monkeypatch.setattr("importlib.util.find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", SimpleNamespace(load=load))
    assert list(Files("tfds-labelled", "imdb_reviews/plain:test[:1%]")) == [("a", "0"), ("é", "1")]
    assert list(Files("tfds-lines", "imdb_reviews")) == ["a", "é"]
    assert asked == [("imdb_reviews/plain", "test[:1%]"), ("imdb_reviews", "train")]
    with pytest.raises(
        ValueError, match=r"The dataset imdb_reviews has no 'sentence'; its fields are \['label', 'text'\]"
    ):
        list(Files("tfds-lines", "imdb_reviews", "sentence"))
