import json
import socket
import subprocess
import sys
import types

import pytest

from serving import __main__ as command_line

HOST = "127.0.0.1"


@pytest.fixture
def run(capsys):
    """Runs a command line in this process; its exit code, stdout and stderr."""

    def call(*arguments):
        try:
            code = command_line.main([str(argument) for argument in arguments])
        except SystemExit as left:
            code = left.code
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return call


@pytest.fixture(params=["--rest", "--grpc"])
def ask(run, server, request):
    def call(*arguments):
        ports = ["--port", server.port, "--rest_api_port", server.rest_api_port]
        return run("ask", *arguments, request.param, *ports)

    return call


@pytest.fixture
def module(monkeypatch):
    """Puts a module in the place of one that these commands only call."""

    def put(name, **members):
        stand_in = types.ModuleType(name)
        vars(stand_in).update(members)
        monkeypatch.setitem(sys.modules, name, stand_in)

    return put


def test_ask_prints_one_answer_a_line(ask):
    assert ask("text", "ein Hund", "zwölf", "") == (0, "EIN HUND\nZWÖLF\n\n", "")


def test_ask_prints_json(ask):
    code, out, _ = ask("text", "a", "--json")
    assert (code, json.loads(out)) == (0, [{"upper": "A"}])


def test_outputs_without_a_value_for_each_row_are_one_answer(capsys):
    command_line.print_answers({"total": 5.0}, False)
    command_line.print_answers({"rows": [1, 2], "total": 5.0}, False)
    command_line.print_answers({"a": [1, 2], "b": [3]}, False)
    command_line.print_answers({"a": ["x", "y"]}, False)
    assert capsys.readouterr().out.splitlines() == [
        "5.0",
        '{"rows": [1, 2], "total": 5.0}',
        '{"a": [1, 2], "b": [3]}',
        "x",
        "y",
    ]


def test_ask_takes_texts_in_pairs_where_two_are_needed(ask):
    code, out, _ = ask("text", "a", "bc", "d", "efg", "--signature", "join")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {"joined": "a|bc", "length": 3},
        {"joined": "d|efg", "length": 4},
    ]


def test_ask_passes_bytes_that_are_not_utf8(ask):
    assert ask("text", "caf\udce9", "--signature", "echo")[:2] == (0, "\"b'caf\\\\xe9'\"\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nix", "a"], 1, "nix"),
        (["text", "a", "--signature", "nix"], 2, "asked for 'nix'"),
        (["text", "a", "--signature", "join"], 2, "takes 2 texts (first, second) a row, got 1 texts"),
        (["text", "a", "--option", "seed=3"], 2, "has no options, got --option seed=3"),
        (["text", "a", "--option", "seed"], 2, "an option is key=value, got 'seed'"),
        (["half", "a"], 2, "takes no texts a row"),
        (["text", "x", "--signature", "number"], 1, "INVALID_ARGUMENT (server)"),
    ],
)
def test_a_wrong_question_is_an_error_in_words(ask, arguments, code, words):
    got, out, err = ask(*arguments)
    assert (got, out) == (code, "")
    assert "error: " in err
    assert words in err


def test_no_server_is_an_error_in_words(run, free_port):
    code, _, err = run("ask", "text", "a", "--rest_api_port", free_port())
    assert code == 1
    assert err.startswith("error: UNAVAILABLE (transport): cannot reach http://127.0.0.1:")


def test_options_fill_every_row_and_the_rest_take_their_defaults(module):
    module("serving.signatures", OPTION_DEFAULTS={"temperature": 1.0, "top_k": 0, "seed": 0})
    specs = {
        "text": {"dtype": "string", "shape": [-1]},
        "temperature": {"dtype": "float32", "shape": [-1]},
        "top_k": {"dtype": "int32", "shape": [-1]},
        "seed": {"dtype": "int64", "shape": [-1]},
    }
    inputs = command_line.fill_inputs(specs, ["a", "b", "c"], {"temperature": "0.5", "seed": "7"})
    assert inputs == {"text": ["a", "b", "c"], "temperature": [0.5] * 3, "top_k": [0] * 3, "seed": [7] * 3}
    for options, words in (
        ({"seed": "7.5"}, "option 'seed' is int64, got '7.5'"),
        ({"sed": "7"}, "3 options (temperature, top_k, seed), got --option sed=7"),
    ):
        with pytest.raises(command_line.UsageError) as refused:
            command_line.fill_inputs(specs, ["a"], options)
        assert words in str(refused.value)
    specs["beams"] = {"dtype": "int32", "shape": [-1]}
    with pytest.raises(command_line.UsageError, match="--option beams=VALUE"):
        command_line.fill_inputs(specs, ["a"], {})


