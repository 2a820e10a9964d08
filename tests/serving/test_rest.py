import base64
import gzip
import json
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


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
        ("half:predict", b"[1.0]", 400, "Array"),
        ("half:predict", b"[" * 100_000, 400, "JSON Parse error"),
        ("half:predict", {}, 400, "neither"),
        ("half:predict", {"instances": [1.0], "inputs": [1.0]}, 400, "Not formatted correctly"),
        ("half:predict", {"instances": 1.0}, 400, "'instances' is a list"),
        ("half:predict", {"instances": []}, 400, "at least one"),
        ("half:predict", {"instances": ["1"]}, 400, "Type: String is not of expected type: float"),
        ("half:predict", {"instances": [None]}, 400, "Type: Null is not of expected type"),
        ("half:predict", {"instances": [1.0, [2.0]]}, 400, "Encountered list at unexpected level: [2.0]"),
        ("half:predict", {"instances": [[1.0], [2.0, 3.0]]}, 400, "ragged"),
        ("half:predict", {"instances": [1e39]}, 400, "1e+39 to float without loss of precision"),
        ("half:predict", {"instances": [{"x": 1.0}, 2.0]}, 400, "Expecting object but got Number at item 1"),
        ("half:predict", {"instances": [{"x": 1.0}, [2.0]]}, 400, "Expecting object but got list at item 1"),
        ("half:predict", {"instances": [{"z": 1.0}]}, 400, "does not have named input: x"),
        ("half:predict", {"instances": [{"x": 1.0, "z": 1.0}]}, 400, "keys must be equal to: x"),
        ("half:predict", {"instances": [1.0], "signature_name": "nix"}, 400, '"nix" not found'),
        (
            "half:predict",
            {"instances": [1.0], "signature_name": 3},
            400,
            "'signature_name' key must be a string value.",
        ),
        ("half:predict", {"instances": [[1.0]], "signature_name": "__saved_model_init_op"}, 400, "not found"),
        ("text:predict", {"instances": [3]}, 400, "is not of expected type: string"),
        ("text:predict", {"instances": [{"b64": "***"}]}, 400, "base64"),
        ("text:predict", {"instances": [{"b64": 3}]}, 400, "does not have named input: text"),
        ("text:predict", b'{"instances": ["\\ud800"]}', 400, "surrogate"),
        ("text:predict", b'{"instances": ["a\\uDC80 \xff"]}', 400, "surrogate"),
        ("text:predict", b'{"instances": ["\\ud83d\\ude00\\ude00"], "x": NaN}', 400, "surrogate"),
        ("text:predict", {"instances": ["a"], "signature_name": "join"}, 400, "{first,second}"),
        ("text:predict", {"inputs": ["a"], "signature_name": "join"}, 400, "{first,second}"),
        ("text:predict", {"inputs": {"first": ["a"]}, "signature_name": "join"}, 400, "Missing named input: second"),
        ("text:predict", {"inputs": {"first": ["a", "b"], "second": ["c"] * 3}, "signature_name": "join"}, 400, "hape"),
        ("text:predict", {"instances": ["x"], "signature_name": "number"}, 400, "StringToNumber"),
        (
            "typed:predict",
            {"instances": [1.0], "signature_name": "int32"},
            400,
            "1.0 Type: Number is not of expected type: int32",
        ),
        ("typed:predict", {"instances": [2**31], "signature_name": "int32"}, 400, "out of range"),
        ("typed:predict", {"instances": [2**31], "signature_name": "uint8"}, 400, "out of range"),
        ("typed:predict", {"instances": [True], "signature_name": "int32"}, 400, "Type: True"),
        ("typed:predict", {"instances": [1], "signature_name": "bool"}, 400, "not of expected type: bool"),
        ("typed:predict", {"instances": [1.0], "signature_name": "total"}, 400, "row form"),
        ("nix:predict", {"instances": [1.0]}, 404, "nix"),
        ("half/versions/7:predict", {"instances": [1.0]}, 404, "Specific(half, 7)"),
        ("half/versions/99999999999999999999:predict", {"instances": [1.0]}, 400, "99999999999999999999"),
        ("half/versions/x:predict", {"instances": [1.0]}, 400, "Malformed request"),
        ("half/labels/nix:predict", {"instances": [1.0]}, 400, "nix"),
        ("half:explode", {"instances": [1.0]}, 400, "Malformed request: POST /v1/models/half:explode"),
        ("half", {"instances": [1.0]}, 400, "Malformed request"),
        ("../../etc:predict", {"instances": [1.0]}, 404, "Not found"),
        ("..%2F..%2Fetc:predict", {"instances": [1.0]}, 404, "Latest(../../etc)"),
        ("half:predict?x=1", {"instances": [1.0]}, 400, "Malformed request: POST /v1/models/half:predict?x=1"),
        ("half:PREDICT", {"instances": [1.0]}, 400, "Malformed"),
        ("nix:predict", b"{", 400, "JSON Parse error"),
        ("typed:predict", {"instances": [1.5], "signature_name": "float16"}, 501, "1.5 to type: half"),
        ("typed:predict", {"inputs": [], "signature_name": "float16"}, 400, "tensor type: half"),
        ("half:classify", {"examples": [{"x": 1.0}]}, 400, "Classify needs an input"),
        ("examples:classify", {"examples": [{"x": 1.0}]}, 400, "No signature was found with the name"),
        ("examples:regress", {"signature_name": "regress_x_to_y"}, 400, "'examples', a list/array, got none"),
        ("examples:regress", {"signature_name": "regress_x_to_y", "examples": {}}, 400, "got Object"),
        ("examples:regress", {"signature_name": "regress_x_to_y", "examples": []}, 400, "empty array"),
        ("examples:regress", {"signature_name": "regress_x_to_y", "examples": [{"y": 1.0}]}, 400, "x"),
        ("nix:regress", {"examples": [{"x": 1.0}]}, 404, "Latest(nix)"),
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


