"""training.corpus_beam on Beam's local runner, in the environment of `make beam`."""

import gzip

import pytest

from training import corpus_beam, readers

LINES = [f"line {i} of the corpus" for i in range(211)]


@pytest.fixture
def raw(tmp_path):
    """Two files with lines in common, one of them compressed; é in both of its forms."""
    folder = tmp_path / "raw"
    folder.mkdir()
    first = "\n".join([*LINES[:150], "", "caf\u00e9"])
    (folder / "a.txt").write_text(first, "utf-8")
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\r\n".join([*LINES[100:], "  cafe\u0301 ", ""]))
    return folder


def corpus(tmp_path, reader, columns=None):
    found = {split: sorted((tmp_path / "out").glob(f"{split}-*")) for split in corpus_beam.SPLITS}
    return found, {
        split: [one for path in paths for one in reader(str(path), columns)] for split, paths in found.items()
    }


def prepare(tmp_path, raw, *further):
    words = ["--input", f"{raw}/*", "--output", str(tmp_path / "out"), "--shards", "3", *further]
    assert corpus_beam.main(words) == 0


def test_each_line_is_once_in_one_split_and_the_sharded_reader_reads_it(tmp_path, raw):
    prepare(tmp_path, raw, "--validation", "0.2", "--test", "0.1")
    files, texts = corpus(tmp_path, readers.READERS["jsonl-lines"].read, ["text"])
    assert [len(files[split]) for split in corpus_beam.SPLITS] == [3, 1, 1]
    assert sorted(text for split in texts.values() for text in split) == sorted([*LINES, "caf\u00e9"])
    for index, split in enumerate(corpus_beam.SPLITS):
        assert {corpus_beam.place(text, 0.2, 0.1) for text in texts[split]} == {index}
    streamed = readers.Files("jsonl-lines", str(tmp_path / "out" / "train-*.jsonl.gz"))
    assert sorted(streamed) == sorted(texts["train"])


def test_documents_keep_their_lines_together_and_in_order(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    documents = [[f"document {i}", *(f"line {j}" for j in range(i % 5))] for i in range(37)]
    text = "\n\n\n".join("\n".join(document) for document in documents)
    for name in ("a", "again"):
        (raw / name).write_text(text)
    prepare(tmp_path, raw, "--kind", "documents", "--validation", "0.3")
    _, found = corpus(tmp_path, readers.READERS["text-documents"].read)
    assert sorted(one for split in found.values() for one in split) == sorted(documents)
    assert found["validation"] and found["train"]


def test_a_pattern_without_files_is_an_error_on_one_line(tmp_path, capsys):
    assert corpus_beam.main(["--input", f"{tmp_path}/none-*", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
