"""Which operation came with which TensorFlow, for models that go to an older server.

Read from the Python wrappers (`gen_*_ops.py`) of the packages 2.16.2, 2.17.1, 2.18.1, 2.19.1, 2.20.0 and 2.21.0;
TF-Text's from what importing tensorflow-text 2.21.1 adds to TensorFlow's registry. It is data: no operation is asked.
"""

OLDEST, NEWEST = (2, 16), (2, 21)

_GRADIENTS = "XlaSparseDenseMatmulGradWith{}AndStaticBufferSize"
_COMBINERS = "XlaSparseDenseMatmulCustomCombinerOnTcGradWith{}CsrInput"

# (major, minor) -> the operations that were not in the release before it.
NEW_IN = {
    (2, 17): {
        "ConvertToListOfSparseCoreCooTensors",
        "ConvertToSparseCoreCsrWrappedCooTensor",
        "GetStatsFromListOfSparseCoreCooTensors",
        "GlobalShuffleDataset",
        "IndexFlatMapDataset",
        "IteratorGetModelProto",
        "SortListOfSparseCoreCooTensors",
        "WeightedFlatMapDataset",
        "XlaSparseDenseMatmulWithStaticBufferSize",
        *(_GRADIENTS.format(name) for name in ("Adagrad", "AdagradMomentum", "Adam", "Ftrl", "Sgd")),
    },
    (2, 18): {"CheckPinned", "XlaSparseDenseMatmulGradWithCsrInput"},
    (2, 20): {
        "DecodeWebP",
        "TPUDummyInput",
        "XlaSparseDenseMatmulCustomCombinerOnTcWithCsrInput",
        *(_COMBINERS.format(name) for name in ("AdagradAnd", "AdagradMomentumAnd", "AdamAnd", "FtrlAnd", "SgdAnd", "")),
    },
    (2, 21): {"DecodeJxl"},
}

# TF-Text, which the stock server links in.
TEXT = {
    "CaseFoldUTF8",
    "ConstrainedSequence",
    "FastBertNormalize",
    "FastWordpieceTokenizeWithOffsets",
    "FindSourceOffsets",
    "MaxSpanningTree",
    "NormalizeUTF8",
    "NormalizeUTF8WithOffsetsMap",
    "PhraseTokenize",
    "RegexSplitWithOffsets",
    "RougeL",
    "SentenceFragments",
    "SentenceFragmentsV2",
    "SentencepieceDetokenizeOp",
    "SentencepieceIdToStringOp",
    "SentencepieceOp",
    "SentencepieceStringToIdOp",
    "SentencepieceTokenizeOp",
    "SentencepieceTokenizeWithOffsetsOp",
    "SentencepieceVocabSizeOp",
    "SplitMergeTokenizeWithOffsets",
    "TFText>BoiseTagsToOffsets",
    "TFText>ByteSplitByOffsets",
    "TFText>ByteSplitWithOffsets",
    "TFText>FastSentencepieceDetokenize",
    "TFText>FastSentencepieceTokenize",
    "TFText>FastWordpieceDetokenize",
    "TFText>NgramsStringJoin",
    "TFText>OffsetsToBoiseTags",
    "TFText>PhraseDetokenize",
    "TFText>RoundRobinGenerateMasks",
    "TFText>RoundRobinTrim",
    "TFText>Utf8Binarize",
    "TFText>WhitespaceTokenizeWithOffsetsV2",
    "TokenizerFromLogits",
    "UnicodeScriptTokenizeWithOffsets",
    "WhitespaceTokenizeWithOffsets",
    "WordpieceTokenizeWithOffsets",
}


def parse_version(text: str) -> tuple[int, int]:
    """(2, 19) of "2.19" or "2.19.1". Raises: ValueError where it is none, or one that nothing is known of."""
    parts = text.split(".")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        raise ValueError(f"a server's version is MAJOR.MINOR, such as 2.19, got {text!r}.")
    version = (int(parts[0]), int(parts[1]))
    if not OLDEST <= version <= NEWEST:
        known = " to ".join(f"{major}.{minor}" for major, minor in (OLDEST, NEWEST))
        raise ValueError(f"which operations a server has is known for {known}, got {text!r}.")
    return version


def introduced(operation: str) -> tuple[int, int] | None:
    """The release that an operation came with; None: before `OLDEST`, or unknown."""
    return next((version for version, names in NEW_IN.items() if operation in names), None)