def test_classify_answers_pairs_and_regress_values(rest):
    rows = {"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}, {"x": [3.0]}]}
    assert ask(rest, "examples:regress", rows) == (200, {"results": [42.0, 3.5]})
    rows["signature_name"] = "classify_x_to_y"
    assert ask(rest, "examples:classify", rows) == (200, {"results": [[["", 42.0]], [["", 3.5]]]})
    both = {"signature_name": "classify_both", "context": {"k": 7}, "examples": [{"x": 2.0}, {"x": 2.0, "k": -1}]}
    expected = [[["7", 3.0], ["7!", 6.0]], [["-1", 3.0], ["-1!", 6.0]]]
    assert ask(rest, "examples/versions/5:classify", both) == (200, {"results": expected})


def test_labels_that_are_not_utf8_pass_as_raw_bytes(rest):
    body = b'{"signature_name": "classify_bytes", "examples": [{"x": 2.0}]}'
    assert rest.post("/v1/models/examples:classify", content=body).content == b'{"results":[[["caf\xe9",0.0]]]}'


def test_an_input_with_a_default_is_needed_nevertheless(rest):
    body = {"signature_name": "with_default", "inputs": {"x": [2.0]}}
    assert ask(rest, "examples:predict", body) == (400, {"error": "Missing named input: scale in 'inputs' object."})
    body["inputs"]["scale"] = 5.0
    assert ask(rest, "examples:predict", body) == (200, {"outputs": [10.0]})


def test_column_form_takes_scalars_and_empty_batches(rest):
    assert ask(rest, "half:predict", {"inputs": 2}) == (200, {"outputs": 3.0})
    assert ask(rest, "half:predict", {"inputs": {"x": [], "unknown": 3}}) == (200, {"outputs": []})
    assert ask(rest, "text:predict", {"inputs": "é"}) == (200, {"outputs": "É"})
    assert ask(rest, "half:predict", {"instances": [[], []]}) == (200, {"predictions": [[], []]})


def test_a_gzip_body_is_inflated_and_a_broken_one_refused(rest):
    body = gzip.compress(b'{"instances": [2.0]}')
    gzipped = {"content-encoding": "gzip"}
    assert rest.post("/v1/models/half:predict", content=body, headers=gzipped).json() == {"predictions": [3.0]}
    for broken in (body[:-9], b"no gzip", b""):
        response = rest.post("/v1/models/half:predict", content=broken, headers=gzipped)
        assert response.status_code == 400
        assert "gzip" in response.json()["error"]


def test_an_upload_without_end_is_refused_on_its_way(server, monkeypatch):
    monkeypatch.setattr("serving.model_server.rest.MAX_REQUEST_BYTES", 1_000_000)
    head = b"POST /v1/models/half:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.rest_api_port), timeout=20) as connection:
        connection.sendall(head)
        for _ in range(9):
            connection.sendall(b"20000\r\n" + b"[" * 0x20000 + b"\r\n")
        answer = b""
        while b"at most 1000000 bytes" not in answer:  # though the upload has not ended
            received = connection.recv(4096)
            assert received
            answer += received
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_gzip_body_that_inflates_without_end_is_refused(rest, monkeypatch):
    monkeypatch.setattr("serving.model_server.rest.MAX_BODY_BYTES", 1000)
    body = gzip.compress(b'{"instances": [2.0]}' + b" " * 1000)
    response = rest.post("/v1/models/half:predict", content=body, headers={"content-encoding": "gzip"})
    assert (response.status_code, "more than 1000 bytes" in response.text) == (400, True)


def test_a_long_answer_is_gzipped_for_who_takes_it(rest):
    body = {"instances": [1.0] * 1009}
    plain = rest.post("/v1/models/half:predict", json=body, headers={"accept-encoding": "identity"})
    small = rest.post("/v1/models/half:predict", json=body, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == "gzip"
    assert int(small.headers["content-length"]) < len(plain.content) / 10
    assert small.content == plain.content


def test_cors_headers_come_with_their_flag_only(rest, flagged_server):
    with httpx.Client(base_url=f"http://127.0.0.1:{flagged_server.rest_api_port}", trust_env=False) as http:
        preflight = http.options("/v1/models/half:predict", headers={"origin": "https://a.example"})
        assert (preflight.status_code, preflight.content) == (200, b"")
        assert http.options("/v1/models/half:predict").status_code == 400
        answers = [preflight, http.get("/v1/models/half"), http.get("/v1/models/nix")]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-allow-methods"] == "POST, GET"
        assert answer.headers["access-control-allow-headers"] == "Content-Type"
    assert "access-control-allow-origin" not in rest.get("/v1/models/half").headers
    assert rest.options("/v1/models/half", headers={"origin": "https://a.example"}).status_code == 400


def test_the_path_is_read_without_case_and_names_without_percent_escapes(rest):
    assert ask(rest, "/V1/Models/half:predict", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    assert ask(rest, "h%61lf/labels/st%61ble:predict", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    assert ask(rest, "half/versions/0003:predict", {"instances": [2.0]}) == (200, {"predictions": [3.0]})


def test_status_and_metadata_need_a_model(rest):
    for path in ("/v1/models", "/v1/models/versions/3"):
        assert ask(rest, path, b"", "GET") == (400, {"error": "Missing model name in request."})


def test_a_path_outside_v1_is_not_found(rest):
    assert ask(rest, "/", b"", "GET")[0] == 404
    assert ask(rest, "/v2/models/half", b"", "GET")[0] == 404


def test_status_names_state_and_error(rest):
    entry = {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("half", "half/versions/3", "half/labels/stable"):
        assert ask(rest, path, b"", "GET") == (200, {"model_version_status": [entry]})
    assert ask(rest, "half/METADATA", b"", "GET") == (200, {"model_version_status": [entry]})
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
    answer = ask(rest, "examples/metadata", b"", "GET")[1]
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    shape = {"dim": [], "unknown_rank": True}
    assert signatures["regress_other_input"] == {
        "inputs": {"inputs": {"name": "x:0", "dtype": "DT_FLOAT", "tensor_shape": shape}},
        "outputs": {"outputs": {"name": "more:0", "dtype": "DT_FLOAT", "tensor_shape": shape}},
        "method_name": "tensorflow/serving/regress",
        "defaults": {},
    }
    assert signatures["with_default"]["defaults"].keys() == {"scale"}


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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "text", "b64"]), inner, max_size=3)
    ),
    max_leaves=7,
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "instances": json_values | st.lists(json_values, min_size=1, max_size=3),
        "inputs": json_values,
        "examples": json_values | st.lists(json_values, min_size=1, max_size=3),
        "context": json_values,
        "signature_name": st.sampled_from(["classify_both", "regress_x_to_y", "int8", "float16", "echo", "total", 3]),
    },
)
paths = st.sampled_from(["half", "text", "typed", "examples", "../half", "half/versions/3", "half/labels/%2e%2e"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30), paths, st.booleans(), st.data())
def test_no_body_makes_the_server_fail_and_the_next_call_is_answered(rest, body, path, is_gzip, data):
    call = data.draw(st.sampled_from(["predict", "classify", "regress"]))
    headers = {"content-encoding": "gzip"} if is_gzip else {}
    response = rest.post(f"/v1/models/{path}:{call}", content=gzip.compress(body) if is_gzip else body, headers=headers)
    assert response.status_code in (200, 400, 404, 501)
    assert response.status_code == 200 or response.json().keys() == {"error"}


