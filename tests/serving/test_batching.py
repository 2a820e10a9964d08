import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.model_server.batching import Batcher, BatchingParameters, merge, read_parameters
from serving.model_server.errors import Code, StatusError

HOUR = 3600 * 10**6


@pytest.fixture
def batcher():
    with_threads = Batcher(1)
    yield with_threads
    with_threads.close()


class Model:
    """Doubles its rows and writes down the batches it saw; while it is held, a first call waits inside."""

    def __init__(self):
        self.deadlines = []
        self.seen, self.entered, self.release = [], threading.Event(), threading.Event()
        self.release.set()

    def __call__(self, feeds, deadline):
        self.entered.set()
        self.deadlines.append(deadline)
        assert self.release.wait(30)
        self.seen.append(feeds[0].tolist())
        if -1 in feeds[0]:
            raise StatusError(Code.OUT_OF_RANGE, "a row is -1")
        return [feeds[0] * 2]


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def together(batcher, model, parameters, rows):
    """What each call with these rows gets, in order, when all of them wait while another one runs."""
    model.release.clear()
    with ThreadPoolExecutor(len(rows) + 1) as pool:
        first = pool.submit(batcher.run, "key", parameters, model, [np.array([0])])
        assert model.entered.wait(30)
        calls = []
        for row in rows:
            waiting = batcher.waiting("key")
            calls.append(pool.submit(batcher.run, "key", parameters, model, [np.array(row)]))
            wait_until(lambda before=waiting: batcher.waiting("key") > before or calls[-1].done())
        model.release.set()
        assert first.result()[0].tolist() == [0]
        return [call.exception() or call.result()[0].tolist() for call in calls]


def test_a_call_that_is_given_up_while_it_waits_is_not_run(batcher):
    model, parameters, now = Model(), BatchingParameters(), time.monotonic()
    model.release.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.run, "key", parameters, model, [np.array([0])])
        assert model.entered.wait(30)
        late, other = (
            pool.submit(batcher.run, "key", parameters, model, [np.array([row])], deadline)
            for row, deadline in ((2, now), (3, now + 600.0))
        )
        wait_until(lambda: batcher.waiting("key") == 2)
        model.release.set()
        assert (late.exception().code, other.result()[0].tolist()) == (Code.DEADLINE_EXCEEDED, [6])
        assert first.result()[0].tolist() == [0]
    assert model.seen == [[0], [3]]


def test_a_batch_may_last_until_the_latest_deadline_of_its_callers(batcher):
    model, soon = Model(), time.monotonic() + 600.0
    for deadlines, latest in (([soon, soon + 7], soon + 7), ([soon, None], None)):
        model.release.clear()
        with ThreadPoolExecutor(3) as pool:
            pool.submit(batcher.run, "key", BatchingParameters(), model, [np.array([0])])
            assert model.entered.wait(30)
            for deadline in deadlines:
                pool.submit(batcher.run, "key", BatchingParameters(), model, [np.array([3])], deadline)
            wait_until(lambda: batcher.waiting("key") == 2)
            model.release.set()
        assert model.seen[-1] == [3, 3] and model.deadlines[-1] == latest
        model.entered.clear()


def test_where_a_batch_takes_too_long_who_is_late_is_not_asked_again(batcher):
    """The first caller's time is over when the batch that holds both fails."""
    now, seen = time.monotonic(), []

    def call(feeds, deadline):
        seen.append(feeds[0].tolist())
        if len(feeds[0]) > 1:
            wait_until(lambda: time.monotonic() > now + 0.3)
            raise StatusError(Code.DEADLINE_EXCEEDED, "too long")
        return feeds

    with ThreadPoolExecutor(2) as pool:
        patient = BatchingParameters(max_batch_size=2, batch_timeout_micros=HOUR)
        late = pool.submit(batcher.run, "key", patient, call, [np.array([2])], now + 0.3)
        other = pool.submit(batcher.run, "key", patient, call, [np.array([3])])
        assert late.exception().code == Code.DEADLINE_EXCEEDED and other.result()[0].tolist() == [3]
    assert sorted(seen[0]) == [2, 3] and seen[1:] == [[3]]


def test_of_a_call_that_is_answered_nothing_stays(batcher):
    array = np.array([2])
    gone = weakref.ref(array)
    assert batcher.run("key", BatchingParameters(), Model(), [array])[0].tolist() == [4]
    del array
    wait_until(lambda: gone() is None)


