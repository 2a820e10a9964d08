"""Text beyond one machine to a corpus, as an Apache Beam pipeline: `python -m training.corpus_beam`.

Reads text files, normalises them (NFC), drops repetitions, splits by a checksum and writes shards that recipes read:
of lines `jsonl-lines`, of documents `text-documents`. By default it runs on this machine; what follows the options of
its own goes to Beam, as `--runner=FlinkRunner`. Paths may be those of any file system that Beam knows.

apache-beam holds protobuf below 7, which this project's other packages are past: it needs an environment of its own.
"""

import argparse
import hashlib
import importlib.util
import itertools
import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

SPLITS = ("train", "validation", "test")
KINDS = {"lines": ".jsonl.gz", "documents": ".txt.gz"}


def parser() -> argparse.ArgumentParser:
    """The options that are not Beam's."""
    made = argparse.ArgumentParser(prog="python -m training.corpus_beam", description="Text files to a corpus.")
    made.add_argument("--input", required=True, metavar="GLOB", help="text files, .gz and .bz2 among them unpacked")
    made.add_argument("--output", required=True, metavar="DIR", help="for train-00000-of-00008.jsonl.gz and so on")
    made.add_argument("--kind", choices=tuple(KINDS), default="lines", help="an example: a line, or a block of lines")
    made.add_argument("--shards", type=int, default=8, help="files of train; validation and test have one each")
    made.add_argument("--validation", type=float, default=0.01, metavar="SHARE", help="of all examples")
    made.add_argument("--test", type=float, default=0.01, metavar="SHARE", help="of all examples")
    return made


def normalised(text: str) -> str:
    """One form for what looks the same (Unicode's NFC), without white space around lines."""
    return "\n".join(line.strip() for line in unicodedata.normalize("NFC", text).split("\n"))


def examples(lines: Iterable[bytes], kind: str) -> Iterator[str]:
    """The normalised lines of a file, or its blocks between blank lines; what is no UTF-8 becomes U+FFFD."""
    texts = (normalised(line.decode("utf-8", "replace").rstrip("\r\n")) for line in lines)
    if kind == "lines":
        yield from (text for text in texts if text)
    else:
        yield from ("\n".join(block) for full, block in itertools.groupby(texts, key=bool) if full)


def place(text: str, validation: float, test: float) -> int:
    """Which of SPLITS a text is in: by its SHA-256, so the same in every run, whatever else is in the corpus."""
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return 1 if drawn < validation else 2 if drawn < validation + test else 0


def written(text: str, kind: str) -> str:
    """An example as it stands in its file."""
    return json.dumps({"text": text}, ensure_ascii=False) if kind == "lines" else text + "\n"


def build(pipeline: Any, options: argparse.Namespace) -> None:
    """Puts the steps into a pipeline."""
    import apache_beam as beam
    from apache_beam.io import fileio

    kind, shares = options.kind, (options.validation, options.test)

    def read(file: Any) -> Iterator[str]:
        with file.open() as lines:  # one worker reads a file, for a document's lines must stay together
            yield from examples(iter(lines.readline, b""), kind)  # Beam's compressed files have no other way

    texts = (
        pipeline
        | "files" >> fileio.MatchFiles(options.input, fileio.EmptyMatchTreatment.DISALLOW)
        | "open" >> fileio.ReadMatches()
        | "spread" >> beam.Reshuffle()
        | "read" >> beam.FlatMap(read)
        | "once" >> beam.Distinct()
    )
    parts = texts | "split" >> beam.Partition(lambda text, _: place(text, *shares), len(SPLITS))
    for name, part in zip(SPLITS, parts, strict=True):
        shards = options.shards if name == "train" else 1
        path = f"{options.output.rstrip('/')}/{name}"
        _ = (
            part
            | f"{name} as text" >> beam.Map(written, kind)
            | f"write {name}" >> beam.io.WriteToText(path, file_name_suffix=KINDS[kind], num_shards=shards)
        )


def check(options: argparse.Namespace) -> None:
    """Raises ValueError where an option breaks a rule."""
    if options.shards < 1:
        raise ValueError(f"--shards needs a number >= 1, got {options.shards}.")
    if not (options.validation >= 0 and options.test >= 0 and options.validation + options.test < 1):
        raise ValueError(
            "--validation and --test need shares >= 0 that leave some for train, "
            f"got {options.validation} and {options.test}."
        )
    if importlib.util.find_spec("apache_beam") is None:
        raise ValueError(
            "training.corpus_beam needs apache-beam, which is not installed; in an environment of its own, since it "
            "holds protobuf below 7: pip install apache-beam."
        )


def main(arguments: list[str] | None = None) -> int:
    """Prepares a corpus; the exit code."""
    options, further = parser().parse_known_args(arguments)
    try:
        check(options)
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        with beam.Pipeline(options=PipelineOptions(further)) as pipeline:
            build(pipeline, options)
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
