"""Recurrent encoder and decoder over LSTM or GRU cells, with the attend step between the decoder's steps.

The input of all steps is projected by one matrix product before the loop; in the loop stays what depends on the state.
"""

import keras
from keras import ops

from keras_seq import backend
from keras_seq.attention import attend
from keras_seq.cells import CELLS, as_computed
from keras_seq.masks import first_real, last_real


def _check(layer, hidden_dim, num_layers, cell):
    if cell not in CELLS:
        raise ValueError(f"{layer} needs cell in {tuple(CELLS)}, got cell={cell!r}.")
    if hidden_dim < 1 or num_layers < 1:
        got = f"hidden_dim={hidden_dim!r}, num_layers={num_layers!r}"
        raise ValueError(f"{layer} needs hidden_dim >= 1 and num_layers >= 1, got {got}.")


def _time_first(x):
    return ops.transpose(x, (1, 0, *range(2, len(x.shape))))


def _zero_state(cell, x_bsd):
    return tuple(ops.zeros((ops.shape(x_bsd)[0], cell.units), x_bsd.dtype) for _ in range(cell.num_states))


def _run(cell, x_bsd, real_bs, reverse):
    """One cell over real positions, keeping its state at padding: outputs (b, s, u) and the last state."""

    def step(state, inputs):
        projected, real = inputs
        new = cell.step(projected, state)
        state = tuple(ops.where(real, one, old) for one, old in zip(new, state))
        return state, (state[0],)

    inputs = _time_first(cell.project(x_bsd)), ops.expand_dims(_time_first(real_bs), -1)
    state, (outputs_sbu,) = backend.scan(step, _zero_state(cell, x_bsd), inputs, num_outputs=1, reverse=reverse)
    return _time_first(outputs_sbu), state


@keras.saving.register_keras_serializable("keras_seq")
class RecurrentEncoder(keras.layers.Layer):
    """Reads a sentence with stacked LSTMs or GRUs: h_s = cell(x_s, h_(s-1)), each layer over the one below.

    Sutskever et al. 2014, section 2; Cho et al. 2014, section 2.1; both directions: Bahdanau et al. 2015, section 3.2.

    Shapes:
        embedded (b, s, e), padding mask (b, s) -> outputs (b, s, u) or (b, s, 2 u) in both directions, and a tuple of
        last states, one a layer: a tuple of h (and c), each as wide as the outputs.

    Masks: at padding the state is kept, so the last state is the one after the last real position.

    Args:
        hidden_dim: u, units a direction.
        num_layers: layers on top of each other.
        cell: "lstm" or "gru".
        bidirectional: read from both ends and join the two.
        dropout: share of each layer's input dropped in training.
        go_backwards: read from the last real position to the first (Sutskever et al. 2014, section 3.3); outputs stay
            at their positions.

    Raises:
        ValueError: an unknown cell, hidden_dim < 1 or num_layers < 1.
    """

    def __init__(
        self, hidden_dim, num_layers=1, cell="lstm", bidirectional=False, dropout=0.0, go_backwards=False, **kwargs
    ):
        super().__init__(**kwargs)
        _check("RecurrentEncoder", hidden_dim, num_layers, cell)
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.cell = cell
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.go_backwards = go_backwards
        directions = ("forward", "backward") if bidirectional else ("forward",)
        self.cells = [
            [CELLS[cell](hidden_dim, dtype=self.dtype_policy, name=f"{direction}_{layer}") for direction in directions]
            for layer in range(num_layers)
        ]
        self.input_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, embedded_shape, padding_shape=None):
        width = embedded_shape[-1]
        for cells in self.cells:
            for cell in cells:
                cell.build((None, width))
            width = self.hidden_dim * len(cells)

    def call(self, embedded, padding, training=None):
        real_bs = ops.cast(padding, "bool")
        states = []
        x_bsd = embedded
        for cells in self.cells:
            x_bsd = self.input_dropout(x_bsd, training=training)
            runs = [_run(cell, x_bsd, real_bs, reverse=bool(i) != self.go_backwards) for i, cell in enumerate(cells)]
            x_bsd = ops.concatenate([outputs for outputs, _ in runs], axis=-1)
            states.append(tuple(ops.concatenate(parts, axis=-1) for parts in zip(*(state for _, state in runs))))
        return x_bsd, tuple(states)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "cell": self.cell,
            "bidirectional": self.bidirectional,
            "dropout": self.dropout,
            "go_backwards": self.go_backwards,
        }