def test_calls_that_wait_together_are_run_as_one(batcher):
    model = Model()
    answers = together(batcher, model, BatchingParameters(), [[2], [3, 5], [7]])
    assert answers == [[4], [6, 10], [14]]
    assert model.seen == [[0], [2, 3, 5, 7]]


def test_a_batch_never_exceeds_its_limit_and_a_call_is_not_divided(batcher):
    model = Model()
    assert together(batcher, model, BatchingParameters(max_batch_size=5), [[2, 3], [5, 7, 11, 13]]) == [
        [4, 6],
        [10, 14, 22, 26],
    ]
    assert model.seen == [[0], [2, 3], [5, 7, 11, 13]]
    with pytest.raises(StatusError, match="Task size 7 is larger than maximum input batch size 5") as refused:
        batcher.run("key", BatchingParameters(max_batch_size=5), model, [np.arange(7)])
    assert refused.value.code == Code.INVALID_ARGUMENT


def test_a_large_call_is_divided_where_that_is_asked(batcher):
    model = Model()
    parameters = BatchingParameters(max_batch_size=11, enable_large_batch_splitting=True, max_execution_batch_size=3)
    assert together(batcher, model, parameters, [[2, 3], [5, 7, 11, 13, 17]]) == [[4, 6], [10, 14, 22, 26, 34]]
    assert model.seen == [[0], [2, 3, 5], [7, 11, 13], [17]]


def test_parts_of_a_divided_call_are_padded_to_the_widest_of_them(batcher):
    def spread(feeds, _):
        widest = int(max(feeds[0]))
        counts = np.arange(widest)[None] < feeds[0][:, None]
        return [np.where(counts, 0.5, 0.0), np.where(counts, b"x", b"").astype(object)]

    parameters = BatchingParameters(max_batch_size=11, enable_large_batch_splitting=True, max_execution_batch_size=3)
    rows = np.array([1, 2, 1, 5, 3, 2, 1])
    for told, expected in zip(batcher.run("key", parameters, spread, [rows]), spread([rows], None)):
        assert told.dtype == expected.dtype
        np.testing.assert_array_equal(told, expected)

    def ranks(feeds, _):
        return [np.zeros((len(feeds[0]), *[1] * len(feeds[0])))]

    with pytest.raises(StatusError, match=r"equal ranks, got \[4, 4, 2\]") as refused:
        batcher.run("ranks", parameters, ranks, [rows])
    assert refused.value.code == Code.FAILED_PRECONDITION


def test_an_overfull_queue_is_unavailable(batcher):
    model = Model()
    answers = together(batcher, model, BatchingParameters(max_batch_size=2, max_enqueued_batches=2), [[2, 3]] * 3)
    assert answers[:2] == [[4, 6], [4, 6]]
    assert (answers[2].code, "2 batches enqueued" in answers[2].message) == (Code.UNAVAILABLE, True)


def test_one_bad_call_harms_no_other(batcher):
    model = Model()
    two, bad, three = together(batcher, model, BatchingParameters(), [[2], [-1], [3, 5]])
    assert (two, three) == ([4], [6, 10])
    assert bad.code == Code.OUT_OF_RANGE
    assert model.seen[1] == [2, -1, 3, 5]


def test_calls_of_other_shapes_are_answered_apart_when_nothing_is_padded(batcher):
    model = Model()
    assert together(batcher, model, BatchingParameters(), [[[2, 3]], [[5]], [[7, 11]]]) == [
        [[4, 6]],
        [[10]],
        [[14, 22]],
    ]
    assert model.seen == [[0], [[2, 3], [7, 11]], [[5]]]


def test_a_batch_waits_for_its_timeout_or_until_it_is_full(batcher):
    model = Model()
    with ThreadPoolExecutor(3) as pool:
        patient = BatchingParameters(max_batch_size=3, batch_timeout_micros=HOUR)
        calls = [pool.submit(batcher.run, "key", patient, model, [np.array([row])]) for row in (2, 2, 2)]
        assert [call.result(30)[0].tolist() for call in calls] == [[4]] * 3
    assert model.seen == [[2, 2, 2]]
    started = time.monotonic()
    hasty = BatchingParameters(max_batch_size=3, batch_timeout_micros=20_000)
    assert batcher.run("other", hasty, model, [np.array([5])])[0].tolist() == [10]
    assert time.monotonic() - started >= 0.02


def test_keys_have_their_own_batches_and_share_the_threads(batcher):
    model = Model()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(batcher.run, key, BatchingParameters(), model, [np.array([2])]) for key in "ab"]
        assert [call.result()[0].tolist() for call in calls] == [[4], [4]]
    assert model.seen == [[2], [2]]


