"""The rules of the house: who imports whom, the form of a docstring, a test for every file."""

import ast
import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import pytest

import keras_seq

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("keras_seq", "training", "serving")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# Strings are TensorFlow's alone: text.py and the files it is made of.
TEXT = {f"keras_seq/{name}.py" for name in ("text", "tokenizer", "words", "characters", "wordpiece", "byte_pairs")}
USES_TENSORFLOW = {*TEXT, "keras_seq/packing.py", "keras_seq/checkpoints.py", "keras_seq/backend.py"}
# What is tested under another name, and why.
JOINED = {
    "keras_seq/tokenizer.py": "the base class: test_text.py asks it through every tokenizer",
    "keras_seq/characters.py": "test_text.py compares them with other programs' through the tokenizers",
    "keras_seq/words.py": "the way by words: test_text.py asks it through every tokenizer but WordPiece",
    "keras_seq/wordpiece.py": "test_text.py",
    "keras_seq/byte_pairs.py": "test_text.py",
    "keras_seq/vocabularies.py": "train_tokenizer: test_text.py",
    "keras_seq/checkpoint_configs.py": "both directions of every config: test_checkpoint_files.py",
    "keras_seq/checkpoint_probe.py": "what loading prints and stores: test_checkpoints.py",
    "keras_seq/checkpoint_rows.py": "every row of the tables is read and written in test_checkpoint_files.py",
    "keras_seq/checkpoint_tables.py": "every architecture is read and written in test_checkpoint_files.py",
    "serving/model_server/__main__.py": "test_main.py starts it as a process, with the other command lines",
    "serving/model_server/quiet.py": "a few lines that silence TensorFlow, seen in every run of test_main.py",
    "serving/probes.py": "what every export is tried on, and its warm-up: test_export.py",
    "serving/reload.py": "the fresh process of an export: test_export.py",
    "serving/wire.py": "what the client's transports share: test_client.py asks over both",
    "serving/rest_wire.py": "the client's REST transport: test_client.py",
    "serving/grpc_wire.py": "the client's gRPC transport: test_client.py",
    "serving/answers.py": "the functions behind the signatures: test_export.py asks each through its SavedModel",
    "training/__main__.py": "test_run.py fits and evaluates through the command line",
    "training/in_process.py": "asked in test_evaluate.py, as an endpoint is",
    "training/task_measures.py": "what is measured of each kind of corpus: test_evaluate.py",
    "training/lexicon.py": "the words of the grammar: test_grammar.py",
    "training/study_plots.py": "the pictures of a study: test_study.py",
    "training/progress.py": "what the terminal shows of a fit: test_run.py",
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """(module, in a function) of every import in a file; `from a import b` gives a and a.b."""
    found = []

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{name_of(path)}:{child.lineno} imports relatively"
                found.extend(
                    (module, inside)
                    for alias in child.names
                    for module in (child.module, f"{child.module}.{alias.name}")
                )
            visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(path.read_text("utf-8")), False)
    return found


def reaches(module, package):
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_downward(path):
    name = name_of(path)
    forbidden = {
        "keras_seq": ["training", "serving", "tests"],
        "training": ["serving", "tests"],
        "serving": ["training", "tests"],
    }[name.split("/")[0]]
    for module, _ in imports(path):
        if name == "training/evaluate.py" and (module == "serving" or reaches(module, "serving.client")):
            continue
        assert not any(reaches(module, package) for package in forbidden), f"{name} imports {module}"


def test_models_never_import_each_other():
    for path in (ROOT / "keras_seq" / "models").glob("*.py"):
        assert not [module for module, _ in imports(path) if reaches(module, "keras_seq.models")], path.name


def test_generation_imports_no_model():
    for name in ("generation.py", "calls.py", "beams.py", "samplers.py"):
        modules = {module.split(".")[1] for module, _ in imports(ROOT / "keras_seq" / name) if "keras_seq." in module}
        assert modules <= {"backend", "beams", "calls", "positions", "samplers"}, name


@pytest.mark.parametrize("path", [path for path in SOURCES if name_of(path).startswith("keras_seq/")], ids=name_of)
def test_the_library_imports_tensorflow_in_text_checkpoints_and_backend_and_there_inside_functions(path):
    for module, inside in imports(path):
        if reaches(module, "tensorflow"):
            assert name_of(path) in USES_TENSORFLOW and inside, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("name", ["client.py", "wire.py", "retries.py", "rest_wire.py", "signatures.py"])