@keras.saving.register_keras_serializable("keras_seq")
class RecurrentDecoder(keras.layers.Layer):
    """Writes a sentence with stacked LSTMs or GRUs, asking the source before each step: s_t = cell(y_t, c_t, s_(t-1)).

    With a score, c_t is recomputed at each step from the decoder's state against every encoder output (Bahdanau et al.
    2015, section 3.1); without one, it is the encoder's last output at every step (Cho et al. 2014, section 2.1), that
    is the state after all of the sentence, from whichever end it was read; with
    `feed_context=False` nothing but the first state tells of the source (Sutskever et al. 2014, section 2). With
    `input_feeding` the decoder asks after the step, of s_t, and its output tanh(W [c_t; s_t]) is given to the next step
    beside the token (Luong et al. 2015, section 3.3).

    Shapes:
        embedded (b, t, e) and what RecurrentEncoder was given and gave: outputs (b, s, d'), padding mask (b, s), states
        -> outputs (b, t, u), contexts (b, t, d'), weights (b, t, s).

    Masks: the source's, kept in the memory; the target needs none, for it is read from left to right.

    Args:
        hidden_dim: u.
        num_layers: layers on top of each other; the topmost asks.
        cell: "lstm" or "gru".
        score: DotScore, GeneralScore, AdditiveScore, or None.
        feed_context: give c_t to the cell.
        dropout: share of each layer's input dropped in training, the same units at every step.
        input_feeding: give the last step's output to the cell, in the place of c_t.
        go_backwards: the encoder's; without a score the weights then name the first position, where it ended.

    Raises:
        ValueError: an unknown cell, hidden_dim < 1 or num_layers < 1; input_feeding without a score or with
            feed_context.
    """

    def __init__(
        self,
        hidden_dim,
        num_layers=1,
        cell="lstm",
        score=None,
        feed_context=True,
        dropout=0.0,
        input_feeding=False,
        go_backwards=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check("RecurrentDecoder", hidden_dim, num_layers, cell)
        if input_feeding and (score is None or feed_context):
            got = f"score={score!r}, feed_context={feed_context!r}"
            raise ValueError(f"RecurrentDecoder with input_feeding needs a score and feed_context=False, got {got}.")
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.cell = cell
        self.score = keras.saving.deserialize_keras_object(score) if isinstance(score, dict) else score
        self.feed_context = feed_context
        self.dropout = dropout
        self.input_feeding = input_feeding
        self.go_backwards = go_backwards
        self.cells = [CELLS[cell](hidden_dim, dtype=self.dtype_policy, name=f"cell_{i}") for i in range(num_layers)]
        self.bridges = []
        self.input_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        # Between the layers the loop cannot draw random numbers, so the units to keep are drawn before it (Gal and
        # Ghahramani 2016, section 4): one draw for the whole sentence.
        self.unit_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, embedded_shape, encoder_outputs_shape):
        memory_width = encoder_outputs_shape[-1]
        for i, cell in enumerate(self.cells):
            cell.build((None, self.hidden_dim if i else embedded_shape[-1]))
        if self.feed_context:
            self.context_kernel = self.add_weight(
                shape=(memory_width, self.cells[0].gates), initializer="glorot_uniform", name="context_kernel"
            )
        if self.input_feeding:
            self.output_kernel = self.add_weight(
                shape=(memory_width + self.hidden_dim, self.hidden_dim),
                initializer="glorot_uniform",
                name="output_kernel",
            )
            self.feeding_kernel = self.add_weight(
                shape=(self.hidden_dim, self.cells[0].gates), initializer="glorot_uniform", name="feeding_kernel"
            )
        # A score that came from a configuration, or from another decoder, has its weights.
        if self.score is not None and not self.score.built:
            self.score.build((None, None, self.hidden_dim), (None, None, memory_width))
            self.score.built = True
        if memory_width != self.hidden_dim:
            self.bridges = [
                keras.layers.Dense(self.hidden_dim, "tanh", dtype=self.dtype_policy, name=f"bridge_{i}")
                for i in range(self.num_layers * self.cells[0].num_states)
            ]
            for bridge in self.bridges:
                bridge.build((None, memory_width))

    def remember(self, outputs_bsd, padding_bs, states):
        """What the decoder keeps of the source, computed once: `memory` and its first states.

        Args:
            outputs_bsd: (b, s, d') of the encoder.
            padding_bs: (b, s), 1 = real.
            states: the encoder's last states, as wide as its outputs.

        Returns:
            memory: a dict of tensors with b first, the same at every step; states for the first step.
        """
        if self.score is None:
            ended_bts = first_real(padding_bs) if self.go_backwards else last_real(padding_bs)
            memory = {"context": states[-1][0], "weights": ops.cast(ended_bts[:, 0], outputs_bsd.dtype)}
        else:
            memory = {
                "keys": self.score.project(outputs_bsd),
                "values": outputs_bsd,
                "allowed": ops.cast(padding_bs, "bool"),
            }
        # Lists where a saved graph is called, and a loop's state must keep its structure.
        states = tuple(tuple(state) for state in states)
        if self.bridges:
            bridges = iter(self.bridges)
            states = tuple(tuple(next(bridges)(part) for part in state) for state in states)
        if self.input_feeding:
            states = (*states, (ops.zeros_like(states[-1][0]),))
        return memory, states

    def look(self, state_bd, memory):
        """The attend step: context (b, d') and weights (b, s) for the state of the topmost layer."""
        if self.score is None:
            return memory["context"], memory["weights"]
        context_btd, weights_bts = attend(
            state_bd[:, None], memory["keys"], memory["values"], self.score, memory["allowed"][:, None]
        )
        return context_btd[:, 0], weights_bts[:, 0]

    def project(self, embedded):
        """The part of the first layer's gates that depends on the target alone."""
        return self.cells[0].project(embedded)

    def step(self, projected_bg, states, memory, kept=None):
        """One step: states and (output (b, u), context (b, d'), weights (b, s)); input feeding adds a state, the
        output."""
        if self.input_feeding:
            projected_bg = projected_bg + ops.matmul(states[-1][0], as_computed(self, self.feeding_kernel))
        else:
            context_bd, weights_bs = self.look(states[-1][0], memory)
        if self.feed_context:
            projected_bg = projected_bg + ops.matmul(context_bd, as_computed(self, self.context_kernel))
        new_states = [self.cells[0].step(projected_bg, states[0])]
        for i in range(1, self.num_layers):
            below_bu = new_states[-1][0] if kept is None else new_states[-1][0] * kept[i - 1]
            new_states.append(self.cells[i].step(self.cells[i].project(below_bu), states[i]))
        output_bu = new_states[-1][0]
        if self.input_feeding:
            context_bd, weights_bs = self.look(output_bu, memory)
            both = ops.concatenate([context_bd, output_bu], axis=-1)
            output_bu = ops.tanh(ops.matmul(both, as_computed(self, self.output_kernel)))
            new_states.append((output_bu,))
        return tuple(new_states), (output_bu, context_bd, weights_bs)

    def call(self, embedded, encoder_outputs, encoder_padding, encoder_states, training=None):
        memory, states = self.remember(encoder_outputs, encoder_padding, encoder_states)
        embedded = self.input_dropout(embedded, training=training)
        projected_tbg = _time_first(self.project(embedded))
        ones_bu = ops.ones((ops.shape(embedded)[0], self.hidden_dim), embedded.dtype)
        kept = [self.unit_dropout(ones_bu, training=training) for _ in range(self.num_layers - 1)]
        _, outputs = backend.scan(
            lambda state, projected: self.step(projected, state, memory, kept), states, projected_tbg, num_outputs=3
        )
        return tuple(_time_first(output) for output in outputs)

    def get_config(self):
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "cell": self.cell,
            "score": None if self.score is None else keras.saving.serialize_keras_object(self.score),
            "feed_context": self.feed_context,
            "dropout": self.dropout,
            "input_feeding": self.input_feeding,
            "go_backwards": self.go_backwards,
        }