def test_texts_are_taken_in_the_order_of_the_table_and_choices_after_their_prompt():
    text, choices = {"dtype": "string", "shape": [-1]}, {"dtype": "string", "shape": [-1, -1]}
    for first, second in (("question", "context"), ("text", "translation"), ("first", "second")):
        specs = dict.fromkeys(sorted((first, second)), text)
        assert command_line.fill_inputs(specs, ["a", "b", "c", "d"], {}) == {first: ["a", "c"], second: ["b", "d"]}
    specs = {"choices": choices, "prompt": text}
    filled = command_line.fill_inputs(specs, ["why", "so", "or so", "or"], {})
    assert filled == {"prompt": ["why"], "choices": [["so", "or so", "or"]]}
    with pytest.raises(command_line.UsageError, match=r"one row of texts, prompt, choices \.\.\., got 1 texts"):
        command_line.fill_inputs(specs, ["why"], {})


def test_export_passes_its_arguments_on_and_prints_the_folder(run, module):
    called = []

    def export_run(*arguments, **named):
        called.append((arguments, named))
        return "exports/a/7"

    module("serving.export", export_run=export_run)
    assert run("export", "runs/a", "exports/a", "--version", "7") == (0, "exports/a/7\n", "")
    assert called == [(("runs/a", "exports/a", 7, "float32"), {})]


def test_a_refused_export_is_an_error_in_words(run, module):
    def export_run(*_, **__):
        raise FileNotFoundError("export needs a run folder, there is none at runs/nix.")

    module("serving.export", export_run=export_run)
    code, _, err = run("export", "runs/nix", "exports/nix")
    assert (code, err) == (2, "error: export needs a run folder, there is none at runs/nix.\n")


@pytest.mark.parametrize(("problems", "code"), [([], 0), (["an XLA function"], 1)])
def test_check_exits_with_0_only_without_problems(run, module, problems, code):
    report = types.SimpleNamespace(problems=problems, report=lambda: "what is in it")
    module("serving.check", check=lambda path, version: report)
    assert run("check", "exports/a/1") == (code, "what is in it\n", "")


def test_serve_refuses_a_missing_folder_in_words(run, tmp_path):
    code, _, err = run("serve", tmp_path / "nix")
    assert (code, err) == (2, f"error: serve needs a folder of exported models, there is none at {tmp_path}/nix.\n")


def test_a_new_key_is_printed_with_the_lines_that_let_it_in(run):
    code, out, _ = run("gateway", "--new_key", "alice")
    assert code == 0
    assert out.startswith("keys:\n  - name: alice\n    sha256: ")


def test_a_gateway_without_models_keys_or_a_free_port_is_refused_in_words(run, free_port):
    assert run("gateway")[::2] == (2, "error: the gateway needs the names of the models it lets through, got none.\n")
    code, _, err = run("gateway", "--model", "half")
    assert code == 2 and "either keys or anonymous" in err
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run("gateway", "--model", "half", "--anonymous", "--port", port)
    assert (code, err) == (1, f"error: cannot listen on {HOST}:{port}: Address already in use.\n")


def test_help_documents_the_pairs(run):
    code, out, _ = run("ask", "--help")
    assert code == 0
    assert "taken in pairs" in out


@pytest.mark.slow
def test_ask_as_a_program_is_quiet_over_grpc(server):
    command = [sys.executable, "-m", "serving", "ask", "text", "a", "--grpc", "--port", str(server.port)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "A\n", "")
