"""One tiny untrained model of each kind with its tokenizers: quick to build, as real as a trained one."""

import keras

import keras_seq

LINES = [
    "the old cook sees a red boat",
    "does the small doctor like my black cat ?",
    "i am a student",
    "she never sells the boats that we like",
    "the cats are not good",
]
FRENCH = [
    "le vieux cuisinier voit un bateau rouge",
    "je suis étudiant",
    "les chats n'aiment pas l'école",
    "elle est là",
]
NAMES = ("seq2seq", "attention", "transformer", "gpt", "bert", "classifier")


def build(name):
    """The arguments of `export_model` for a model: model, tokenizer and what else it needs."""
    keras.utils.set_random_seed(11)
    word = keras_seq.train_tokenizer(LINES, "word", 100)
    target = keras_seq.train_tokenizer(FRENCH, "bpe", 300)
    piece = keras_seq.train_tokenizer(LINES, "wordpiece", 60)
    sizes = (word.vocabulary_size, target.vocabulary_size)
    # Random weights of a good spread: answers that differ from each other, no ties.
    small = {"num_layers": 1, "num_heads": 2, "hidden_dim": 14, "intermediate_dim": 23, "dropout": 0.0}
    if name == "seq2seq":
        model = keras_seq.Seq2Seq(*sizes, hidden_dim=13, embedding_dim=7, num_layers=2)
    elif name == "attention":
        model = keras_seq.AttentionSeq2Seq(*sizes, hidden_dim=13, embedding_dim=7, cell="gru")
    elif name == "transformer":
        model = keras_seq.Transformer(*sizes, max_sequence_length=37, **small)
    elif name == "gpt":
        model = keras_seq.GPT(target.vocabulary_size, max_sequence_length=37, **small)
    else:
        model = keras_seq.BERT(piece.vocabulary_size, max_sequence_length=37, **small)
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape, stddev=0.5))
    if name in ("seq2seq", "attention", "transformer"):
        return {"model": model, "tokenizer": word, "target_tokenizer": target}
    if name == "gpt":
        return {"model": model, "tokenizer": target}
    if name == "bert":
        return {"model": keras_seq.BERTForPreTraining(model), "tokenizer": piece}
    labels = ["bad", "good", "neither"]
    return {"model": keras_seq.BERTClassifier(model, len(labels)), "tokenizer": piece, "labels": labels}
