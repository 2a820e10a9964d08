import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from serving.client import Client, ServingError

HOST = "127.0.0.1"


def refusal(call, *arguments, **named):
    with pytest.raises(ServingError) as refused:
        call(*arguments, **named)
    return refused.value.code, refused.value.side, refused.value.message


def both(server):
    return [Client(HOST, server.port, server.rest_api_port, transport=kind, timeout=30) for kind in ("rest", "grpc")]


def test_outputs_are_named_plain_python(client):
    assert client.predict("half", {"x": [[1.0], [2.0], [5.0]]}) == {"y": [[2.5], [3.0], [4.5]]}
    assert client.predict("text", {"text": ["a", "é"]}) == {"upper": ["A", "É"]}
    answer = client.predict("text", {"first": ["a", ""], "second": ["bc", ""]}, "join")
    assert answer == {"joined": ["a|bc", "|"], "length": [3, 0]}


def test_a_signature_with_one_input_takes_the_value_alone(client):
    assert client.predict("text", ["a"]) == {"upper": ["A"]}
    code, side, message = refusal(client.predict, "text", ["a"], "join")
    assert (code, side) == ("INVALID_ARGUMENT", "client")
    assert "['first', 'second']" in message


def test_numpy_goes_in(client):
    assert client.predict("half", np.float32([[1.0], [2.0]])) == {"y": [[2.5], [3.0]]}
    assert client.predict("half", {"x": [np.float32(1.0)]}) == {"y": [2.5]}
    assert client.predict("text", np.array(["a", "b"])) == {"upper": ["A", "B"]}


def test_strings_are_str_where_they_are_utf8_and_bytes_where_not(client):
    values = ["é", b"\xff\x00", b"caf\xc3\xa9", ""]
    expected = ["é", b"\xff\x00", "café", ""]
    assert client.predict("text", values, "echo") == {"echo": expected}
    assert client.predict("text", values, "echo_bytes") == {"echo_bytes": expected}


def test_floats_are_their_shortest_decimals(client):
    assert client.predict("half", [0.2, 1e10]) == {"y": [2.1, 5e9]}
    nan, infinite = client.predict("half", [float("nan"), float("-inf")])["y"]
    assert nan != nan
    assert infinite == float("-inf")


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int8", "int32", "int64", "uint8", "uint64"])
def test_every_number_type_passes(client, dtype):
    assert client.predict("typed", [[0, 1, 3], [5, 7, 11]], dtype) == {"value": [[0, 1, 3], [5, 7, 11]]}


def test_booleans_and_scalars_pass(client):
    assert client.predict("typed", [True, False], "bool") == {"value": [True, False]}
    assert client.predict("typed", 3.5, "float32") == {"value": 3.5}
    assert client.predict("typed", 2**63 - 1, "int64") == {"value": 2**63 - 1}


def test_rest_equals_grpc_on_random_values(server):
    values = np.random.default_rng(7).normal(size=(31, 1)).astype(np.float32) * 10.0 ** np.arange(-15, 16)[:, None]
    rest, grpc = both(server)
    with rest, grpc:
        answer = rest.predict("half", values)
        assert answer == grpc.predict("half", values)
        np.testing.assert_array_equal(np.float32(answer["y"]), np.float32(values) / 2 + 2)
        assert rest.metadata("typed") == grpc.metadata("typed")
        assert rest.metadata("text") == grpc.metadata("text")
        assert rest.status("half") == grpc.status("half")


def test_a_megabyte_of_text_and_a_mixed_batch_answer_as_rows_alone(client):
    texts = ["x" * 1_000_003, "", "zwölf", "日本語"]
    together = client.predict("text", texts)["upper"]
    assert together == [client.predict("text", [text])["upper"][0] for text in texts]


def test_metadata_names_dtypes_and_shapes_and_no_init_op(client):
    assert client.metadata("half") == {
        "serving_default": {
            "inputs": {"x": {"dtype": "float32", "shape": [-1, 1]}},
            "outputs": {"y": {"dtype": "float32", "shape": [-1, 1]}},
        }
    }
    assert client.metadata("typed")["bfloat16"]["inputs"]["value"] == {"dtype": "bfloat16", "shape": None}


def test_status_lists_versions(client):
    entry = {"version": 3, "state": "AVAILABLE", "error_code": "OK", "error_message": ""}
    assert client.status("half") == [entry]


def test_a_version_can_be_asked_for(client):
    assert client.predict("half", [2.0], version=3) == {"y": [3.0]}
    assert refusal(client.predict, "half", [2.0], version=7)[:2] == ("NOT_FOUND", "server")


def test_errors_say_which_side_refused(client):
    assert refusal(client.predict, "nix", ["a"])[:2] == ("NOT_FOUND", "server")
    assert refusal(client.status, "nix")[:2] == ("NOT_FOUND", "server")
    assert refusal(client.predict, "half", [1.0], "nix")[:2] == ("INVALID_ARGUMENT", "client")
    code, _, message = refusal(client.predict, "half", {"x": [1.0], "z": [1.0]})
    assert code == "INVALID_ARGUMENT"
    assert "z" in message
    code, side, message = refusal(client.predict, "text", ["x"], "number")
    assert (code, side) == ("INVALID_ARGUMENT", "server")
    assert "StringToNumber" in message


@pytest.mark.parametrize("wrong", [["a"], [None], [[1.0], [2.0, 3.0]], [{}], [object()]])
def test_a_wrong_value_is_an_invalid_argument(client, wrong):
    assert refusal(client.predict, "half", wrong)[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_no_server_is_unavailable_at_the_transport(free_port, transport):
    with Client(HOST, free_port(), free_port(), transport=transport, timeout=3) as client:
        code, side, message = refusal(client.status, "half")
    assert (code, side) == ("UNAVAILABLE", "transport")
    assert HOST in message


def test_a_silent_server_is_given_up_after_the_timeout(free_port):
    port = free_port()
    with socket.create_server((HOST, port)), Client(HOST, rest_api_port=port, timeout=0.2) as client:
        assert refusal(client.status, "half")[:2] == ("DEADLINE_EXCEEDED", "transport")


def test_another_kind_of_server_is_told_apart(free_port):
    def answer():
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nping")

    with socket.create_server((HOST, 0)) as listening, Client(HOST, rest_api_port=listening.getsockname()[1]) as client:
        thread = threading.Thread(target=answer)
        thread.start()
        assert refusal(client.status, "half")[:2] == ("INTERNAL", "server")
        thread.join()


def test_an_unknown_transport_is_refused():
    with pytest.raises(ValueError, match="transport='carrier'"):
        Client(transport="carrier")


def test_importing_the_client_imports_no_tensorflow_no_grpc_and_no_library():
    code = (
        "import sys, serving.client; serving.client.Client().close(); "
        "print(sorted({'tensorflow', 'grpc', 'keras', 'keras_seq', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
