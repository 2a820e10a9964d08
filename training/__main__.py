"""The command line: list, fit, evaluate, study."""

import argparse
import os
import sys
import tempfile
import textwrap

# TensorFlow's own lines tell a user nothing (below 3 also of GPUs that are not there); errors come as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def parser() -> argparse.ArgumentParser:
    """The arguments of `python -m training`."""
    top = argparse.ArgumentParser(prog="python -m training", description="From text to weights.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the built-in recipes")
    fit = commands.add_parser("fit", help="train a recipe into a folder")
    fit.add_argument("recipe", metavar="RECIPE", help="a built-in name, or the path of a YAML file")
    fit.add_argument("--set", action="append", nargs="+", default=[], metavar="KEY=VALUE", help="change keys of it")
    fit.add_argument("--out", required=True, metavar="runs/NAME", help="the run's folder")
    fit.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    fit.add_argument("--tensorboard", action="store_true", help="also write the run's tensorboard/")
    fit.add_argument(
        "--strategy", choices=("mirrored", "multiworker"), help="train on all devices, or on TF_CONFIG's workers"
    )
    evaluate = commands.add_parser("evaluate", help="measure a run on held-out data")
    evaluate.add_argument("run", metavar="runs/NAME")
    evaluate.add_argument("--split", choices=("train", "validation", "test"), default="test")
    evaluate.add_argument(
        "--num_beams", type=int, help="of a translator: beam search instead of the greedy translation"
    )
    evaluate.add_argument("--length_penalty", type=float, default=1.0, help="of the beams; more: longer translations")
    evaluate.add_argument("--endpoint", metavar="HOST:PORT/NAME", help="ask a served model over gRPC instead")
    evaluate.add_argument("--host", default="127.0.0.1", help="of the served model")
    evaluate.add_argument("--port", type=int, help="gRPC port of the served model")
    evaluate.add_argument("--rest_api_port", type=int, help="REST port of the served model")
    study = commands.add_parser(
        "study", help="measure what the three translators' history claims, as plots and a table"
    )
    study.add_argument("--out", default="runs/study", metavar="DIR", help="where results, pictures and runs go")
    study.add_argument("--quick", action="store_true", help="in a minute, to see that it runs; its numbers say nothing")
    return top


def import_tensorflow() -> None:
    """Imports TensorFlow without the lines that it writes to file descriptor 2 whatever the log level."""
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            kept.seek(0)
            os.write(real, kept.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


def show_recipes() -> None:
    """Two lines a recipe, more where they would pass 100 columns: what it trains on what, and the model."""
    from training.recipes import RECIPES

    for name, recipe in RECIPES.items():
        tokenizer = (
            f"from {recipe.start_from}" if recipe.start_from else f"{recipe.tokenizer} {recipe.vocabulary_size:,}"
        )
        steps = f"{recipe.steps:,} x {recipe.tokens_per_batch:,} tokens"
        print(f"{name:27}{recipe.architecture:17}{recipe.corpus:19}{steps}")
        model = "  ".join([*(f"{key}={value}" for key, value in recipe.model.items()), tokenizer])
        print(textwrap.fill(model, 100, initial_indent=" " * 8, subsequent_indent=" " * 8))


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; the exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "list":
            show_recipes()
        elif options.command == "fit":
            from training.recipes import find, parse_settings

            changes = parse_settings([setting for group in options.set for setting in group])
            recipe = find(options.recipe).replace(**changes)
            import_tensorflow()
            recipe.check_model()
            from training import evaluate, plot, run

            fitted = run.fit(
                recipe, options.out, options.resume, tensorboard=options.tensorboard, strategy=options.strategy
            )
            if fitted.folder.is_dir():  # else the first worker does this
                plot.draw(fitted.folder)
                evaluate.show(evaluate.evaluate_run(fitted))
        elif options.command == "study":
            import_tensorflow()
            from training import study

            print(study.table(study.study(options.out, study.QUICK if options.quick else study.FULL)), end="")
        else:
            import_tensorflow()
            from training import evaluate, run

            beams = evaluate.beams_of(options)
            served = evaluate.endpoint(options, beams)
            evaluate.show(evaluate.evaluate_run(run.load_run(options.run), options.split, served, beams))
    except (ValueError, OSError) as error:
        if os.environ.get("KERAS_SEQ_TRACEBACK"):
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
