"""`python -m serving`: export, check, serve, gateway, ask."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from serving.client import Client, ServingError
from serving.model_server import quiet
from serving.signatures import OPTION_DEFAULTS, SIGNATURES, WEIGHTS_DTYPES

_ASK_HELP = """\
ask a served model, over REST unless --grpc is given

The signature's inputs are found through the server's metadata. The texts fill its string input, one row each. Where it
has two string inputs (first, second; text, translation; question, context) the texts are taken in pairs: FIRST SECOND
FIRST SECOND ... A model that chooses is asked one row: PROMPT CHOICE CHOICE ...
Options hold for every row; those not given take the defaults of the table of signatures."""


class UsageError(Exception):
    """A command that cannot be followed as it stands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; 0 when it did what was asked, 1 when that was refused or failed, 2 for a wrong command."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except ServingError as error:
        return _fail(str(error), 1)
    except (UsageError, ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        return _fail(str(error), 2)
    except (OSError, RuntimeError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return 130


def export(options: argparse.Namespace) -> int:
    """Writes a run as a new version of a served model and prints its folder, and what fewer bits cost."""
    quiet.import_tensorflow()
    from serving.export import export_run

    place = export_run(options.run_folder, options.export_folder, options.version, options.weights_dtype)
    print(place)
    if options.weights_dtype != "float32":
        from serving.export import read_manifest
        from serving.weights import report

        print(report(read_manifest(place)["weights"]))
    return 0


def check(options: argparse.Namespace) -> int:
    """Prints what is in a SavedModel; 0 if stock TensorFlow Serving can run it safely."""
    quiet.import_tensorflow()
    from serving.check import check as check_saved_model

    result = check_saved_model(options.path, options.server_version)
    print(result.report())
    return 1 if result.problems else 0


def serve(options: argparse.Namespace) -> int:
    """Hosts the models of a folder."""
    from serving import launch

    return launch.serve(
        options.exports,
        options.engine,
        options.host,
        options.port,
        options.rest_api_port,
        options.enable_batching,
        options.batching_parameters_file,
    )


def gateway(options: argparse.Namespace) -> int:
    """Stands in front of a server; or makes a key."""
    from serving import gateway_config

    if options.new_key is not None:
        key, lines = gateway_config.new_key(options.new_key)
        print(f"{lines}# The key, which is kept nowhere: {key}")
        return 0
    from serving.launch import check_port

    flags = ("upstream", "host", "port", "certificate", "private_key", "anonymous")
    given = {name: getattr(options, name) for name in flags}
    config = gateway_config.load_config(options.config, models=options.model, **given)
    check_port(config.host, config.port)
    from serving.gateway import run

    return run(config)


def ask(options: argparse.Namespace) -> int:
    """Asks a model and prints its answers."""
    if options.transport == "grpc":
        quiet.import_tensorflow()  # the stubs need it
    with Client(options.host, options.port, options.rest_api_port, transport=options.transport) as client:
        signatures = client.metadata(options.name)
        if options.signature not in signatures:
            names = ", ".join(signatures)
            raise UsageError(f"model {options.name!r} has the signatures {names}, asked for {options.signature!r}.")
        inputs = fill_inputs(signatures[options.signature]["inputs"], options.texts, dict(options.option))
        outputs = client.predict(options.name, inputs, options.signature)
    print_answers(outputs, options.json)
    return 0


def fill_inputs(specs: dict[str, dict], texts: list[str], options: dict[str, str]) -> dict[str, list]:
    """The inputs of a signature: texts for its string inputs, one option value per row for the rest.

    Args:
        specs: input name -> {"dtype": ..., "shape": ...}, as `Client.metadata` gives them.
        texts: the texts, the string inputs of a row one after the other; of choices one row, the prompt before them.
        options: option name -> its value as text.

    Raises:
        UsageError: an unknown option, a value that is not a number, texts that do not fill their rows.
    """
    # In the order of the table: metadata has names in that of the alphabet.
    known = (one.inputs for table in SIGNATURES.values() for one in table.values())
    order = next((names for names in known if set(names) == set(specs)), tuple(specs))
    named = [name for name in order if specs[name]["dtype"] == "string"]
    knobs = [name for name in order if name not in named]
    for name in options:
        if name not in knobs:
            raise UsageError(f"this signature has {_listed('option', knobs)}, got --option {name}={options[name]}.")
    choices = [name for name in named if len(specs[name]["shape"] or ()) == 2]
    inputs: dict[str, list]
    if choices:
        others = [name for name in named if name not in choices]
        if len(choices) > 1 or len(texts) <= len(others):
            told = ", ".join([*others, *(f"{name} ..." for name in choices)])
            raise UsageError(f"this signature takes one row of texts, {told}, got {len(texts)} texts.")
        rows = 1
        inputs = {name: [_utf8(text)] for name, text in zip(others, texts)}
        inputs[choices[0]] = [[_utf8(text) for text in texts[len(others) :]]]
    elif not named or len(texts) % len(named):
        raise UsageError(f"this signature takes {_listed('text', named)} a row, got {len(texts)} texts.")
    else:
        rows = len(texts) // len(named)
        inputs = {name: [_utf8(text) for text in texts[start :: len(named)]] for start, name in enumerate(named)}
    for name in knobs:
        value = options[name] if name in options else _default(name, specs[name]["dtype"])
        inputs[name] = [_number(name, value, specs[name]["dtype"])] * rows
    return inputs


def _default(name: str, dtype: str) -> int | float:
    if name not in OPTION_DEFAULTS:
        raise UsageError(f"input {name!r} ({dtype}) has no default, give --option {name}=VALUE.")
    return OPTION_DEFAULTS[name]


def print_answers(outputs: dict[str, Any], as_json: bool) -> None:
    """One answer a line: the value where there is one output, JSON of all outputs where there are several.

    Outputs that do not have a value for each row, as those of other programs' models may, are one answer.
    """
    sizes = {len(values) if isinstance(values, list) else None for values in outputs.values()}
    has_rows = len(sizes) == 1 and None not in sizes
    rows = [dict(zip(outputs, values)) for values in zip(*outputs.values())] if has_rows else [outputs]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=2, default=repr))
        return
    for row in rows:
        value = next(iter(row.values())) if len(row) == 1 else row
        print(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr))


