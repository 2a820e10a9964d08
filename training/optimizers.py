"""The optimizer of a recipe: AdamW with warm-up, clipping, accumulation, moving average and loss scaling."""

import keras

from training.recipes import Recipe
from training.schedules import WarmUp


def schedule(recipe: Recipe) -> WarmUp:
    """The learning rate by batches, which are what Keras counts for a schedule, with accumulation too."""
    return WarmUp(recipe.learning_rate, recipe.warmup_steps, recipe.steps, recipe.decay, recipe.final_learning_rate)


def optimizer(recipe: Recipe, adamw: type = keras.optimizers.AdamW) -> keras.optimizers.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) without decay of norms and biases, as BERT was trained.

    In float16 the loss is scaled, and an update whose gradients overflow is left out (Micikevicius et al. 2018,
    section 3.2).

    Args:
        recipe: of the run.
        adamw: the class; one of `training.strategies` on several devices.
    """
    averaged = {} if recipe.ema_momentum is None else {"use_ema": True, "ema_momentum": recipe.ema_momentum}
    made = adamw(
        schedule(recipe),
        weight_decay=recipe.weight_decay,
        beta_2=recipe.beta_2,
        epsilon=1e-8,
        global_clipnorm=recipe.clip_norm,
        # Keras takes None for one batch.
        gradient_accumulation_steps=recipe.gradient_accumulation if recipe.gradient_accumulation > 1 else None,
        **averaged,
    )
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return keras.optimizers.LossScaleOptimizer(made) if recipe.dtype == "mixed_float16" else made
