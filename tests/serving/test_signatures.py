"""The table is the contract's."""

import subprocess
import sys

from serving.answers import Classifier, LanguageModel, MaskedLanguageModel, Translator
from serving.signatures import INPUT_DTYPES, OPTION_DEFAULTS, SIGNATURES


def test_every_default_signature_has_one_input_and_one_output_and_an_alias():
    for rows in SIGNATURES.values():
        default = rows["serving_default"]
        assert len(default.inputs) == len(default.outputs) == 1
        assert rows[default.function] is default


def test_every_function_of_the_table_is_a_method_of_its_kind():
    kinds = {cls.kind: cls for cls in (Translator, LanguageModel, MaskedLanguageModel, Classifier)}
    assert kinds.keys() == SIGNATURES.keys()
    for kind, rows in SIGNATURES.items():
        assert all(callable(getattr(kinds[kind], row.function)) for row in rows.values())


def test_every_option_has_a_dtype_and_a_default():
    assert INPUT_DTYPES.keys() == OPTION_DEFAULTS.keys()
    used = {name for rows in SIGNATURES.values() for row in rows.values() for name in row.inputs}
    assert used - {"text", "translation", "first", "second", "inputs"} == OPTION_DEFAULTS.keys()


def test_importing_the_table_imports_nothing_heavy():
    code = "import sys, serving.signatures; print({'tensorflow', 'keras', 'numpy', 'grpc'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
