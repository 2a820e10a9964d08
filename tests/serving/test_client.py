import asyncio
import contextlib
import inspect
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import pytest

from serving.client import AsyncClient, Client, Retries, ServingError, _Questions

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


@pytest.mark.parametrize("dtype", ["float64", "int8", "int32", "int64", "uint8", "uint64"])
def test_every_number_type_passes(client, dtype):
    assert client.predict("typed", [[0, 1, 3], [5, 7, 11]], dtype) == {"value": [[0, 1, 3], [5, 7, 11]]}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_passes_over_grpc_and_has_no_json(server, dtype):
    rest, grpc = both(server)
    with rest, grpc:
        assert grpc.predict("typed", [[0, 1, 3], [5, 7, 11]], dtype) == {"value": [[0, 1, 3], [5, 7, 11]]}
        assert refusal(rest.predict, "typed", [[0, 1, 3]], dtype)[:2] == ("UNIMPLEMENTED", "server")


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


@pytest.mark.parametrize(
    ("value", "dtype"), [(2**31, "int32"), (-1, "uint64"), (2**63, "int64"), (300, "uint8"), (1e39, "float32")]
)
def test_a_number_beyond_its_dtype_is_refused_and_not_another_one_sent(client, value, dtype):
    assert refusal(client.predict, "typed", [1, value], dtype)[0] == "INVALID_ARGUMENT"
    with pytest.raises(ServingError, match="INVALID_ARGUMENT"):
        client.predict("typed", np.array([value]), dtype)


@pytest.mark.parametrize("wrong", [["a", ["b", "c"]], [["a", "b"], ["c"]], [[], ["a"]], [["a"], "b"]])
def test_ragged_text_is_refused_and_none_of_it_dropped(client, wrong):
    assert refusal(client.predict, "text", wrong, "echo")[0] == "INVALID_ARGUMENT"


def test_a_timeout_may_be_infinite(client):
    assert client.predict("half", [2.0], timeout=float("inf")) == {"y": [3.0]}


def test_an_address_that_is_none_is_refused_in_words_and_one_in_brackets_is_taken(free_port):
    with Client("localhost:8501") as client:
        code, side, message = refusal(client.status, "half")
    assert (code, side, "localhost:8501" in message) == ("INVALID_ARGUMENT", "client", True)
    with Client("[::1]", rest_api_port=free_port(), retries=QUICK) as client:
        code, side, message = refusal(client.status, "half")
    assert (code, side, "http://[::1]:" in message) == ("UNAVAILABLE", "transport", True)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_host_that_has_no_address_is_not_reached(transport):
    with Client("no-such-host.invalid", transport=transport, timeout=3, retries=QUICK) as client:
        assert refusal(client.status, "half")[1] == "transport"


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_no_server_is_unavailable_at_the_transport(free_port, transport):
    with Client(HOST, free_port(), free_port(), transport=transport, timeout=3, retries=QUICK) as client:
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