def _number(name: str, value: Any, dtype: str) -> int | float:
    try:
        return float(value) if dtype.startswith(("float", "bfloat")) else int(value)
    except ValueError:
        raise UsageError(f"option {name!r} is {dtype}, got {value!r}.") from None


def _utf8(text: str) -> str | bytes:
    """An argument as it was typed: bytes that are not UTF-8 reach Python as lone surrogates."""
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return f"no {what}s"
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({', '.join(names)})"


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"an option is key=value, got {text!r}")
    return name, value


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description="From weights to answers.")
    commands = parser.add_subparsers(required=True, metavar="export | check | serve | gateway | ask")

    command = commands.add_parser("export", help="write a run as a new version of a served model")
    command.add_argument("run_folder", metavar="RUN", help="a folder that `python -m training fit` wrote")
    command.add_argument("export_folder", metavar="EXPORT", help="the model's folder, such as exports/NAME")
    command.add_argument("--version", type=int, help="default: the highest present plus 1")
    command.add_argument(
        "--weights_dtype",
        default="float32",
        choices=WEIGHTS_DTYPES,
        help="of the stored weights, which are cast where they are used; 16 bits: what they cost is printed",
    )
    command.set_defaults(run=export)

    command = commands.add_parser("check", help="whether stock TensorFlow Serving can run a SavedModel, safely")
    command.add_argument("path", metavar="PATH", help="a version folder, such as exports/NAME/1")
    command.add_argument("--server_version", metavar="X.Y", help="refuse operations that came after this version")
    command.set_defaults(run=check)

    command = commands.add_parser("serve", help="host all models of a folder")
    command.add_argument("exports", metavar="EXPORTS", help="a folder of models, each with numbered version folders")
    command.add_argument("--engine", default="auto", choices=("auto", "tensorflow_model_server", "docker", "embedded"))
    command.add_argument("--enable_batching", action="store_true", help="merge the calls of several callers")
    command.add_argument("--batching_parameters_file", metavar="FILE", help="text protobuf, instead of ours")
    _add_address(command, default_host=None)
    command.set_defaults(run=serve)

    command = commands.add_parser(
        "gateway", help="keys, TLS, limits, logs and streams in front of a server's REST port"
    )
    command.add_argument("--config", metavar="FILE", help="YAML; the flags below go before it")
    command.add_argument("--upstream", help="the server's REST address, default: http://127.0.0.1:8501")
    command.add_argument("--model", action="append", metavar="NAME", help="a model to let through; may be repeated")
    command.add_argument("--host", help="default: 127.0.0.1")
    command.add_argument("--port", type=int, help="default: 8080")
    command.add_argument("--certificate", metavar="PEM", help="for TLS, with --private_key")
    command.add_argument("--private_key", metavar="PEM")
    command.add_argument("--anonymous", action="store_true", default=None, help="let in whoever asks, without a key")
    command.add_argument("--new_key", metavar="NAME", help="print a new key and the lines that let it in, and end")
    command.set_defaults(run=gateway)

    command = commands.add_parser(
        "ask", help="ask a served model", description=_ASK_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("name", metavar="NAME", help="the model's name")
    command.add_argument("texts", metavar="TEXT", nargs="+")
    command.add_argument("--signature", default="serving_default")
    command.add_argument("--option", type=_option, action="append", default=[], metavar="KEY=VALUE")
    transport = command.add_mutually_exclusive_group()
    transport.add_argument("--rest", dest="transport", action="store_const", const="rest", default="rest")
    transport.add_argument("--grpc", dest="transport", action="store_const", const="grpc")
    command.add_argument("--json", action="store_true", help="print the rows as JSON")
    _add_address(command, default_host="127.0.0.1")
    command.set_defaults(run=ask)
    return parser


def _add_address(command: argparse.ArgumentParser, default_host: str | None) -> None:
    command.add_argument("--host", default=default_host, help="default: 127.0.0.1")
    command.add_argument("--port", type=int, default=8500, help="gRPC, default: 8500")
    command.add_argument("--rest_api_port", type=int, default=8501, help="REST, default: 8501")


if __name__ == "__main__":
    sys.exit(main())
