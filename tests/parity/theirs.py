"""transformers' models and torch's recurrent layers with random weights, and what they answer, in our names."""

import numpy as np
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

NEW_TOKENS, BEAMS = 9, 3
WRITERS = ("gpt2", "gpt1", "marian", "marian_separate")


def _bert(sizes):
    return transformers.BertConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["width"],
        num_hidden_layers=2,
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["intermediate"],
        max_position_embeddings=sizes["positions"],
        type_vocab_size=sizes["segments"],
        hidden_act=sizes["activation"],
        layer_norm_eps=1e-7,
        num_labels=sizes["labels"],
    )


def _spans(sizes):
    return _bert({**sizes, "labels": 2})


def _gpt2(sizes):
    return transformers.GPT2Config(
        vocab_size=sizes["vocabulary"],
        n_embd=sizes["width"],
        n_layer=2,
        n_head=sizes["heads"],
        n_inner=sizes["intermediate"],
        n_positions=sizes["positions"],
        activation_function="gelu_new" if sizes["activation"] == "gelu" else sizes["activation"],
        bos_token_id=1,
        eos_token_id=1,
    )


def _gpt1(sizes):
    return transformers.OpenAIGPTConfig(
        vocab_size=sizes["vocabulary"],
        n_embd=sizes["width"],
        n_layer=2,
        n_head=sizes["heads"],
        n_positions=sizes["positions"],
        afn="gelu" if sizes["activation"] == "gelu" else "relu",
    )


def _marian(sizes, **changes):
    last = sizes["vocabulary"] - 1
    return transformers.MarianConfig(
        **{
            "vocab_size": sizes["vocabulary"],
            "decoder_vocab_size": sizes["vocabulary"],
            "d_model": sizes["width"],
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": sizes["heads"],
            "decoder_attention_heads": sizes["heads"],
            "encoder_ffn_dim": sizes["intermediate"],
            "decoder_ffn_dim": sizes["intermediate"],
            "max_position_embeddings": sizes["positions"],
            "activation_function": "swish",
            "scale_embedding": True,
            "pad_token_id": last,
            "decoder_start_token_id": last,
            "eos_token_id": 0,
            "forced_eos_token_id": None,
            **changes,
        }
    )


def _separate(sizes):
    target = sizes["vocabulary"] + 2
    return _marian(
        sizes, decoder_vocab_size=target, share_encoder_decoder_embeddings=False, scale_embedding=False,
        activation_function="gelu",
    )  # fmt: skip


KINDS = {
    "bert": (_bert, transformers.BertModel),
    "bert_pre_training": (_bert, transformers.BertForPreTraining),
    "bert_masked_lm": (_bert, transformers.BertForMaskedLM),
    "bert_next_sentence": (_bert, transformers.BertForNextSentencePrediction),
    "bert_classifier": (_bert, transformers.BertForSequenceClassification),
    "bert_tokens": (_bert, transformers.BertForTokenClassification),
    "bert_spans": (_spans, transformers.BertForQuestionAnswering),
    "bert_choice": (_bert, transformers.BertForMultipleChoice),
    "gpt2": (_gpt2, transformers.GPT2LMHeadModel),
    "gpt2_body": (_gpt2, transformers.GPT2Model),
    "gpt1": (_gpt1, transformers.OpenAIGPTLMHeadModel),
    "marian": (_marian, transformers.MarianMTModel),
    "marian_separate": (_separate, transformers.MarianMTModel),
}
SIZES = {
    "vocabulary": 31, "width": 12, "heads": 3, "intermediate": 17, "positions": 23, "segments": 2, "activation": "gelu",
    "labels": 5,
}  # fmt: skip


def make(kind, seed, **sizes):
    """A model of transformers with wide random weights: at their usual spread a mistake could hide, and with the narrow
    layers left to their tied embeddings a writer repeats one token for ever."""
    configure, model_class = KINDS[kind]
    torch.manual_seed(seed)
    model = model_class(configure({**SIZES, **sizes})).eval()
    named = dict(model.named_parameters())
    if hasattr(model, "final_logits_bias"):
        named["final_logits_bias"] = model.final_logits_bias
    with torch.no_grad():
        for name, tensor in named.items():
            if "embed_positions" not in name:
                # What a whole source says is the same at every step: less of it.
                spread = 0.1 if tensor.ndim == 1 or "bias" in name else 0.2 if "encoder_attn" in name else 0.7
                # As wide as that only in narrow layers: sums over many channels would saturate the softmax, where
                # torch's own float32 and float64 differ by more than the tests allow.
                tensor.add_(torch.randn_like(tensor) * spread * min(1.0, (12 / model.config.hidden_size) ** 0.5))
    return model


def make_inputs(model, seed, batch=3, length=7, padded=True):
    """Inputs as ours are called; each row of another length, padded on the right."""
    random, config = np.random.default_rng(seed), model.config

    def text(vocabulary, length):
        mask = np.arange(length) < random.integers(min(2, length), length + 1, size=(batch, 1))
        mask[0] = True
        mask |= not padded
        return np.where(mask, random.integers(1, vocabulary, size=(batch, length)), 0).astype("int32"), mask

    ids, mask = text(config.vocab_size, length)
    if config.model_type == "marian":
        target, target_mask = text(config.decoder_vocab_size, length - 2)
        names = ("encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask")
        return dict(zip(names, (ids, mask, target, target_mask)))
    inputs = {"token_ids": ids, "padding_mask": mask}
    if config.model_type == "bert":
        inputs["segment_ids"] = random.integers(0, config.type_vocab_size, size=ids.shape).astype("int32")
        if type(model).__name__ in ("BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction"):
            inputs["mask_positions"] = np.array([[0, 1]] * batch, "int32")
        if type(model).__name__ == "BertForQuestionAnswering":
            inputs["answer_mask"] = np.ones_like(mask)
        if type(model).__name__ == "BertForMultipleChoice":
            inputs = {name: np.stack([one, one[::-1]], axis=1) for name, one in inputs.items()}
    return inputs