def test_importing_the_rest_client_imports_nothing_heavy_and_takes_under_03_s():
    code = (
        "import sys, time; started = time.process_time(); import serving.client; serving.client.Client().close(); "
        "print(time.process_time() - started); "
        "print(sorted({'tensorflow', 'grpc', 'keras', 'keras_seq', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    seconds, heavy = found.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 0.3


# ---- Examples ------------------------------------------------------------------------------------------------------


def test_classes_are_labels_with_scores(client):
    rows = client.classify("examples", [{"x": 2.0, "k": 7}, {"x": np.float32([5.0])}], "classify_both")
    assert rows == [[("7", 3.0), ("7!", 6.0)], [("0", 4.5), ("0!", 9.0)]]
    assert client.classify("examples", [{"x": 2.0}], "classify_x_to_y", version=5) == [[("", 3.0)]]
    assert client.classify("examples", [{"x": 2.0, "k": True}], "classify_labels") == [[("1", 0.0)]]


def test_regressed_values_are_a_float_an_example(client):
    assert client.regress("examples", [{"x": [2.0]}, {"x": 0.2}], "regress_x_to_y") == [3.0, 2.1]


def test_an_example_lies_over_the_context(client):
    rows = [{"x": 2.0}, {"x": 5.0, "k": 3}]
    told = client.classify("examples", rows, "classify_labels", context={"k": 11, "x": 7.0})
    assert told == [[("11", 0.0)], [("3", 0.0)]]
    assert client.regress("examples", [{}], "regress_x_to_y", context={"x": 2.0}) == [3.0]


def test_classify_and_regress_answer_the_stubs_messages_as_their_outputs(client, channel):
    from tensorflow_serving.apis import classification_pb2, prediction_service_pb2_grpc

    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "examples", "classify_both"
    example = request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(0.7)
    example.features.feature["k"].int64_list.value.append(-(2**63))
    (row,) = prediction_service_pb2_grpc.PredictionServiceStub(channel).Classify(request).result.classifications
    (told,) = client.classify("examples", [{"x": 0.7, "k": -(2**63)}], "classify_both")
    assert [(label, np.float32(score)) for label, score in told] == [(one.label, one.score) for one in row.classes]


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (7, "an example is a dict of features, got int"),
        ({3: 2.0}, "a feature's name is a str, got 3"),
        ({"x": None}, "feature 'x' needs str, bytes, int, bool or float, got NoneType"),
        ({"x": [[2.0]]}, "feature 'x' needs str, bytes, int, bool or float, got list"),
        ({"x": [2.0, 3]}, "feature 'x' needs values of one kind, got float_list, int64_list"),
        ({"k": 2**63}, "feature 'k' needs integers of 64 bits, got 9223372036854775808"),
        ({"x": 1e39}, r"feature 'x' needs floats of 32 bits, got 1e+39"),
        ({"k": "\udcff"}, "surrogates not allowed"),
    ],
)
def test_an_example_that_no_server_could_read_is_not_sent(client, example, words):
    for ask in (client.classify, client.regress):
        code, side, message = refusal(ask, "examples", [example], "regress_x_to_y")
        assert (code, side) == ("INVALID_ARGUMENT", "client")
        assert words in message


def test_what_the_server_refuses_of_examples_is_told(client):
    assert refusal(client.classify, "examples", [])[:2] == ("INVALID_ARGUMENT", "server")
    assert refusal(client.regress, "examples", [{"x": 2}], "regress_x_to_y")[:2] == ("INVALID_ARGUMENT", "server")
    assert refusal(client.regress, "nix", [{"x": 2.0}])[:2] == ("NOT_FOUND", "server")
    code, side, message = refusal(client.regress, "examples", [{"x": 2.0}], "classify_both")
    assert (code, side) == ("INVALID_ARGUMENT", "server")
    assert "Regress" in message


# ---- Values, limits, addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_numpy_comes_out_when_asked_for(server, transport):
    with Client(HOST, server.port, server.rest_api_port, transport=transport, numpy=True) as client:
        numbers = client.predict("half", np.float32([[1.0], [2.0], [5.0]]))["y"]
        words = client.predict("text", np.array(["a", b"\xff"], "O"), "echo")["echo"]
        values = client.regress("examples", [{"x": 2.0}, {"x": 5.0}], "regress_x_to_y")
        if transport == "grpc":
            assert client.predict("typed", [1, 2], "bfloat16")["value"].dtype == np.float32
    assert (numbers.dtype, numbers.tolist()) == (np.float32, [[2.5], [3.0], [4.5]])
    assert (values.dtype, values.tolist()) == (np.float32, [3.0, 4.5])
    assert (words.dtype, words.tolist()) == (np.dtype("O"), ["a", b"\xff"])


def test_a_float_array_is_no_integer_even_as_numpy(client):
    assert refusal(client.predict, "typed", np.float32([1.5]), "int32")[0] == "INVALID_ARGUMENT"


def test_a_version_can_be_asked_for_by_label(client):
    assert client.predict("half", [2.0], version="stable") == {"y": [3.0]}
    assert refusal(client.predict, "half", [2.0], version="nix")[1] == "server"


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_both_message_limits_are_the_clients_and_say_so(server, transport):
    ports = (HOST, server.port, server.rest_api_port)
    with Client(*ports, transport=transport, max_send_bytes=5003) as client:
        code, side, message = refusal(client.predict, "text", ["x" * 5003])
        assert (code, side) == ("RESOURCE_EXHAUSTED", "client")
        assert "max_send_bytes=5003" in message
    with Client(*ports, transport=transport, max_receive_bytes=5003) as client:
        code, side, message = refusal(client.predict, "text", ["x" * 5003])
        assert (code, side) == ("RESOURCE_EXHAUSTED", "client")
        assert "5003" in message


