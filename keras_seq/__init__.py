"""Sequence models in Keras, from text to a served answer.

A letter per axis, as a suffix on local names: b batch, t asking positions, s asked positions, d model, h heads,
c channels of a head, v vocabulary; in places also e embedding, u units, g gates, p masked positions, n new tokens,
w beams, k candidates, r rows (b * w).
"""

from keras_seq.attention import AdditiveScore, DotScore, GeneralScore, MultiHeadAttention, attend
from keras_seq.blocks import DecoderBlock, EncoderBlock, FeedForward, Residual
from keras_seq.cells import GRUCell, LSTMCell
from keras_seq.checkpoints import load_checkpoint, save_checkpoint
from keras_seq.embeddings import TokenEmbedding
from keras_seq.generation import generate, score, stream
from keras_seq.heads import ChoiceHead, ClassificationHead, MaskedLMHead, SpanHead, best_spans
from keras_seq.losses import TokenAccuracy, TokenCrossentropy, TokenLoss, TokenPerplexity
from keras_seq.models.bert import (
    BERT,
    BERTClassifier,
    BERTForPreTraining,
    BERTMultipleChoice,
    BERTSpanClassifier,
    BERTTokenClassifier,
)
from keras_seq.models.gpt import GPT, GPTClassifier, GPTMultipleChoice, GPTSimilarityClassifier
from keras_seq.models.seq2seq import AttentionSeq2Seq, Seq2Seq
from keras_seq.models.transformer import Transformer
from keras_seq.positions import PositionEmbedding, RotaryEmbedding, SinePositionEncoding
from keras_seq.recurrent import RecurrentDecoder, RecurrentEncoder
from keras_seq.samplers import BeamSampler, GreedySampler, RandomSampler
from keras_seq.sizes import SIZES
from keras_seq.task_inputs import (
    classification_inputs,
    entailment_inputs,
    language_model_targets,
    multiple_choice_inputs,
    similarity_inputs,
)
from keras_seq.text import (
    BytePairTokenizer,
    CharacterTokenizer,
    OpenAIGPTTokenizer,
    WordPieceTokenizer,
    WordTokenizer,
    load_tokenizer,
    train_tokenizer,
)
from keras_seq.tuning import enable_gradient_checkpointing, enable_lora

__all__ = [
    "BERT",
    "GPT",
    "SIZES",
    "AdditiveScore",
    "AttentionSeq2Seq",
    "BERTClassifier",
    "BERTForPreTraining",
    "BERTMultipleChoice",
    "BERTSpanClassifier",
    "BERTTokenClassifier",
    "BeamSampler",
    "BytePairTokenizer",
    "CharacterTokenizer",
    "ChoiceHead",
    "ClassificationHead",
    "DecoderBlock",
    "DotScore",
    "EncoderBlock",
    "FeedForward",
    "GPTClassifier",
    "GPTMultipleChoice",
    "GPTSimilarityClassifier",
    "GRUCell",
    "GeneralScore",
    "GreedySampler",
    "LSTMCell",
    "MaskedLMHead",
    "MultiHeadAttention",
    "OpenAIGPTTokenizer",
    "PositionEmbedding",
    "RandomSampler",
    "RecurrentDecoder",
    "RecurrentEncoder",
    "Residual",
    "RotaryEmbedding",
    "Seq2Seq",
    "SinePositionEncoding",
    "SpanHead",
    "TokenAccuracy",
    "TokenCrossentropy",
    "TokenEmbedding",
    "TokenLoss",
    "TokenPerplexity",
    "Transformer",
    "WordPieceTokenizer",
    "WordTokenizer",
    "attend",
    "best_spans",
    "classification_inputs",
    "enable_gradient_checkpointing",
    "enable_lora",
    "entailment_inputs",
    "generate",
    "language_model_targets",
    "load_checkpoint",
    "load_tokenizer",
    "multiple_choice_inputs",
    "save_checkpoint",
    "score",
    "similarity_inputs",
    "stream",
    "train_tokenizer",
]
