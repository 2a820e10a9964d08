"""The table is the contract's."""

import subprocess
import sys

from serving.answers import Classifier, LanguageModel, MaskedLanguageModel, Translator
from serving.signatures import INPUT_DTYPES, INPUT_RANKS, OPTION_DEFAULTS, SIGNATURES
from serving.task_answers import ChoicePicker, PairClassifier, PairScorer, SpanFinder, TokenTagger

PLAIN = (Translator, LanguageModel, MaskedLanguageModel, Classifier)
TASKS = (TokenTagger, SpanFinder, ChoicePicker, PairClassifier, PairScorer)


def test_every_default_signature_has_an_alias_and_one_input_and_one_output_where_a_text_is_answered_by_one_tensor():
    for kind, rows in SIGNATURES.items():
        default = rows["serving_default"]
        assert rows[default.function] is default
        assert (len(default.inputs) == len(default.outputs) == 1) == (kind in [cls.kind for cls in PLAIN])


def test_every_function_of_the_table_is_a_method_of_its_kind():
    kinds = {cls.kind: cls for cls in PLAIN + TASKS}
    assert kinds.keys() == SIGNATURES.keys()
    for kind, rows in SIGNATURES.items():
        assert all(callable(getattr(kinds[kind], row.function)) for row in rows.values())


def test_every_option_has_a_dtype_and_a_default():
    assert INPUT_DTYPES.keys() == OPTION_DEFAULTS.keys()
    used = {name for rows in SIGNATURES.values() for row in rows.values() for name in row.inputs}
    texts = {"text", "translation", "first", "second", "question", "context", "prompt", "choices", "inputs"}
    assert used - texts == OPTION_DEFAULTS.keys()
    assert used > INPUT_RANKS.keys()


def test_importing_the_table_imports_nothing_heavy():
    code = "import sys, serving.signatures; print({'tensorflow', 'keras', 'numpy', 'grpc'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
