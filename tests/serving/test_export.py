"""Every export, reloaded, read and served: what it answers is what the live model answers."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
from tiny_models import NAMES, build

import keras_seq
from serving import export_model, reload
from serving.answers import answers_for
from serving.check import check
from serving.client import Client, ServingError
from serving.export import ExportError, _compare, export_run
from serving.model_server.model_config import ModelSettings
from serving.model_server.server import ModelServer
from serving.signatures import INPUT_DTYPES, OPTION_DEFAULTS, SIGNATURES

TEXTS = ["the old cook", "", "i am a student that she likes [MASK]", "the cats are not good ?"]


class Live(NamedTuple):
    """A model that was exported: the arguments of `export_model`, its kind, and the functions over its weights."""

    given: dict
    kind: str
    functions: dict


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_answers, traced):
    """A folder with one version of each of the six models, and the models by name."""
    folder, live = tmp_path_factory.mktemp("served") / "exports", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.export._function", traced)
        # They are compared below, served against live, and more closely; a fresh process each takes its time.
        patch.setattr("serving.export._compare", lambda *_: None)
        for name in NAMES:
            given, answers = tiny_answers(name)
            patch.setattr("serving.export.answers_for", lambda *_, answers=answers: answers)
            export_model(**given, folder=folder / name, max_new_tokens=11)
            functions = {key: traced(answers, signature) for key, signature in SIGNATURES[answers.kind].items()}
            live[name] = Live(given, answers.kind, functions)
    return folder, live


@pytest.fixture(scope="module")
def tiny_exports(exported):
    return exported[0]


@pytest.fixture(scope="module")
def live(exported):
    return exported[1]


@pytest.fixture
def classifier(exported, monkeypatch):
    """Arguments to export the classifier once more with: what was traced and written is copied, not made anew."""
    folder, live = exported

    def copy(answers, staging, stored):
        shutil.copytree(folder / "classifier" / "1", staging, ignore=shutil.ignore_patterns("assets.extra"))
        return live["classifier"].functions

    monkeypatch.setattr("serving.export._save", copy)
    return live["classifier"].given


@pytest.fixture(scope="module")
def clients(tiny_exports, free_port, frozen_heap):
    """A REST and a gRPC client of an embedded server over the six, and its REST address."""
    port, rest_api_port = free_port(), free_port()
    models = [ModelSettings(name, tiny_exports / name) for name in NAMES]
    server = ModelServer(models, host="127.0.0.1", port=port, rest_api_port=rest_api_port)
    server.start()
    with Client(port=port, transport="grpc") as grpc, Client(rest_api_port=rest_api_port) as rest:
        yield rest, grpc, f"http://127.0.0.1:{rest_api_port}"
    server.stop()


def inputs_for(signature, texts):
    """A batch of texts with an option a row, all different."""
    rows = range(len(texts))
    options = {
        "max_new_tokens": [3 + row for row in rows],
        "temperature": [0.5 + 0.25 * row for row in rows],
        "top_k": [0, 5, 0, 3][: len(texts)],
        "top_p": [1.0, 1.0, 0.75, 0.5][: len(texts)],
        "seed": [2 + 3 * row for row in rows],
        "length_penalty": [0.5 * row for row in rows],
    }
    second = texts[1:] + texts[:1]
    return {
        name: options.get(name, second if name in ("second", "translation") else texts) for name in signature.inputs
    }


def cut(value, like):
    """A padded answer without the padding that a longer companion brought; `like` has the shape that stays."""
    array = np.asarray(value)
    return array[tuple(slice(size) for size in np.asarray(like).shape)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_served_equals_live_over_rest_and_grpc_alone_and_in_a_batch(name, live, clients):
    rest, grpc, _ = clients
    for key, signature in SIGNATURES[live[name].kind].items():
        if signature.function == "examples":
            continue  # bytes of protobufs; test_classify_examples asks it
        asked = inputs_for(signature, TEXTS)
        values = {one: tf.constant(row, INPUT_DTYPES.get(one, "string")) for one, row in asked.items()}
        answers = live[name].functions[key](**values)
        together = [client.predict(name, asked, key) for client in (rest, grpc)]
        for output in signature.outputs:
            expected = answers[output].numpy()
            if expected.dtype == object:
                expected = np.vectorize(bytes.decode, otypes=[object])(expected)
            for told in together:
                same(f"{output} of {key}", expected, told[output])
        for row in range(len(TEXTS)):
            alone = rest.predict(name, {one: [values[row]] for one, values in asked.items()}, key)
            for output in signature.outputs:
                same(f"{output} of {key}, row {row}", cut(together[0][output][row], alone[output][0]), alone[output][0])


def same(what, expected, told):
    expected, told = np.asarray(expected), np.asarray(told)
    assert expected.shape == told.shape, what
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(expected, told, atol=1e-5, rtol=1e-5, err_msg=what)
    else:
        assert expected.tolist() == told.tolist(), what


def test_classify_examples_are_answered_as_their_text(clients):
    _, grpc, _ = clients
    feature = {"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"the old cook"]))}
    example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    told = grpc.predict("classifier", [example], "examples")
    plain = grpc.predict("classifier", ["the old cook"], "probabilities")
    assert told["classes"] == plain["labels"] == [["bad", "good", "neither"]]
    np.testing.assert_allclose(told["scores"], plain["probabilities"], atol=1e-6)


def test_inputs_of_other_numbers_of_rows_are_refused_either_way(clients):
    rest, grpc, _ = clients
    for client in (rest, grpc):
        for text, translation in (["a"], ["le", "vieux"]), (["a", "b"], ["le"]):
            with pytest.raises(ServingError, match="translation needs a row for each of text") as told:
                client.predict("transformer", {"text": text, "translation": translation}, "score")
            assert told.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("name", NAMES)
def test_hostile_text_gets_an_answer_and_the_server_goes_on(name, clients):
    rest, grpc, _ = clients
    hostile = [b"\xff\xfe", b"\x00 cook", "\U0001f600 \u202e".encode(), b"a" * 1_000_000, b"the cook " * 111_111]
    (over_grpc,) = grpc.predict(name, hostile).values()
    (over_rest,) = rest.predict(name, hostile).values()
    assert over_grpc == over_rest and len(over_grpc) == len(hostile)
    assert rest.predict(name, ["the old cook"]) == grpc.predict(name, ["the old cook"])


def test_the_plain_forms_of_the_contract_answer(clients):
    rest, _, address = clients
    url = f"{address}/v1/models/transformer:predict"
    row = httpx.post(url, json={"instances": ["the old cook"]}, trust_env=False).json()
    column = httpx.post(url, json={"inputs": ["the old cook"]}, trust_env=False).json()
    assert list(row) == ["predictions"] and list(column) == ["outputs"]
    assert row["predictions"] == column["outputs"] == rest.predict("transformer", ["the old cook"])["translation"]


@pytest.mark.parametrize("name", NAMES)
def test_an_export_holds_what_the_stock_server_runs_and_the_contract_s_table(name, tiny_exports, live):
    contents = check(tiny_exports / name / "1")
    assert contents.problems == []
    assert not [op for op in contents.operations if "Mutable" in op or "Xla" in op or "PyFunc" in op]
    assert set(contents.signatures) == set(SIGNATURES[live[name].kind])
    for key, signature in SIGNATURES[live[name].kind].items():
        inputs, outputs = contents.signatures[key]
        assert set(inputs) == set(signature.inputs) and set(outputs) == set(signature.outputs)
        assert all(what.split(" ", 1)[1].startswith("(b") for what in (inputs | outputs).values())
        for one in set(inputs) & set(OPTION_DEFAULTS):
            assert inputs[one] == f"{INPUT_DTYPES[one]} (b)"


@pytest.mark.parametrize("name", NAMES)
def test_manifest_and_warm_up_stand_beside_the_model(name, tiny_exports, live):
    folder = tiny_exports / name / "1" / "assets.extra"
    manifest = json.loads((folder / "keras_seq.json").read_text("utf-8"))
    given = live[name].given
    assert manifest["model"] == type(given["model"]).__name__
    assert manifest["parameters"] == given["model"].count_params()
    assert manifest["fingerprints"]["tokenizer"] == given["tokenizer"].fingerprint
    assert manifest["versions"]["tensorflow"] == tf.__version__
    records = tf.data.TFRecordDataset(str(folder / "tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
    asked = [getattr(log, log.WhichOneof("log_type")).request.model_spec.signature_name for log in logs]
    assert sorted(asked) == sorted(manifest["signatures"]) == sorted(SIGNATURES[live[name].kind])


def test_versions_count_up_and_none_is_overwritten(tmp_path, classifier, monkeypatch):
    monkeypatch.setattr("serving.export._compare", lambda *_: None)  # the comparison is not the point here
    given = {**classifier, "folder": tmp_path / "a folder" / "exports" / "x"}
    assert export_model(**given).name == "1"
    assert export_model(**given, version=7).name == "7"
    assert export_model(**given).name == "8"
    before = (tmp_path / "a folder/exports/x/7/saved_model.pb").read_bytes()
    with pytest.raises(FileExistsError, match=r"Version 7 is in .* already"):
        export_model(**given, version=7)
    with pytest.raises(ValueError, match=r"version from 1 to 9223372036854775807, got version=0"):
        export_model(**given, version=0)
    assert (tmp_path / "a folder/exports/x/7/saved_model.pb").read_bytes() == before


def test_an_export_onto_another_file_system_comes_in_one_step_too(tmp_path, classifier, monkeypatch):
    """As where exports/ is a mounted volume: what lies outside cannot be renamed into it."""
    monkeypatch.setattr("serving.export._compare", lambda *_: None)
    rename, moved = os.rename, []

    def within_one_folder(source, target):
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        moved.append(Path(source).name)
        rename(source, target)

    monkeypatch.setattr("serving.export.os.rename", within_one_folder)
    place = export_model(**classifier, folder=tmp_path / "exports" / "x")
    assert (place / "saved_model.pb").is_file() and len(moved) == 1 and not moved[0].isdigit()
    assert (os.listdir(tmp_path), os.listdir(tmp_path / "exports" / "x")) == (["exports"], ["1"])


def test_names_that_no_server_reads_are_no_versions(tmp_path, classifier, monkeypatch):
    monkeypatch.setattr("serving.export._compare", lambda *_: None)
    for name in ("3", "²", "٣", str(2**63)):
        (tmp_path / "x" / name).mkdir(parents=True)
    assert export_model(**classifier, folder=tmp_path / "x").name == "4"


def test_an_export_that_fails_its_comparison_leaves_nothing(tmp_path, classifier, monkeypatch):
    seen = []

    def fail(staging, live):
        seen.append(staging)
        raise ExportError("it differs")

    monkeypatch.setattr("serving.export._compare", fail)
    with pytest.raises(ExportError, match="it differs"):
        export_model(**classifier, folder=tmp_path / "exports" / "x")
    assert seen[0].parent == tmp_path, "staging lies outside the folder that is served"
    assert os.listdir(tmp_path) == []


def test_the_comparison_sees_a_changed_weight(tiny_exports, live, monkeypatch):
    def in_this_process(command, **_):  # a process of its own is what the two tests below start
        reload.main(*command[3:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("serving.export.subprocess.run", in_this_process)
    given, _, functions = live["classifier"]
    probe = {"text": tf.constant(["the old cook", ""])}
    bias = given["model"].classification_head.dense.bias
    before = bias.numpy()
    bias.assign(before + np.linspace(-7, 7, 3))
    changed = {"probabilities": (probe, functions["probabilities"](**probe))}
    bias.assign(before)
    with pytest.raises(ExportError, match="differs from the live model in probabilities of probabilities"):
        _compare(tiny_exports / "classifier" / "1", changed)


def test_a_user_s_own_model_trained_by_fit_is_served_as_it_predicts(tmp_path, monkeypatch):
    given = build("classifier")
    # What is asked below, and the default; the others are written and served above.
    table = {name: SIGNATURES["classifier"][name] for name in ("serving_default", "probabilities")}
    monkeypatch.setitem(SIGNATURES, "classifier", table)
    tokenizer, model = given["tokenizer"], given["model"]
    ids = tokenizer.tokenize(["the old cook", "i am a student"]).to_tensor(0)
    ids = tf.pad(ids, [[0, 0], [1, 1]], constant_values=tokenizer.end_token_id)
    inputs = {"token_ids": ids, "segment_ids": tf.zeros_like(ids), "padding_mask": tf.ones_like(ids, tf.bool)}
    model.compile("adam", keras_seq.TokenCrossentropy(), jit_compile=False)
    model.fit(inputs, np.array([0, 2]), epochs=2, verbose=0)
    place = export_model(model, tmp_path / "exports" / "mine", tokenizer, labels=given["labels"])
    assert place == tmp_path / "exports" / "mine" / "1"
    loaded = tf.saved_model.load(str(place)).signatures["probabilities"](text=tf.constant(["the cook"]))
    live = answers_for(**given).probabilities(tf.constant(["the cook"]))[1]
    np.testing.assert_allclose(loaded["probabilities"], live, atol=1e-5)


def test_a_missing_or_unfinished_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no run folder .*nowhere"):
        export_run(tmp_path / "nowhere", tmp_path / "exports" / "x")
    (tmp_path / "half").mkdir()
    with pytest.raises(FileNotFoundError, match=r"A finished run has recipe.json, which is not in .*half"):
        export_run(tmp_path / "half", tmp_path / "exports" / "x")


def test_what_a_failed_reload_said_is_told(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"\xff no protobuf")
    with pytest.raises(ExportError, match=r"could not be reloaded: .*Cannot parse file"):
        _compare(tmp_path / "broken", {})
