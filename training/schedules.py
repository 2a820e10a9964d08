"""Learning rates over time: linear warm-up to a peak, then one of three decays."""

import keras
from keras import ops

from training.recipes import DECAYS


@keras.saving.register_keras_serializable("keras_seq")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """peak * step / warmup_steps up to the peak, then decay to `final` at `steps` (inverse square root: for ever).

    Vaswani et al. 2017, section 5.3 (inverse square root); Loshchilov and Hutter 2017 (cosine).

    Args:
        peak: the greatest learning rate.
        warmup_steps: steps to reach it, >= 1.
        steps: steps of the whole run.
        decay: "constant", "linear", "cosine" or "inverse_square_root".
        final: the learning rate that the decay ends at.

    Raises:
        ValueError: an unknown decay, warmup_steps < 1, or a final rate that is not between 0 and the peak.
    """

    def __init__(self, peak, warmup_steps, steps, decay="cosine", final=0.0):
        if decay not in DECAYS:
            raise ValueError(f"WarmUp needs decay in {DECAYS}, got decay={decay!r}.")
        if warmup_steps < 1:
            raise ValueError(f"WarmUp needs warmup_steps >= 1, got warmup_steps={warmup_steps!r}.")
        if not 0 <= final <= peak:
            raise ValueError(f"WarmUp needs final between 0 and peak={peak!r}, got final={final!r}.")
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.steps = steps
        self.decay = decay
        self.final = final

    def __call__(self, step):
        step = ops.cast(step, "float32") + 1.0
        rising = step / self.warmup_steps
        done = ops.clip((step - self.warmup_steps) / max(1, self.steps - self.warmup_steps), 0.0, 1.0)
        falling = {
            "constant": lambda: ops.ones_like(done),
            "linear": lambda: 1.0 - done,
            "cosine": lambda: 0.5 * (1.0 + ops.cos(done * 3.141592653589793)),
            "inverse_square_root": lambda: ops.sqrt(self.warmup_steps / ops.maximum(step, 1.0)),
        }[self.decay]()
        return ops.where(rising < 1.0, self.peak * rising, self.final + (self.peak - self.final) * falling)

    def get_config(self):
        names = ("peak", "warmup_steps", "steps", "decay", "final")
        return {name: getattr(self, name) for name in names}
