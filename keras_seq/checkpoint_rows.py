"""What other programs call our layers: one table a family, read in both directions.

A row is (their name, our layer, kind): `{i}` counts blocks, a kind tells what tensors a layer has and how they lie.
"""

SAME, TRANSPOSED, ONE_ROW = "same", "transposed", "one row"

# (their suffix, our suffix, form) of each tensor of a layer.
TABLE = ((".weight", ".embeddings", SAME),)
NORM = ((".weight", ".gamma", SAME), (".bias", ".beta", SAME))
LINEAR = ((".weight", ".kernel", TRANSPOSED), (".bias", ".bias", SAME))
CONV1D = ((".weight", ".kernel", SAME), (".bias", ".bias", SAME))  # of GPT's first code: a dense layer
BIAS = (("", ".bias", SAME),)
BIAS_ROW = (("", ".bias", ONE_ROW),)

QKV = tuple(f"blocks.{{i}}.self_attention.{name}_dense" for name in ("query", "key", "value"))

BERT_ROWS = (
    ("embeddings.word_embeddings", "token_embedding", TABLE),
    ("embeddings.position_embeddings", "position_embedding", TABLE),
    ("embeddings.token_type_embeddings", "segment_embedding", TABLE),
    ("embeddings.LayerNorm", "embedding_norm", NORM),
    ("encoder.layer.{i}.attention.self.query", "blocks.{i}.self_attention.query_dense", LINEAR),
    ("encoder.layer.{i}.attention.self.key", "blocks.{i}.self_attention.key_dense", LINEAR),
    ("encoder.layer.{i}.attention.self.value", "blocks.{i}.self_attention.value_dense", LINEAR),
    ("encoder.layer.{i}.attention.output.dense", "blocks.{i}.self_attention.output_dense", LINEAR),
    ("encoder.layer.{i}.attention.output.LayerNorm", "blocks.{i}.self_attention_residual.norm", NORM),
    ("encoder.layer.{i}.intermediate.dense", "blocks.{i}.feed_forward.intermediate_dense", LINEAR),
    ("encoder.layer.{i}.output.dense", "blocks.{i}.feed_forward.output_dense", LINEAR),
    ("encoder.layer.{i}.output.LayerNorm", "blocks.{i}.feed_forward_residual.norm", NORM),
    ("pooler.dense", "pooler", LINEAR),
)
MASKED_LM_ROWS = (
    ("cls.predictions.transform.dense", "masked_lm_head.dense", LINEAR),
    ("cls.predictions.transform.LayerNorm", "masked_lm_head.norm", NORM),
    ("cls.predictions.bias", "masked_lm_head", BIAS),
)
NEXT_SENTENCE_ROWS = (("cls.seq_relationship", "next_sentence_head.dense", LINEAR),)
GPT_BLOCK_ROWS = (
    ("h.{i}.ln_1", "blocks.{i}.self_attention_residual.norm", NORM),
    ("h.{i}.attn.c_attn", QKV, CONV1D),
    ("h.{i}.attn.c_proj", "blocks.{i}.self_attention.output_dense", CONV1D),
    ("h.{i}.ln_2", "blocks.{i}.feed_forward_residual.norm", NORM),
    ("h.{i}.mlp.c_fc", "blocks.{i}.feed_forward.intermediate_dense", CONV1D),
    ("h.{i}.mlp.c_proj", "blocks.{i}.feed_forward.output_dense", CONV1D),
)
GPT2_ROWS = (
    ("wte", "token_embedding", TABLE),
    ("wpe", "position_embedding", TABLE),
    *GPT_BLOCK_ROWS,
    ("ln_f", "final_norm", NORM),
)
GPT1_ROWS = (
    ("tokens_embed", "token_embedding", TABLE),
    ("positions_embed", "position_embedding", TABLE),
    *GPT_BLOCK_ROWS,
)


def _marian_attention(theirs, ours, theirs_name, ours_name):
    names = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output"))
    return (
        *((f"{theirs}.{theirs_name}.{one}", f"{ours}.{ours_name}.{other}_dense", LINEAR) for one, other in names),
        (f"{theirs}.{theirs_name}_layer_norm", f"{ours}.{ours_name}_residual.norm", NORM),
    )


def _marian_feed_forward(theirs, ours):
    return (
        (f"{theirs}.fc1", f"{ours}.feed_forward.intermediate_dense", LINEAR),
        (f"{theirs}.fc2", f"{ours}.feed_forward.output_dense", LINEAR),
        (f"{theirs}.final_layer_norm", f"{ours}.feed_forward_residual.norm", NORM),
    )


MARIAN_ROWS = (
    *_marian_attention("encoder.layers.{i}", "encoder_blocks.{i}", "self_attn", "self_attention"),
    *_marian_feed_forward("encoder.layers.{i}", "encoder_blocks.{i}"),
    *_marian_attention("decoder.layers.{i}", "decoder_blocks.{i}", "self_attn", "self_attention"),
    *_marian_attention("decoder.layers.{i}", "decoder_blocks.{i}", "encoder_attn", "cross_attention"),
    *_marian_feed_forward("decoder.layers.{i}", "decoder_blocks.{i}"),
)


def marian_rows(model):
    """With one table of tokens, or one for each language."""
    if model.share_embeddings:
        return (("shared", "target_embedding", TABLE), *MARIAN_ROWS)
    names = (("encoder.embed_tokens", "source_embedding", TABLE), ("decoder.embed_tokens", "target_embedding", TABLE))
    return (*names, *MARIAN_ROWS)
