"""The files of checkpoints, read, refused and written: of the backend they say nothing, so one backend runs them."""

import json
import re
import struct

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file, save_file
from written_checkpoints import FOLDER, KINDS, copied, loaded

import keras_seq
from keras_seq import load_checkpoint, save_checkpoint
from keras_seq.checkpoint_configs import architecture_name
from keras_seq.checkpoint_tables import ARCHITECTURES


@pytest.fixture
def copy(tmp_path):
    """copy(kind): a fixture's folder that may be written to."""
    return lambda kind: copied(kind, tmp_path)


def change(folder, **config):
    """Other keys in its config.json."""
    place = folder / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **config}))
    return folder


def retensor(folder, changed):
    """Its tensors, through `changed`."""
    save_file(changed(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("bert_bfloat16", "gpt2_sharded")])
def test_what_is_saved_has_the_tensors_and_the_config_that_were_loaded(kind, tmp_path):
    save_checkpoint(loaded(kind), tmp_path / "saved", eos_token_id=1)
    saved, theirs = load_file(tmp_path / "saved" / "model.safetensors"), load_file(FOLDER / kind / "model.safetensors")
    if kind == "gpt2_body":
        theirs = {f"transformer.{name}": one for name, one in theirs.items()}
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(saved[name], tensor, err_msg=name)
    # A model with fewer heads than ours is written with them, and they are 0.
    added = [saved[name] for name in saved if name not in theirs]
    assert not added or kind in ("bert_masked_lm", "bert_next_sentence")
    assert not any(one.any() for one in added)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    before = json.loads((FOLDER / kind / "config.json").read_text())
    dropouts = {key for key in before if "drop" in key}
    loose = {"architectures", "eos_token_id", "bos_token_id", "decoder_start_token_id", "pad_token_id", "n_inner"}
    if kind in ("bert_classifier", "bert_tokens"):
        loose |= {"id2label", "label2id"}
    for key in (config.keys() & before.keys()) - dropouts - loose:
        assert config[key] == before[key], key
    assert config["eos_token_id"] == 1


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(copy, capsys, monkeypatch):
    def refuse(descriptor):
        raise OSError(30, "Read-only file system")

    folder = copy("bert")
    before = sorted(folder.iterdir())
    monkeypatch.setattr("os.fsync", refuse)
    load_checkpoint(folder)
    assert capsys.readouterr().out.endswith("keras_seq_probe.json stays as it is, Read-only file system\n")
    assert sorted(folder.iterdir()) == before


def test_an_old_files_names_and_tied_tensors_are_understood(copy):
    """As bert-base-uncased has them: gamma and beta, position ids, the tied decoder, a head that its class has not."""

    def old(tensors):
        tensors = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): one
            for name, one in tensors.items()
        }
        tensors["cls.predictions.decoder.weight"] = tensors.pop("bert.embeddings.word_embeddings.weight")
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
        tensors["bert.embeddings.position_ids"] = np.arange(23)[None]
        tensors["cls.seq_relationship.weight"] = np.full((2, 12), 0.5, "float32")
        tensors["cls.seq_relationship.bias"] = np.full(2, 0.25, "float32")
        return tensors

    model = load_checkpoint(retensor(copy("bert_masked_lm"), old))
    for one, other in zip(model.backbone.weights[:7], loaded("bert_masked_lm").backbone.weights[:7]):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(model.next_sentence_head.dense.kernel, np.full((12, 2), 0.5))
    np.testing.assert_array_equal(model.next_sentence_head.dense.bias, np.full(2, 0.25))


def test_float16_is_read(copy):
    folder = retensor(copy("bert"), lambda tensors: {name: one.astype("float16") for name, one in tensors.items()})
    for one, other in zip(load_checkpoint(folder).weights, loaded("bert").weights):
        np.testing.assert_array_equal(one, np.asarray(other).astype("float16").astype("float32"))