def test_arguments_out_of_range_are_refused_with_what_came():
    for named, words in (
        ({"transport": "carrier"}, "transport='carrier'"),
        ({"timeout": 0}, "timeout=0"),
        ({"max_send_bytes": 2**31}, "max_send_bytes=2147483648"),
        ({"max_receive_bytes": 0}, "max_receive_bytes=0"),
    ):
        with pytest.raises(ValueError, match=words):
            Client(**named)


# ---- The asynchronous twin -----------------------------------------------------------------------------------------

EXAMPLES = [{"x": 2.0}, {"x": 5.0, "k": 3}]


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_awaited_answers_and_errors_equal_the_waited_for(server, transport):
    ports = (HOST, server.port, server.rest_api_port)

    async def ask():
        async with AsyncClient(*ports, transport=transport, timeout=30) as client:
            calls = [client.predict("half", [float(n)]) for n in range(7)]
            answers = [*await asyncio.gather(*calls), await client.metadata("half"), await client.status("half")]
            answers.append(await client.classify("examples", EXAMPLES, "classify_both", context={"k": 7}))
            answers.append(await client.regress("examples", EXAMPLES, "regress_x_to_y"))
            for model, inputs, signature in (("nix", ["a"], "serving_default"), ("half", {"z": [1.0]}, "nix")):
                with pytest.raises(ServingError) as refused:
                    await client.predict(model, inputs, signature)
                answers.append((refused.value.code, refused.value.side, refused.value.message))
        return answers

    with Client(*ports, transport=transport, timeout=30) as client:
        told = [client.predict("half", [float(n)]) for n in range(7)]
        told += [client.metadata("half"), client.status("half")]
        told.append(client.classify("examples", EXAMPLES, "classify_both", context={"k": 7}))
        told.append(client.regress("examples", EXAMPLES, "regress_x_to_y"))
        told += [refusal(client.predict, "nix", ["a"]), refusal(client.predict, "half", {"z": [1.0]}, "nix")]
    assert asyncio.run(ask()) == told


def test_both_clients_have_the_same_methods_and_arguments():
    public = [name for name in vars(_Questions) if not name.startswith("_")]
    assert sorted(public) == ["classify", "metadata", "predict", "regress", "status"]
    for name in ("__init__", *public):
        assert inspect.signature(getattr(Client, name)) == inspect.signature(getattr(AsyncClient, name))


def test_threads_share_one_pool_of_connections(server, monkeypatch):
    made, kind = [], httpx.Client

    def slowly(**named):
        made.append(kind(**named))
        time.sleep(0.02)  # long enough for the other threads to come by
        return made[-1]

    monkeypatch.setattr(httpx, "Client", slowly)
    with Client(HOST, rest_api_port=server.rest_api_port) as client, ThreadPoolExecutor(7) as pool:
        answers = list(pool.map(lambda n: client.predict("half", [float(n)])["y"], range(23)))
    assert answers == [[n / 2 + 2] for n in range(23)]
    assert len(made) == 1


# ---- Deadlines and repeats -----------------------------------------------------------------------------------------

STATUS = b'{"model_version_status": [{"version": "3", "state": "AVAILABLE"}]}'
AVAILABLE = [{"version": 3, "state": "AVAILABLE"}]
QUICK = Retries(attempts=3, initial=0.001)


