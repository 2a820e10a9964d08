"""Checkpoints of a model of two layers: what is kept, what a full disk leaves, and which weights the run leaves."""

import errno
import os
import resource
import time

import keras
import numpy as np
import pytest

import keras_seq
from training.checkpointing import Checkpoints, average, folders, save_weights, token_means
from training.optimizers import optimizer


def tiny(recipe):
    keras.utils.set_random_seed(3)
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    hidden = keras.layers.Dropout(0.3)(keras.layers.Embedding(11, 5)(ids))
    model = keras.Model({"token_ids": ids}, keras.layers.Dense(11)(hidden))
    model.compile(optimizer(recipe), keras_seq.TokenCrossentropy(), weighted_metrics=[keras_seq.TokenLoss()])
    model.optimizer.build(model.trainable_variables)
    return model


def a_step(model, seed=5):
    ids = np.random.default_rng(seed).integers(11, size=(3, 7))
    return model.train_on_batch({"token_ids": ids}, ids, np.ones((3, 7), "float32"), return_dict=True)


def kept_for(recipe, model, folder):
    kept = Checkpoints(recipe, folder, time.perf_counter())
    kept.set_model(model)
    return kept


@pytest.fixture(scope="module")
def recipe(conftest):
    return conftest.tiny_recipe("gpt", dtype="mixed_float16", ema_momentum=0.7, gradient_accumulation=2)


def test_a_model_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(recipe, tmp_path):
    """In float16, with a moving average and in the middle of an accumulation; and with the measures of the epoch."""
    one = tiny(recipe)
    for seed in (3, 5, 7):
        a_step(one, seed)
    kept = kept_for(recipe, one, tmp_path)
    kept.step, kept.epochs, kept.tokens = 17, 1, (23, 29)
    kept.save()
    other = tiny(recipe)
    a_step(other, 13)  # builds its measures, as fit does before the epoch begins
    again = kept_for(recipe, other, tmp_path)
    again.restore(other)
    assert (again.step, again.epochs, again.tokens) == (17, 1, (23, 29))
    again.on_epoch_begin(1)
    for seed in (3, 5, 7):
        assert a_step(one, seed) == pytest.approx(a_step(other, seed), abs=1e-6)
    for mine, its in zip([*one.variables, *one.optimizer.variables], [*other.variables, *other.optimizer.variables]):
        np.testing.assert_allclose(np.array(mine, "float32"), np.array(its, "float32"), atol=1e-6, err_msg=mine.path)


def test_an_epoch_after_a_resumption_begins_with_no_measures_of_the_one_before(recipe, tmp_path):
    model = tiny(recipe)
    a_step(model)
    kept = kept_for(recipe, model, tmp_path)
    kept.step, kept.epochs = recipe.steps_per_epoch, 1
    kept.save()
    model.reset_metrics()
    again = kept_for(recipe, model, tmp_path)
    again.restore(model)
    again.on_epoch_begin(1)
    assert not any(np.any(np.array(one)) for one in model.metrics_variables)


def test_the_newest_checkpoints_stay_and_are_averaged(conftest, tmp_path):
    recipe = conftest.tiny_recipe("gpt", average_checkpoints=2)
    model, seen = tiny(recipe), []
    kept = kept_for(recipe, model, tmp_path)
    for step in (9, 10, 11):
        a_step(model)
        kept.step = step
        kept.save()
        seen.append(model.get_weights())
    assert [path.name for path in folders(tmp_path)] == ["step-10", "step-11"]
    kept.take_final_weights()
    for mean, *both in zip(model.get_weights(), *seen[-2:], strict=True):
        np.testing.assert_allclose(mean, np.mean(both, axis=0), atol=1e-7)
    average(model, [folders(tmp_path)[0] / "model.weights.h5"])
    np.testing.assert_array_equal(model.get_weights()[0], seen[1][0])


def test_a_full_disk_loses_no_good_checkpoint(conftest, tmp_path, monkeypatch):
    recipe = conftest.tiny_recipe("gpt")
    model = tiny(recipe)
    kept = kept_for(recipe, model, tmp_path)
    kept.step = 9
    kept.save()
    good = model.get_weights()
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    a_step(model)
    kept.step = 10

    def half(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model, "save_weights", half)
    with pytest.raises(OSError, match="No space left on device"):
        kept.save()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == whole
    kept_for(recipe, model, tmp_path).restore(model)
    np.testing.assert_array_equal(model.get_weights()[0], good[0])


def test_what_has_no_room_is_an_error_of_python_and_not_of_hdf5(conftest, tmp_path):
    """On a disk that is really full HDF5 ends the process: it cannot close what it could not write."""
    model = tiny(conftest.tiny_recipe("gpt"))
    save_weights(model, tmp_path / "whole.weights.h5")
    size = (tmp_path / "whole.weights.h5").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: [\d,]+ bytes are needed: .*less\.weights\.h5"):
            save_weights(model, tmp_path / "less.weights.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", ["model.weights.h5", "state.npz", "state.json"])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_a_broken_checkpoint_is_named(name, content, conftest, tmp_path):
    recipe = conftest.tiny_recipe("gpt")
    model = tiny(recipe)
    kept = kept_for(recipe, model, tmp_path)
    kept.step = 9
    kept.save()
    file = tmp_path / "checkpoints" / "step-9" / name
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    with pytest.raises(ValueError, match=r"The checkpoint .*step-9 is broken: .*Without it --resume goes on from"):
        kept_for(recipe, model, tmp_path).restore(model)


def test_weights_that_are_not_finite_are_never_a_checkpoint(conftest, tmp_path):
    recipe = conftest.tiny_recipe("gpt")
    model = tiny(recipe)
    kept = kept_for(recipe, model, tmp_path)
    model.set_weights([np.full_like(one, np.nan) for one in model.get_weights()])
    with pytest.raises(ValueError, match="The weights are not finite at step 0"):
        kept.save()
    assert not folders(tmp_path)


def test_a_run_that_gets_no_better_stops_with_its_best_weights(conftest, tmp_path):
    recipe = conftest.tiny_recipe("gpt", early_stopping=2, steps_per_epoch=2)
    model = tiny(recipe)
    kept, seen = kept_for(recipe, model, tmp_path), []
    for epoch, loss in enumerate([np.nan, 2.0, 2.5, 2.0, 1.0]):
        kept.on_epoch_begin(epoch)
        for _ in range(2):
            a_step(model)
            kept.on_train_batch_end(0)
        assert model.stop_training  # the epoch's end
        kept.on_epoch_end(epoch, {"token_loss": loss, "loss": 0.0, "val_token_loss": loss, "val_loss": 0.0})
        seen.append(model.get_weights())
        if model.stop_training:
            break
        # A run that was interrupted here knows what it has seen.
        kept = kept_for(recipe, model, tmp_path)
        kept.restore(model)
    assert epoch == 3
    kept.take_final_weights()
    np.testing.assert_array_equal(model.get_weights()[0], seen[1][0])


def test_losses_in_the_logs_are_means_over_tokens():
    logs = {"loss": 9.0, "accuracy": 0.5, "token_loss": 2.0, "val_loss": 8.0, "val_token_loss": 3.0}
    assert token_means(logs) == {"loss": 2.0, "accuracy": 0.5, "val_loss": 3.0}
    logs = {"loss": 9.0, "a_loss": 7.0, "b_loss": 6.0, "a_token_loss": 2.0, "b_token_loss": 3.0}
    assert token_means(logs) == {"loss": 5.0, "a_loss": 2.0, "b_loss": 3.0}
    assert token_means({"loss": 9.0}) == {"loss": 9.0}