def test_googles_checkpoint_gives_the_same_model(copy):
    tf = pytest.importorskip("tensorflow")
    folder = copy("bert_pre_training")
    tensors, googles = load_file(folder / "model.safetensors"), {"global_step": np.int64(7)}
    names = {
        "bert.embeddings.word_embeddings.weight": "bert/embeddings/word_embeddings",
        "bert.embeddings.position_embeddings.weight": "bert/embeddings/position_embeddings",
        "bert.embeddings.token_type_embeddings.weight": "bert/embeddings/token_type_embeddings",
        "bert.embeddings.LayerNorm": "bert/embeddings/LayerNorm",
        "bert.pooler.dense": "bert/pooler/dense",
        "cls.predictions.bias": "cls/predictions/output_bias",
        "cls.predictions.transform.dense": "cls/predictions/transform/dense",
        "cls.predictions.transform.LayerNorm": "cls/predictions/transform/LayerNorm",
        "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
        "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
    }
    for i in range(2):
        for part in ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm"):
            name = part.replace(".", "/")
            names[f"bert.encoder.layer.{i}.attention.{part}"] = f"bert/encoder/layer_{i}/attention/{name}"
        for part in ("intermediate.dense", "output.dense", "output.LayerNorm"):
            names[f"bert.encoder.layer.{i}.{part}"] = f"bert/encoder/layer_{i}/{part.replace('.', '/')}"
    for name, tensor in tensors.items():
        if name in names:
            googles[names[name]] = tensor
            continue
        layer, kind = name.rsplit(".", 1)
        norm = {"weight": "gamma", "bias": "beta"}
        dense = {"weight": "kernel", "bias": "bias"}
        one = (norm if layer.endswith("LayerNorm") else dense)[kind]
        googles[f"{names[layer]}/{one}"] = tensor.T if one == "kernel" else tensor
        googles[f"{names[layer]}/{one}/adam_m"] = np.zeros(3, "float32")
    tf.raw_ops.SaveV2(
        prefix=str(folder / "bert_model.ckpt"),
        tensor_names=list(googles),
        shape_and_slices=[""] * len(googles),
        tensors=[tf.constant(one) for one in googles.values()],
    )
    config = json.loads((folder / "config.json").read_text())
    for key in ("architectures", "model_type"):
        del config[key]
    (folder / "bert_config.json").write_text(json.dumps(config))
    (folder / "config.json").unlink()
    model = load_checkpoint(folder)
    for one, other in zip(model.weights, loaded("bert_pre_training").weights):
        np.testing.assert_array_equal(one, other)
    data = folder / "bert_model.ckpt.data-00000-of-00001"
    whole = data.read_bytes()
    data.write_bytes(whole[:-2000])
    with pytest.raises(ValueError, match=r"cannot read tensor '.*' of bert_model\.ckpt"):
        load_checkpoint(folder)
    data.write_bytes(whole)
    (folder / "bert_model.ckpt.index").unlink()
    with pytest.raises(ValueError, match=r"needs bert_model\.ckpt\.index and \.data-\* in"):
        load_checkpoint(folder)


def without(name):
    return lambda tensors: {one: tensor for one, tensor in tensors.items() if one != name}


def with_tensor(name, value):
    return lambda tensors: {**tensors, name: value}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            without("transformer.h.1.mlp.c_fc.bias"),
            r"needs tensor 'transformer\.h\.1\.mlp\.c_fc\.bias', which the check",
        ),
        (with_tensor("h.2.ln_1.bias", np.zeros(12, "float32")), r"no place for tensor 'h\.2\.ln_1\.bias' in GPT"),
        (
            with_tensor("wte.weight", np.zeros((31, 12), "float32")),
            r"needs one tensor 'wte\.weight', got '(transformer\.)?wte\.weight' and '(transformer\.)?wte\.weight'",
        ),
        (
            with_tensor("transformer.wpe.weight", np.zeros((22, 12), "float32")),
            r"needs shape \(23, 12\) for tensor 'transformer\.wpe\.weight', got \(22, 12\) in model\.safetensors",
        ),
        (
            with_tensor("transformer.wpe.weight", np.zeros((23, 12), "int8")),
            r"needs floats for tensor 'transformer\.wpe\.weight', got I8 in model\.safetensors",
        ),
        (
            with_tensor("lm_head.weight", np.zeros((31, 12), "float32")),
            r"needs tensor 'lm_head\.weight' to equal 'transformer\.wte\.weight', which it is tied to",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(changed, message, copy):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(retensor(copy("gpt2"), changed))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("BertForMaskedLM", "bert.pooler.dense.bias"),
        ("BertForMaskedLM", "cls.seq_relationship.weight"),
        ("BertForNextSentencePrediction", "cls.predictions.transform.dense.weight"),
    ],
)
def test_a_head_that_is_not_asked_for_is_there_whole_or_not_at_all(kind, name, copy):
    folder = retensor(change(copy("bert_pre_training"), architectures=[kind]), without(name))
    with pytest.raises(ValueError, match=rf"needs tensor '{re.escape(name)}', which the checkpoint does not have"):
        load_checkpoint(folder)


@pytest.mark.parametrize("header", ["[1]", '{"a": 1}', '{"a": {"dtype": "F32", "shape": [1]}}'])
def test_a_header_of_something_else_is_named(header, copy):
    folder = copy("gpt2")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(64))
    with pytest.raises(ValueError, match=r"needs whole files, got model\.safetensors without a header of tensors"):
        load_checkpoint(folder)


def test_a_head_of_one_label_is_refused_by_the_key(copy):
    with pytest.raises(ValueError, match="needs two labels or more in id2label, got 1"):
        load_checkpoint(change(copy("bert_classifier"), id2label={"0": "LABEL_0"}))
    with pytest.raises(ValueError, match="needs a list of architectures, got 5 in"):
        load_checkpoint(change(copy("gpt2"), architectures=5))