def test_client_and_signatures_import_neither_tensorflow_nor_the_library_on_top(name):
    for module, inside in imports(ROOT / "serving" / name):
        heavy = ("tensorflow", "tensorflow_serving", "grpc", "numpy", "keras", "keras_seq")
        assert inside or not any(reaches(module, one) for one in heavy), f"serving/{name} imports {module}"


def test_only_run_calls_compile_and_fit():
    for path in SOURCES:
        calls = [
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        ]
        fits = [call for call in calls if re.search(r"(?<!^run)\.fit$|model\.compile$", call)]
        assert name_of(path) == "training/run.py" or not fits, f"{name_of(path)} calls {fits}"


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_text", "keras_nlp", "keras_hub"):
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocked())
"""


def test_the_library_works_where_tensorflow_is_not_installed(tmp_path):
    folder = shutil.copytree(ROOT / "tests" / "fixtures" / "checkpoints" / "gpt2", tmp_path / "gpt2")
    code = BLOCKED.replace('"keras_nlp"', '"keras_nlp", "torch", "transformers"') + (
        "import numpy as np, keras_seq\n"
        "model = keras_seq.GPT(11, 1, 1, 2, 3)\n"
        "inputs = {'token_ids': np.ones((2, 3), 'int32'), 'padding_mask': np.ones((2, 3), bool)}\n"
        "print(model.generate(inputs, 5, -1)['token_ids'].shape)\n"
        f"print(type(keras_seq.load_checkpoint({str(folder)!r})).__name__)\n"
    )
    done = run_python(code, KERAS_BACKEND="jax")
    assert done.stdout.startswith("(2, 5)\n") and done.stdout.endswith("\nGPT\n"), done.stderr


def test_the_client_works_without_tensorflow_and_the_library():
    code = BLOCKED.replace('"keras_nlp"', '"keras", "keras_seq"') + "import serving.client, serving.signatures\n"
    assert run_python(code).returncode == 0, run_python(code).stderr


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


PUBLIC = [getattr(keras_seq, name) for name in keras_seq.__all__]
LAYERS = [one for one in PUBLIC if inspect.isclass(one) and issubclass(one, keras.layers.Layer)]
PLAIN_LAYERS = [one for one in LAYERS if not issubclass(one, keras.Model)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_a_public_layer_has_the_one_form_of_docstring(layer):
    doc = inspect.getdoc(layer)
    sections = re.findall(r"^(Shapes|Masks|Args|Raises):", doc, re.MULTILINE)
    assert sections == ["Shapes", "Masks", "Args", "Raises"], sections
    assert re.search(r"\b(19|20)\d\d, (section|appendix) ", doc), "no paper with its section"
    arguments = [name for name in inspect.signature(layer).parameters if name != "kwargs"]
    explained = re.findall(r"^    (\w+): ", doc[doc.index("Args:") : doc.index("Raises:")], re.MULTILINE)
    assert explained == arguments


@pytest.mark.parametrize("layer", PLAIN_LAYERS, ids=lambda layer: layer.__name__)
def test_a_public_layers_first_lines_have_its_formula(layer):
    first = inspect.getdoc(layer).split("\n\n")[0]
    assert re.search(r"[=+/^\[]| \. |\w\(", first), first


@pytest.mark.parametrize("layer", PLAIN_LAYERS, ids=lambda layer: layer.__name__)
def test_a_layers_constructor_arguments_are_config_keys_and_attributes(layer):
    arguments = [one for one in inspect.signature(layer).parameters.values() if one.kind is not one.VAR_KEYWORD]
    small = {"vocabulary_size": 11, "num_heads": 3, "hidden_dim": 6, "token_embedding": keras_seq.TokenEmbedding(11, 6)}
    made = layer(**{one.name: small.get(one.name, 2) for one in arguments if one.default is one.empty})
    config = made.get_config()
    for one in arguments:
        assert one.name in config and hasattr(made, one.name), one.name


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_source_file_has_its_tests(path):
    name = name_of(path)
    tests = ROOT / "tests" / name.split("/")[0]
    if path.name == "__init__.py" or name in JOINED:
        return
    stem = path.stem.strip("_")
    assert (tests / f"test_{stem}.py").exists(), f"{name} has no tests/{tests.name}/test_{stem}.py"


def test_what_is_listed_as_joined_exists():
    assert not [name for name in JOINED if not (ROOT / name).exists()]


def test_tests_are_no_packages():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_package_file_defines_nothing():
    tree = ast.parse((ROOT / "keras_seq" / "__init__.py").read_text("utf-8"))
    assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in tree.body)
    assert sorted(keras_seq.__all__) == sorted(set(keras_seq.__all__))
