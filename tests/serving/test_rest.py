import base64
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest


def ask(rest, path, body, method="POST"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = rest.request(method, path if path.startswith("/") else f"/v1/models/{path}", content=content)
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json()


def test_row_form_answers_predictions_and_column_form_outputs(rest):
    assert ask(rest, "half:predict", {"instances": [[1.0], [2.0], [5.0]]}) == (
        200,
        {"predictions": [[2.5], [3.0], [4.5]]},
    )
    assert ask(rest, "half:predict", {"inputs": [[1.0], [2.0], [5.0]]}) == (200, {"outputs": [[2.5], [3.0], [4.5]]})


def test_a_feed_is_not_held_against_the_static_shape(rest):
    assert ask(rest, "half:predict", {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [2.5, 3.0, 4.5]})


def test_a_single_input_may_be_named_or_not(rest):
    bare, named = {"inputs": ["a", "é"]}, {"inputs": {"text": ["a", "é"]}}
    assert ask(rest, "text:predict", bare) == ask(rest, "text:predict", named) == (200, {"outputs": ["A", "É"]})
    rows, named_rows = {"instances": ["a", "é"]}, {"instances": [{"text": "a"}, {"text": "é"}]}
    assert (
        ask(rest, "text:predict", rows) == ask(rest, "text:predict", named_rows) == (200, {"predictions": ["A", "É"]})
    )


def test_several_outputs_are_named_in_both_forms(rest):
    rows = {"signature_name": "join", "instances": [{"first": "a", "second": "bcd"}, {"first": "", "second": ""}]}
    columns = {"signature_name": "join", "inputs": {"first": ["a", ""], "second": ["bcd", ""]}}
    expected = [{"joined": "a|bcd", "length": 4}, {"joined": "|", "length": 0}]
    assert ask(rest, "text:predict", rows) == (200, {"predictions": expected})
    assert ask(rest, "text:predict", columns) == (200, {"outputs": {"joined": ["a|bcd", "|"], "length": [4, 0]}})


@pytest.mark.parametrize("path", ["half/versions/3:predict", "half/labels/stable:predict", "HALF/versions/3:predict"])
def test_a_version_is_named_by_number_or_label(rest, path):
    status, answer = ask(rest, path, {"instances": [2.0]})
    assert (status, answer.get("predictions")) == ((200, [3.0]) if path.startswith("half") else (404, None))


def test_nan_and_infinity_go_in_and_come_out(rest):
    response = rest.post("/v1/models/half:predict", content=b'{"instances": [NaN, Infinity, -Infinity, 0.2]}')
    assert response.status_code == 200
    assert b"".join(response.content.split()) == b'{"predictions":[NaN,Infinity,-Infinity,2.1]}'


def test_bytes_travel_as_base64_and_come_back_so_for_names_in_bytes(rest):
    raw = b"\xff\x00\xfe"
    body = {"signature_name": "echo_bytes", "instances": [{"b64": base64.b64encode(raw).decode()}, "é"]}
    status, answer = ask(rest, "text:predict", body)
    assert status == 200
    assert [base64.b64decode(item["b64"]) for item in answer["predictions"]] == [raw, "é".encode()]


def test_strings_that_are_not_utf8_pass_as_raw_bytes(rest):
    body = b'{"signature_name": "echo", "instances": ["caf\xe9", "ok"]}'
    response = rest.post("/v1/models/text:predict", content=body)
    assert response.status_code == 200
    assert b'"caf\xe9"' in response.content


def test_a_megabyte_of_text_is_answered(rest):
    status, answer = ask(rest, "text:predict", {"instances": ["ab" * 500_000, ""]})
    assert status == 200
    assert answer["predictions"] == ["AB" * 500_000, ""]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("half:predict", b"", 400, "JSON Parse error"),
        ("half:predict", b"{", 400, "JSON Parse error"),
        ("half:predict", b"[1.0]", 400, "a list"),
        ("half:predict", b"[" * 100_000, 400, "JSON Parse error"),
        ("half:predict", {}, 400, "neither"),
        ("half:predict", {"instances": [1.0], "inputs": [1.0]}, 400, "both"),
        ("half:predict", {"instances": 1.0}, 400, "'instances' is a list"),
        ("half:predict", {"instances": []}, 400, "at least one"),
        ("half:predict", {"instances": ["1"]}, 400, "'x' takes float32, got a string"),
        ("half:predict", {"instances": [None]}, 400, "got null"),
        ("half:predict", {"instances": [1.0, [2.0]]}, 400, "float32, got a list"),
        ("half:predict", {"instances": [[1.0], [2.0, 3.0]]}, 400, "ragged"),
        ("half:predict", {"instances": [1e39]}, 400, "1e+39 is out of its range"),
        ("half:predict", {"instances": [{"x": 1.0}, 2.0]}, 400, "element 1 is a number"),
        ("half:predict", {"instances": [{"z": 1.0}]}, 400, "Missing named input: x"),
        ("half:predict", {"instances": [{"x": 1.0, "z": 1.0}]}, 400, "Unknown input: z"),
        ("half:predict", {"instances": [1.0], "signature_name": "nix"}, 400, '"nix" not found'),
        ("half:predict", {"instances": [1.0], "signature_name": 3}, 400, "'signature_name' is a string"),
        ("half:predict", {"instances": [[1.0]], "signature_name": "__saved_model_init_op"}, 400, "not found"),
        ("text:predict", {"instances": [3]}, 400, "'text' takes string, got a number: 3"),
        ("text:predict", {"instances": [{"b64": "***"}]}, 400, "base64"),
        ("text:predict", {"instances": [{"b64": 3}]}, 400, "base64"),
        ("text:predict", b'{"instances": ["\\ud800"]}', 400, "surrogate"),
        ("text:predict", {"instances": ["a"], "signature_name": "join"}, 400, "first, second"),
        ("text:predict", {"inputs": ["a"], "signature_name": "join"}, 400, "first, second"),
        ("text:predict", {"inputs": {"first": ["a"]}, "signature_name": "join"}, 400, "Missing named input: second"),
        ("text:predict", {"inputs": {"first": ["a", "b"], "second": ["c"] * 3}, "signature_name": "join"}, 400, "hape"),
        ("text:predict", {"instances": ["x"], "signature_name": "number"}, 400, "StringToNumber"),
        ("typed:predict", {"instances": [1.0], "signature_name": "int32"}, 400, "int32, got a number: 1.0"),
        ("typed:predict", {"instances": [2**31], "signature_name": "int32"}, 400, "out of its range"),
        ("typed:predict", {"instances": [-1], "signature_name": "uint8"}, 400, "out of its range"),
        ("typed:predict", {"instances": [True], "signature_name": "int32"}, 400, "a boolean"),
        ("typed:predict", {"instances": [1], "signature_name": "bool"}, 400, "bool, got a number"),
        ("typed:predict", {"instances": [1.0], "signature_name": "total"}, 400, "row form"),
        ("nix:predict", {"instances": [1.0]}, 404, "nix"),
        ("half/versions/7:predict", {"instances": [1.0]}, 404, "Specific(half, 7)"),
        ("half/versions/99999999999999999999:predict", {"instances": [1.0]}, 400, "99999999999999999999"),
        ("half/versions/x:predict", {"instances": [1.0]}, 400, "Malformed request"),
        ("half/labels/nix:predict", {"instances": [1.0]}, 400, "nix"),
        ("half:explode", {"instances": [1.0]}, 400, "Malformed request: POST /v1/models/half:explode"),
        ("half", {"instances": [1.0]}, 400, "Malformed request"),
        ("../../etc:predict", {"instances": [1.0]}, 404, "Not found"),
        ("..%2F..%2Fetc:predict", {"instances": [1.0]}, 400, "Malformed"),
        ("half:classify", {"examples": []}, 501, "classify"),
    ],
)
def test_a_bad_request_gets_its_code_and_a_reason_and_harms_no_other(rest, path, body, status, words):
    got, answer = ask(rest, path, body)
    assert got == status
    assert answer.keys() == {"error"}
    assert words in answer["error"]
    assert ask(rest, "half:predict", {"instances": [2.0]}) == (200, {"predictions": [3.0]})