def test_the_dropout_of_a_span_head_comes_back(tmp_path):
    bert = keras_seq.BERT(13, 1, 2, 6, 7)
    save_checkpoint(keras_seq.BERTSpanClassifier(bert, dropout=0.25), tmp_path)
    assert load_checkpoint(tmp_path).dropout == 0.25


def test_masks_that_old_files_of_gpt2_hold_are_no_weights(copy):
    masks = {"transformer.h.0.attn.bias": np.ones((1, 1, 23, 23), "float32")}
    masks["transformer.h.1.attn.masked_bias"] = np.array(-1e4, "float32")
    model = load_checkpoint(retensor(copy("gpt2"), lambda tensors: {**tensors, **masks}))
    np.testing.assert_array_equal(model.weights[0], loaded("gpt2").weights[0])


def test_a_cut_file_is_named_with_its_first_lost_tensor(copy):
    folder = copy("gpt2")
    place = folder / "model.safetensors"
    whole = place.read_bytes()
    place.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors cut within tensor 'transformer\.wte\.weight', 1 of 28"):
        load_checkpoint(folder)
    for size, message in ((200, "cut within its header"), (5, "cut within its header")):
        place.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"needs whole files, got model\.safetensors {message}"):
            load_checkpoint(folder)
    (folder / "config.json").write_text('{"model_type": "gp')
    with pytest.raises(ValueError, match=r"needs JSON in .*config\.json"):
        load_checkpoint(folder)


def test_a_missing_shard_and_a_wrong_index_are_named(copy):
    folder = copy("gpt2_sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["transformer.ln_f.bias"] = "model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"needs tensor 'transformer\.ln_f\.bias' in model-00001-of-00003"):
        load_checkpoint(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"needs file model-00002-of-00003\.safetensors for tensor 'transformer\.h"):
        load_checkpoint(folder)


def test_a_tensor_that_the_index_does_not_have_in_its_shard_is_named(copy):
    folder = copy("gpt2_sharded")
    place = folder / "model-00002-of-00003.safetensors"
    save_file({**load_file(place), "transformer.h.7.surplus": np.ones(2, "float32")}, place)
    with pytest.raises(ValueError, match=r"every tensor of model-00002-.* which lacks 'transformer\.h\.7\.surplus'\."):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", r"needs an object in .*/config\.json, got \[\]\."),
        ("model.safetensors.index.json", '{"a": 1}', r"an object with weight_map \(dict\) in .*, got \{'a': 1\}\."),
        ("keras_seq_probe.json", "{}", r"with inputs \(dict\), outputs .* in .*/keras_seq_probe\.json, got \{\}\."),
    ],
)
def test_a_file_without_what_has_to_be_in_it_is_named(name, content, message, copy):
    folder = copy("gpt2_sharded")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_the_ids_of_labels_are_those_of_their_names_unless_given(tmp_path):
    for given, expected in (({}, {"bad": 0, "good": 1}), ({"label2id": {"b": 0, "g": 1}}, {"b": 0, "g": 1})):
        bert = keras_seq.BERT(5, num_layers=1, num_heads=1, hidden_dim=2, intermediate_dim=3)
        save_checkpoint(keras_seq.BERTClassifier(bert, 2), tmp_path, id2label={0: "bad", 1: "good"}, **given)
        assert json.loads((tmp_path / "config.json").read_text())["label2id"] == expected


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (
            "gpt2",
            {"model_type": "llama"},
            r"needs model_type in \('bert', 'gpt2', 'openai-gpt', 'marian'\), got 'llama'",
        ),
        (
            "gpt2",
            {"architectures": ["GPT2Other"]},
            r"needs architectures in \['GPT2LMHeadModel', .*got \['GPT2Other'\]",
        ),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            r"scale_attn_by_inverse_layer_idx=False for gpt2, got True",
        ),
        ("gpt2", {"n_layer": None}, r"needs n_layer for gpt2, got none"),
        ("gpt2", {"n_embd": "12"}, r"needs a number as n_embd, got '12' in .*gpt2"),
        ("bert", {"position_embedding_type": "relative_key"}, r"position_embedding_type='absolute' .* 'relative_key'"),
        ("bert", {"hidden_act": "mish"}, r"needs hidden_act in \('gelu', .* got 'mish'"),
        ("bert", {"hidden_act": ["gelu"]}, r"needs hidden_act in \('gelu', .* got \['gelu'\]"),
        ("bert", {"is_decoder": True}, r"needs is_decoder=False for bert, got True"),
        (
            "marian",
            {"decoder_layers": 3},
            r"needs one num_layers for marian, got encoder_layers=2 and decoder_layers=3",
        ),
        ("marian", {"tie_word_embeddings": False}, r"needs tie_word_embeddings=True for marian, got False"),
    ],
)
def test_a_config_that_asks_for_more_is_refused_by_name(kind, config, message, copy):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(change(copy(kind), **config))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs config\.json or bert_config\.json in .*, got \[\]"):
        load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="got no such folder"):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(
        ValueError, match=r"needs model\.safetensors or .*, got \['config.json', 'pytorch_model\.bin'\]"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        (["pooler.dense.weight"], "BertModel"),
        (["cls.predictions.bias", "cls.seq_relationship.weight"], "BertForPreTraining"),
        (["bert.pooler.dense.weight", "classifier.weight"], "BertForSequenceClassification"),
    ],
)
def test_a_config_without_architectures_leaves_it_to_the_tensors(tensors, name):
    assert architecture_name({"model_type": "bert"}, tensors, "here") == name


