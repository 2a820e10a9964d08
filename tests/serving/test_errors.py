import grpc
import pytest
import tensorflow as tf

from serving.model_server.errors import HTTP_STATUS, MAX_MESSAGE_BYTES, Code, StatusError, as_status


def test_codes_are_those_of_grpc():
    assert {code.name: code.value for code in Code} == {code.name: code.value[0] for code in grpc.StatusCode}


def test_every_code_has_its_http_status():
    assert set(HTTP_STATUS) == set(Code)
    assert StatusError(Code.FAILED_PRECONDITION, "").http_status == 400


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (tf.errors.InvalidArgumentError(None, None, "why"), Code.INVALID_ARGUMENT),
        (tf.errors.ResourceExhaustedError(None, None, "why"), Code.RESOURCE_EXHAUSTED),
        (MemoryError("why"), Code.RESOURCE_EXHAUSTED),
        (KeyError("why"), Code.INTERNAL),
        (StatusError(Code.NOT_FOUND, "why"), Code.NOT_FOUND),
    ],
)
def test_an_exception_keeps_its_code_and_its_words(error, code):
    status = as_status(error)
    assert status.code == code
    assert "why" in status.message


@pytest.mark.parametrize("letter", ["a", "ü", "𝄞"])
def test_a_message_without_end_is_cut_to_what_grpc_sends(letter):
    message = StatusError(Code.NOT_FOUND, "why: " + letter * 100_000).message
    assert message.startswith("why: " + letter)
    assert message.endswith(letter + "...")
    assert len(message.encode()) <= MAX_MESSAGE_BYTES + 3
    assert StatusError(Code.NOT_FOUND, letter * 400).message == letter * 400