@pytest.mark.parametrize(("method", "path"), [("GET", "half:predict"), ("PUT", "half:predict"), ("DELETE", "half")])
def test_a_wrong_method_is_a_malformed_request(rest, method, path):
    status, answer = ask(rest, path, b"", method)
    assert (status, answer) == (400, {"error": f"Malformed request: {method} /v1/models/{path}"})


def test_a_path_outside_v1_is_not_found(rest):
    assert ask(rest, "/", b"", "GET")[0] == 404
    assert ask(rest, "/v2/models/half", b"", "GET")[0] == 404


def test_status_names_state_and_error(rest):
    entry = {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("half", "half/versions/3", "half/labels/stable"):
        assert ask(rest, path, b"", "GET") == (200, {"model_version_status": [entry]})
    assert ask(rest, "nix", b"", "GET")[0] == 404
    assert ask(rest, "half/versions/7", b"", "GET")[0] == 404


def test_metadata_holds_the_signatures(rest):
    status, answer = ask(rest, "text/metadata", b"", "GET")
    assert status == 200
    assert answer["model_spec"] == {"name": "text", "signature_name": "", "version": "1"}
    join = answer["metadata"]["signature_def"]["signature_def"]["join"]
    assert join["method_name"] == "tensorflow/serving/predict"
    assert join["inputs"]["first"]["dtype"] == "DT_STRING"
    assert join["inputs"]["first"]["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert ask(rest, "text/versions/7/metadata", b"", "GET")[0] == 404


def test_a_mixed_batch_answers_as_its_rows_do_alone(rest):
    texts = ["", "a", "zwölf Boxkämpfer", "x" * 97, "日本語"]
    together = ask(rest, "text:predict", {"instances": texts})[1]["predictions"]
    alone = [ask(rest, "text:predict", {"instances": [text]})[1]["predictions"][0] for text in texts]
    assert together == alone


def test_good_and_bad_calls_at_once_each_get_their_own_answer(rest):
    def call(number):
        if number % 3 == 0:
            return ask(rest, "half:predict", {"instances": ["wrong"]})[0] == 400
        if number % 3 == 1:
            return ask(rest, "text:predict", {"signature_name": "number", "instances": ["1", f"x{number}"]})[0] == 400
        return ask(rest, "half:predict", {"instances": [number]}) == (200, {"predictions": [number / 2 + 2]})

    with ThreadPoolExecutor(13) as pool:
        assert all(pool.map(call, range(211)))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_is_answered(server):
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/text:predict"
    command = ["curl", "--silent", "--noproxy", "*", "-d", '{"instances": ["ein Hund."]}', url]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    assert json.loads(answer) == {"predictions": ["EIN HUND."]}