@contextlib.contextmanager
def saying(*answers):
    """A server whose n-th answer is the n-th of these, an HTTP response's bytes or None for a hung-up line; the times
    at which it was asked."""
    asked, left = [], list(answers)

    def serve():
        while left:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                asked.append(time.monotonic())
                connection.sendall(left.pop(0) or b"")

    with socket.create_server((HOST, 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1], asked
        for _ in left:  # what was not asked for
            socket.create_connection(listening.getsockname()).close()
        thread.join(10)


def http(status, body, *headers):
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_call_is_repeated_where_the_code_allows_it(kind):
    busy = http(429, b'{"error": "too many"}')
    gone = http(503, b'{"error": "queue full"}')

    def status(port, **named):
        client = kind(HOST, rest_api_port=port, **named)

        async def awaited():
            async with client:
                return await client.status("half")

        return asyncio.run(awaited()) if kind is AsyncClient else client.status("half")

    with saying(busy, gone, http(200, STATUS)) as (port, asked):
        assert status(port, retries=QUICK) == AVAILABLE
        assert len(asked) == 3
    with saying(None, http(200, STATUS)) as (port, asked):
        assert status(port, retries=QUICK) == AVAILABLE
        assert len(asked) == 2
    with saying(gone, gone, gone, busy) as (port, asked):
        assert refusal(status, port, retries=QUICK) == ("UNAVAILABLE", "server", "queue full")
        assert len(asked) == 3
    for code, name in ((400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (500, "INTERNAL"), (504, "DEADLINE_EXCEEDED")):
        with saying(http(code, b'{"error": "no"}'), gone) as (port, asked):
            assert refusal(status, port, retries=QUICK) == (name, "server", "no")
            assert len(asked) == 1


def signature_answer(*outputs):
    spec = '{"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": "-1"}]}}'
    told = ", ".join(f'"{name}": {spec}' for name in outputs)
    body = f'{{"serving_default": {{"inputs": {{"text": {spec}}}, "outputs": {{{told}}}}}}}'
    return http(200, f'{{"metadata": {{"signature_def": {{"signature_def": {body}}}}}}}'.encode())


@pytest.mark.parametrize(
    ("before", "after"), [(("a",), ("a", "b")), (("a", "b"), ("a",)), (("a", "b"), ("a", "c"))], ids=str
)
def test_a_new_version_with_other_outputs_is_understood(before, after):
    def answer(names):
        values = ", ".join(f'"{name}": ["{name.upper()}"]' for name in names)
        return http(200, (f'{{"outputs": {{{values}}}}}' if len(names) > 1 else '{"outputs": ["A"]}').encode())

    said = signature_answer(*before), answer(before), answer(after), signature_answer(*after), answer(after)
    with saying(*said) as (port, asked), Client(HOST, rest_api_port=port, retries=QUICK) as client:
        for names in (before, after):
            assert client.predict("m", ["x"]) == {name: [name.upper()] for name in names}
    assert len(asked) == len(said)


def test_retry_after_is_waited_for_but_not_beyond_the_deadline():
    patient = Retries(attempts=2, initial=0.0)
    with saying(http(429, b"{}", "Retry-After: 1"), http(200, STATUS)) as (port, asked):
        assert Client(HOST, rest_api_port=port, retries=patient).status("half") == AVAILABLE
        assert asked[1] - asked[0] >= 1.0
    with saying(http(503, b"{}", "Retry-After: 7")) as (port, asked):
        started = time.monotonic()
        assert refusal(Client(HOST, rest_api_port=port, timeout=5).status, "half")[:2] == ("UNAVAILABLE", "server")
        assert time.monotonic() - started < 4


def test_an_answer_that_drips_is_given_up_at_the_deadline():
    def drip():
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not done.wait(0.02):
                connection.sendall(b" ")

    done = threading.Event()
    with socket.create_server((HOST, 0)) as listening, Client(HOST, rest_api_port=listening.getsockname()[1]) as client:
        thread = threading.Thread(target=drip)
        thread.start()
        assert refusal(client.status, "half", timeout=0.2)[:2] == ("DEADLINE_EXCEEDED", "transport")
        done.set()
        thread.join(10)


class Refuses(grpc.GenericRpcHandler):
    """Refuses each call with the next of its codes and trailing metadata."""

    def __init__(self, *refusals):
        self.left, self.metadata = list(refusals), []

    def service(self, details):
        def refuse(_, context):
            self.metadata.append(dict(details.invocation_metadata))
            code, trailing = self.left.pop(0)
            context.set_trailing_metadata(trailing)
            context.abort(grpc.StatusCode[code], f"no: {code}")

        return grpc.unary_unary_rpc_method_handler(refuse)


def test_grpc_says_when_the_server_itself_is_unavailable_and_keeps_its_pushback():
    cases = [
        ([("UNAVAILABLE", ()), ("RESOURCE_EXHAUSTED", ()), ("INVALID_ARGUMENT", ())], "INVALID_ARGUMENT"),
        ([("UNAVAILABLE", (("grpc-retry-pushback-ms", "-1"),))], "UNAVAILABLE"),
        ([("DEADLINE_EXCEEDED", ())], "DEADLINE_EXCEEDED"),
    ]
    for refusals, last in cases:
        handler = Refuses(*refusals)
        with ThreadPoolExecutor(1) as pool:
            server = grpc.server(pool)
            server.add_generic_rpc_handlers((handler,))
            port = server.add_insecure_port(f"{HOST}:0")
            server.start()
            with Client(HOST, port, transport="grpc", retries=QUICK, headers={"X-Key": "seven"}) as client:
                assert refusal(client.status, "half") == (last, "server", f"no: {last}")
            server.stop(None).wait()
        assert handler.left == []
        assert handler.metadata[0]["x-key"] == "seven"
