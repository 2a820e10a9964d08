import asyncio
import json
import logging

import httpx
import pytest
from starlette.responses import PlainTextResponse

from serving.gateway_config import GatewayConfig, Key, digest
from serving.gateway_guard import Guard, TokenBucket

ALICE = {"authorization": "Bearer open sesame"}
KEYS = (Key("alice", digest("open sesame"), 1e-3, 3), Key("bob", digest("other"), 1e-3, 2))


@pytest.fixture
def lines(caplog):
    """The log so far, a dict a line."""
    caplog.set_level(logging.INFO, "serving.gateway")
    return lambda: [json.loads(record.message) for record in caplog.records if record.name == "serving.gateway"]


def ask(app, *requests):
    """The answers to requests, all at once; a request is (path, headers)."""

    async def asked():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            return await asyncio.gather(*(http.get(path, headers=headers) for path, headers in requests))

    return asyncio.run(asked())


def guarded(inner=None, **named):
    return Guard(inner or PlainTextResponse("in"), GatewayConfig(models=("half",), **{"keys": KEYS, **named}))


def test_a_bucket_gives_its_burst_and_then_its_rate():
    now = [0.0]
    bucket = TokenBucket(0.5, 3, lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take() == 2.0
    now[0] = 1.0
    assert bucket.take() == 1.0
    now[0] = 2.0
    assert [bucket.take(), bucket.take()] == [0.0, 2.0]
    now[0] = 1000.0
    assert [bucket.take() for _ in range(4)] == [0.0, 0.0, 0.0, 2.0]


def test_a_key_is_taken_in_either_header_and_nothing_else_is():
    (first, second) = ask(guarded(), ("/", ALICE), ("/", {"x-api-key": "other"}))
    assert (first.text, second.text) == ("in", "in")
    wrong = [{}, {"authorization": "Bearer nix"}, {"authorization": "Basic open sesame"}, {"x-api-key": ""}]
    wrong += [{"x-api-key": KEYS[0].sha256}, {"authorization": b"Bearer \xff\xfe"}]
    for refused in ask(guarded(), *(("/", headers) for headers in wrong)):
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert "API key" in refused.json()["error"]


def test_each_key_has_its_own_rate_and_is_told_when_to_come_back():
    guard = guarded()
    assert [answer.status_code for answer in ask(guard, *[("/", ALICE)] * 5)] == [200, 200, 200, 429, 429]
    (refused, other) = ask(guard, ("/", ALICE), ("/", {"x-api-key": "other"}))
    assert 900 < int(refused.headers["retry-after"]) <= 1000
    assert other.status_code == 200


def test_without_keys_all_share_a_bucket():
    guard = guarded(keys=(), anonymous=True, burst=2, requests_per_second=1e-3)
    assert [answer.status_code for answer in ask(guard, *[("/", {})] * 3)] == [200, 200, 429]


def test_only_so_many_are_worked_on_at_once_and_probes_are_not_counted_out():
    async def asked():
        entered, leave = asyncio.Event(), asyncio.Event()

        async def slow(scope, receive, send):
            entered.set()
            await leave.wait()
            await PlainTextResponse("in")(scope, receive, send)

        app = guarded(slow, max_concurrent=1)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            first = asyncio.create_task(http.get("/", headers=ALICE))
            await entered.wait()
            second = await http.get("/", headers=ALICE)
            probe = asyncio.create_task(http.get("/healthz"))
            leave.set()
            return await first, second, await probe, await http.get("/", headers=ALICE)

    first, second, probe, third = asyncio.run(asked())
    assert [one.status_code for one in (first, second, probe, third)] == [200, 503, 200, 200]
    assert second.headers["retry-after"] == "1"


def test_whoever_has_no_key_takes_no_place_from_who_has_one():
    async def asked():
        entered, leave = asyncio.Semaphore(0), asyncio.Event()

        async def slow(scope, receive, send):
            if scope["path"] == "/readyz":
                entered.release()
                await leave.wait()
            await PlainTextResponse("in")(scope, receive, send)

        app = guarded(slow, max_concurrent=2)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            probes = [asyncio.create_task(http.get("/readyz")) for _ in range(3)]
            for _ in probes:
                await entered.acquire()
            answer = await http.get("/", headers=ALICE)
            leave.set()
            return [one.status_code for one in (answer, *[await probe for probe in probes])]

    assert asyncio.run(asked()) == [200, 200, 200, 200]


def test_one_key_leaves_places_to_the_others():
    async def asked():
        entered, leave = asyncio.Semaphore(0), asyncio.Event()

        async def slow(scope, receive, send):
            entered.release()
            await leave.wait()
            await PlainTextResponse("in")(scope, receive, send)

        keys = (Key("alice", digest("open sesame"), 1.0, 20), Key("bob", digest("other"), 1.0, 20))
        app = guarded(slow, keys=keys, max_concurrent=4)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            held = [asyncio.create_task(http.get("/", headers=ALICE)) for _ in range(3)]
            for _ in held:
                await entered.acquire()
            refused = await http.get("/", headers=ALICE)
            other = asyncio.create_task(http.get("/", headers={"x-api-key": "other"}))
            await entered.acquire()
            full = await http.get("/", headers={"x-api-key": "other"})
            leave.set()
            return [one.status_code for one in (refused, full, await other, *[await one for one in held])]

    assert asyncio.run(asked()) == [503, 503, 200, 200, 200, 200]


def test_a_request_id_is_taken_over_or_made():
    given = [
        {**ALICE, "x-request-id": "a-7.b_1"},
        {**ALICE, "x-request-id": "a\tb"},
        {**ALICE, "x-request-id": "x" * 129},
    ]
    first, second, third = (answer.headers["x-request-id"] for answer in ask(guarded(), *(("/", one) for one in given)))
    assert first == "a-7.b_1"
    assert len({second, third, first}) == 3
    assert len(second) == len(third) == 32


def test_a_request_is_one_line_of_json_without_keys_paths_or_texts(lines):
    ask(guarded(), ("/v1/secret?secret", ALICE), ("/secret", {"x-api-key": "secret"}))
    allowed, refused = sorted(lines(), key=lambda line: line["status"])
    assert {"client": "alice", "method": "GET", "status": 200, "bytes_out": 2}.items() <= allowed.items()
    assert {"client": None, "status": 401}.items() <= refused.items()
    assert allowed["ms"] >= 0
    assert not any(word in json.dumps(lines()) for word in ("secret", "sesame", KEYS[0].sha256))


def test_a_failure_inside_is_a_500_that_tells_nothing_and_is_logged_by_its_kind(lines):
    async def fails(scope, receive, send):
        raise ZeroDivisionError("secret")

    (answer,) = ask(guarded(fails), ("/", ALICE))
    assert (answer.status_code, answer.json()) == (500, {"error": "the gateway failed"})
    (line,) = lines()
    assert line["error"] == "ZeroDivisionError"
    assert "secret" not in json.dumps(line)