def test_closing_runs_what_waits():
    batcher, model = Batcher(1), Model()
    patient = BatchingParameters(batch_timeout_micros=HOUR)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(batcher.run, "key", patient, model, [np.array([2])])
        wait_until(lambda: batcher.waiting("key") == 1)
        batcher.close()
        assert call.result()[0].tolist() == [4]


def test_a_batch_is_filled_up_to_an_allowed_size_and_answers_are_without_the_filling(batcher):
    model = Model()
    parameters = BatchingParameters(max_batch_size=7, allowed_batch_sizes=(1, 5, 7))
    assert together(batcher, model, parameters, [[2], [3, 11]]) == [[4], [6, 22]]
    assert model.seen == [[0], [2, 3, 11, 3, 3]]


def test_shorter_rows_are_padded_with_their_own_first_element():
    parameters = BatchingParameters(pad_variable_length_inputs=True)
    long, short = np.array([[2, 3, 5]]), np.array([[7, 11], [13, 17]])
    (merged,) = merge([[long], [short]], parameters)
    assert merged.tolist() == [[2, 3, 5], [7, 11, 7], [13, 17, 7]]
    words, word = np.array([["a", "b"]], object), np.array([["c"]], object)
    assert merge([[words], [word]], parameters)[0].tolist() == [["a", "b"], ["c", "c"]]
    with pytest.raises(StatusError, match="empty tensor in batch of non-empty"):
        merge([[long], [np.zeros((2, 0), int)]], parameters)
    with pytest.raises(StatusError, match="rank from 1 to 6 can be padded, got rank 7"):
        merge([[np.ones((1,) * 7)], [np.ones((1,) * 6 + (2,))]], parameters)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ([], "at least one input tensor"),
        ([np.array(3)], "at least one dimension"),
        ([np.ones(2), np.ones(3)], r"equal 0th-dimension size, got \[2, 3\]"),
    ],
)
def test_feeds_without_common_rows_are_refused(batcher, feeds, words):
    with pytest.raises(StatusError, match=words) as refused:
        batcher.run("key", BatchingParameters(), Model(), feeds)
    assert refused.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("output", "words"), [(np.array(3), "has 0 dimensions"), (np.ones(3), "0th dimension does not equal")]
)
def test_an_output_without_the_rows_cannot_be_divided(batcher, output, words):
    with pytest.raises(StatusError, match=words) as refused:
        batcher.run("key", BatchingParameters(), lambda feeds, _: [output], [np.ones(2)])
    assert refused.value.code == Code.FAILED_PRECONDITION


def test_no_rows_are_answered_alone(batcher):
    parameters = BatchingParameters(max_batch_size=7, allowed_batch_sizes=(7,), batch_timeout_micros=HOUR)
    assert batcher.run("key", parameters, Model(), [np.zeros(0)])[0].tolist() == []


def test_parameters_are_read_and_those_left_out_keep_their_defaults(tmp_path):
    file = tmp_path / "batching.config"
    file.write_text('max_batch_size { value: 5 } batch_timeout_micros { value: 0 } thread_pool_name { value: "x" }')
    assert read_parameters(file) == BatchingParameters(max_batch_size=5, batch_timeout_micros=0)
    assert (BatchingParameters().max_batch_size, BatchingParameters().max_enqueued_batches) == (1000, 10)
    file.write_text("allowed_batch_sizes: 3 allowed_batch_sizes: 5 max_batch_size { value: 5 }")
    assert read_parameters(file).allowed_batch_sizes == (3, 5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_batch_size": 0}, "max_batch_size is at least 1, got 0"),
        ({"num_batch_threads": 0}, "num_batch_threads is at least 1, got 0"),
        ({"max_enqueued_batches": -1}, "max_enqueued_batches is at least 1, got -1"),
        ({"batch_timeout_micros": -1}, "batch_timeout_micros is at least 0, got -1"),
        ({"allowed_batch_sizes": (5, 3, 1000)}, "monotonically increasing"),
        ({"allowed_batch_sizes": (3, 5)}, "must match max_batch_size 1000"),
        ({"max_execution_batch_size": 1001, "enable_large_batch_splitting": True}, "1 to max_batch_size 1000"),
    ],
)
def test_wrong_parameters_are_refused_with_what_they_are(given, words):
    with pytest.raises(StatusError, match=words):
        BatchingParameters(**given)