def test_no_path_leaves_the_model_folder(rest, exports):
    outside = exports.parent / "outside" / "1"
    outside.mkdir(parents=True)
    for name in ("..%2Foutside", "%2e%2e%2foutside", "%2E%2E", "outside", f"{outside.parent}".replace("/", "%2F")):
        assert ask(rest, f"{name}/versions/1:predict", {"instances": [1.0]})[0] == 404, name
        assert ask(rest, name, b"", "GET")[0] == 404, name


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_is_answered(server):
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/text:predict"
    command = ["curl", "--silent", "--noproxy", "*", "-d", '{"instances": ["ein Hund."]}', url]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    assert json.loads(answer) == {"predictions": ["EIN HUND."]}


CURL = ["curl", "--silent", "--noproxy", "*", "--write-out", " %{http_code} %{content_type}"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["v1/models/half:predict", "-d", '{"instances": [1.0, 2.0, 5.0]}'], '{"predictions":[2.5,3.0,4.5]} 200'),
        (["v1/models/half:predict", "-d", "{"], "JSON Parse error"),
        (["v1/models/half/versions/3"], '"state": "AVAILABLE"'),
        (["v1/models/half/labels/stable/metadata"], '"tensorflow/serving/predict"'),
        (["v1/models/half", "-X", "DELETE"], '{"error":"Malformed request: DELETE /v1/models/half"} 400'),
        (
            [
                "v1/models/examples:classify",
                "-d",
                '{"signature_name": "classify_labels", "examples": [{"x":1.0,"k":3}]}',
            ],
            '{"results":[[["3",0.0]]]} 200',
        ),
        (["v1/models/nix:predict", "-d", '{"instances": [1.0]}'], "404"),
    ],
)
def test_curl_is_answered_on_every_path(server, arguments, answer):
    url = f"http://127.0.0.1:{server.rest_api_port}/{arguments[0]}"
    said = subprocess.run([*CURL, url, *arguments[1:]], capture_output=True, check=True, timeout=30, text=True).stdout
    assert answer in said
    assert said.endswith("application/json")