def test_a_transformer_is_written_with_its_channels_in_marians_order(tmp_path, shared, make_inputs):
    model, inputs = shared("Transformer"), make_inputs("Transformer")
    save_checkpoint(model, tmp_path)
    again = load_checkpoint(tmp_path)
    assert (again.interleave_positions, again.logits_bias, again.share_embeddings) == (False, True, False)
    np.testing.assert_allclose(again(inputs), model(inputs), atol=1e-4)


def test_gpt1_without_its_head_is_the_same_model(copy):
    folder = change(copy("gpt1"), architectures=["OpenAIGPTModel"])
    bare = lambda tensors: {name.removeprefix("transformer."): one for name, one in tensors.items()}  # noqa: E731
    for one, other in zip(load_checkpoint(retensor(folder, bare)).weights, loaded("gpt1").weights):
        np.testing.assert_array_equal(one, other)


def test_every_architecture_of_the_tables_is_read_here():
    read = {json.loads((FOLDER / kind / "config.json").read_text())["architectures"][0] for kind in KINDS}
    assert read | {"OpenAIGPTModel"} == set(ARCHITECTURES)


def test_a_model_with_lora_is_written_with_it_added_to_its_kernels(tmp_path):
    model = keras_seq.GPT(5, num_layers=1, num_heads=1, hidden_dim=2, intermediate_dim=3)
    dense = model.blocks[0].feed_forward.intermediate_dense
    before = np.array(ops.convert_to_tensor(dense.kernel))
    dense.enable_lora(1)
    dense.lora_kernel_b.assign(np.ones((1, 3), "float32"))
    save_checkpoint(model, tmp_path)
    written = load_file(tmp_path / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
    np.testing.assert_allclose(written - before, np.repeat(np.asarray(dense.lora_kernel_a), 3, 1), atol=1e-6)


def test_an_interrupted_write_leaves_the_old_files(tmp_path, monkeypatch):
    save_checkpoint(loaded("gpt2"), tmp_path, eos_token_id=3)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    assert before.keys() == {"config.json", "model.safetensors", "keras_seq_probe.json"}
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(loaded("gpt2"), tmp_path, eos_token_id=5)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_a_model_without_such_a_form_is_refused_by_its_arguments(tmp_path):
    sizes = {"num_layers": 1, "num_heads": 1, "hidden_dim": 2, "intermediate_dim": 3}
    with pytest.raises(ValueError, match=r"needs a model in \['BERT', .*, got GraphView"):
        save_checkpoint(loaded("gpt2").backbone, tmp_path)
    with pytest.raises(ValueError, match=r"needs, to write MarianMTModel: normalize_first=False \(got True\)\."):
        save_checkpoint(keras_seq.Transformer(5, 7, **sizes, normalize_first=True), tmp_path)
    with pytest.raises(ValueError, match=r"to write BertModel: activation in \('gelu', .*\(got 'mish'\)"):
        save_checkpoint(keras_seq.BERT(5, **sizes, activation="mish"), tmp_path)
    with pytest.raises(ValueError, match=r"to write GPT2LMHeadModel: position_encoding='learned' \(got 'rotary'\)"):
        save_checkpoint(keras_seq.GPT(5, **sizes, position_encoding="rotary"), tmp_path)
    for quantized in (keras_seq.GPT(5, **sizes), keras_seq.Transformer(5, 7, **sizes)):
        next(one for one in quantized._flatten_layers() if isinstance(one, keras.layers.Dense)).quantize("int8")
        with pytest.raises(ValueError, match=r"needs float weights, got int8 for '.*/kernel'\."):
            save_checkpoint(quantized, tmp_path)
    with pytest.raises(ValueError, match=r"normalize_first=True \(got False\); .* intermediate_dim=8 \(got 3\)"):
        save_checkpoint(keras_seq.GPT(5, **sizes, normalize_first=False), tmp_path)
    assert not list(tmp_path.iterdir())