def _torch(array):
    return torch.from_numpy(np.asarray(array).astype("int64"))


@torch.no_grad()
def answers(model, inputs):
    """What it answers, under the names of our outputs ("output" where ours has one alone)."""
    if model.config.model_type == "marian":
        out = model(
            input_ids=_torch(inputs["encoder_token_ids"]),
            attention_mask=_torch(inputs["encoder_padding_mask"]),
            decoder_input_ids=_torch(inputs["decoder_token_ids"]),
            decoder_attention_mask=_torch(inputs["decoder_padding_mask"]),
            output_hidden_states=True,
        )
        found = {"output": out.logits, "hidden": out.decoder_hidden_states[-1]}
        return {name: one.numpy() for name, one in found.items()}
    arguments = {"input_ids": _torch(inputs["token_ids"]), "attention_mask": _torch(inputs["padding_mask"])}
    if "segment_ids" in inputs:
        arguments["token_type_ids"] = _torch(inputs["segment_ids"])
    out = model(**arguments)
    name = type(model).__name__

    def masked(logits):
        return torch.take_along_dim(logits, _torch(inputs["mask_positions"])[:, :, None], dim=1)

    if name == "BertModel":
        found = {"sequence_output": out.last_hidden_state, "pooled_output": out.pooler_output}
    elif name == "BertForPreTraining":
        found = {"masked_lm": masked(out.prediction_logits), "next_sentence": out.seq_relationship_logits}
    elif name == "BertForMaskedLM":
        found = {"masked_lm": masked(out.logits)}
    elif name == "BertForNextSentencePrediction":
        found = {"next_sentence": out.logits}
    elif name == "GPT2Model":
        found = {"hidden": out.last_hidden_state}
    elif name == "BertForQuestionAnswering":
        found = {"start_logits": out.start_logits, "end_logits": out.end_logits}
    elif name.startswith("BertFor"):
        found = {"output": out.logits}
    else:
        hidden = model(**arguments, output_hidden_states=True).hidden_states[-1]
        found = {"output": out.logits, "hidden": hidden}
    return {name: one.numpy() for name, one in found.items()}


@torch.no_grad()
def generated(model, inputs, end, beams=1, length_penalty=1.0, new_tokens=NEW_TOKENS):
    """What it writes, without prompt and start token, 0 after the end token: (b, n), or (b, beams, n)."""
    options = {
        "max_new_tokens": new_tokens, "do_sample": False, "num_beams": beams, "num_return_sequences": beams,
        "length_penalty": length_penalty, "early_stopping": False, "eos_token_id": np.ravel(end).tolist(),
    }  # fmt: skip
    if model.config.model_type == "marian":
        ids, mask = _torch(inputs["encoder_token_ids"]), _torch(inputs["encoder_padding_mask"])
        written = model.generate(ids, attention_mask=mask, **options)[:, 1:].numpy()
    else:
        # transformers wants a prompt padded on the left.
        rows = [ids[mask] for ids, mask in zip(inputs["token_ids"], np.asarray(inputs["padding_mask"], bool))]
        width = max(len(row) for row in rows)
        ids = np.stack([np.pad(row, (width - len(row), 0)) for row in rows])
        mask = np.stack([np.arange(width) >= width - len(row) for row in rows])
        options["pad_token_id"] = 0
        written = model.generate(_torch(ids), attention_mask=_torch(mask), **options)[:, width:].numpy()
    full = np.zeros((len(written), new_tokens), "int32")
    full[:, : written.shape[1]] = written
    # After the end transformers pads with a token of its own.
    ends = np.isin(full, end)
    past = np.cumsum(ends, axis=1) - ends > 0
    full = np.where(past, 0, full)
    return full.reshape(-1, beams, new_tokens) if beams > 1 else full


def an_end(model, inputs):
    """A token that ends some rows early if it is the end token: the one written most often after a first one."""
    written = generated(model, inputs, end=-1)[:, 1:]
    tokens, counts = np.unique(written, return_counts=True)
    return int(tokens[np.argmax(counts * (tokens != 0))])


def recurrent(cell, bidirectional, seed, inputs=5, units=7, layers=2, batch=3, length=11):
    """torch.nn.LSTM or GRU with random weights on padded rows: a dict of arrays, weights under torch's names."""
    torch.manual_seed(seed)
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](
        inputs, units, layers, batch_first=True, bidirectional=bidirectional
    )
    x = torch.randn(batch, length, inputs)
    lengths = torch.tensor([length, 2, *np.random.default_rng(seed).integers(1, length + 1, size=batch - 2)])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        out, state = layer(packed)
    out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    states = state if isinstance(state, tuple) else (state,)
    mask = np.arange(length) < lengths.numpy()[:, None]
    arrays = {"inputs": x.numpy(), "mask": mask, "outputs": out.numpy()}
    arrays |= {f"state_{i}": one.numpy() for i, one in enumerate(states)}
    return arrays | {name: one.detach().numpy() for name, one in layer.named_parameters()}
