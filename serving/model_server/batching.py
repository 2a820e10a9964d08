"""Merges the calls of several callers into one run of a session, as TensorFlow Serving's batching session does."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serving.model_server import config_protos, monitoring
from serving.model_server.errors import Code, StatusError, invalid
from serving.model_server.model_config import parse_text

Arrays = Sequence[np.ndarray]
Call = Callable[[Arrays, float | None], Arrays]
POOL_NAME = "model_server_batch_threads"
PER_MODEL_FILE = "batching_params.pbtxt"


@dataclass(frozen=True)
class BatchingParameters:
    """What a batching parameters file holds; rows are counted along the first axis.

    Args:
        max_batch_size: most rows of a call and, unless calls are split, of a batch.
        batch_timeout_micros: how long a batch waits for more rows, in microseconds.
        max_enqueued_batches: batches that may wait, of one signature; more calls are refused.
        num_batch_threads: batches run at a time, of all models together.
        allowed_batch_sizes: a batch is filled up with copies of a row to the next of these; empty for any size.
        pad_variable_length_inputs: whether rows of unequal length are padded to the longest of the batch.
        enable_large_batch_splitting: whether a call may be divided among several batches.
        max_execution_batch_size: then the most rows of a batch; None for max_batch_size.

    Raises:
        StatusError: INVALID_ARGUMENT for a number out of range, or allowed sizes that do not end with the limit.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None

    def __post_init__(self):
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise invalid(f"{name} is at least 1, got {getattr(self, name)}.")
        if self.batch_timeout_micros < 0:
            raise invalid(f"batch_timeout_micros is at least 0, got {self.batch_timeout_micros}.")
        if not 1 <= self.limit <= self.max_batch_size:
            raise invalid(f"max_execution_batch_size is 1 to max_batch_size {self.max_batch_size}, got {self.limit}.")
        sizes = self.allowed_batch_sizes
        if list(sizes) != sorted(set(sizes)):
            raise invalid(f"allowed_batch_sizes entries must be monotonically increasing, got {list(sizes)}.")
        if sizes and sizes[-1] != self.limit:
            name = "max_execution_batch_size" if self.enable_large_batch_splitting else "max_batch_size"
            raise invalid(f"Last entry in allowed_batch_sizes must match {name} {self.limit}, got {list(sizes)}.")

    @property
    def limit(self) -> int:
        """Most rows of a batch."""
        return (self.enable_large_batch_splitting and self.max_execution_batch_size) or self.max_batch_size

    def padded(self, rows: int) -> int:
        """The allowed size for so many rows."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


def read_parameters(path: Path) -> BatchingParameters:
    """The parameters of a text protobuf. Raises: StatusError NOT_FOUND without the file, INVALID_ARGUMENT."""
    proto = config_protos.BatchingParameters()
    parse_text(path, proto)
    given: dict[str, Any] = {}
    for one, value in proto.ListFields():
        if one.name == "allowed_batch_sizes":
            given[one.name] = tuple(value)
        elif one.name != "thread_pool_name":  # a name in the real server's logs, of a pool that is one here
            given[one.name] = value if one.message_type is None else value.value
    return BatchingParameters(**given)


@dataclass
class _Task:
    feeds: Arrays
    rows: int
    deadline: float | None = None
    answer: Future = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    def is_late(self) -> bool:
        """Whether nobody waits for the answer any more, which the task is told."""
        late = self.deadline is not None and self.deadline <= time.monotonic()
        if late:
            words = "Run() timeout exceeded while waiting in batching queue"
            self.answer.set_exception(StatusError(Code.DEADLINE_EXCEEDED, words))
        return late


@dataclass
class _Batch:
    tasks: list[_Task] = field(default_factory=list)
    rows: int = 0


@dataclass
class _Queue:
    """The batches of one signature that wait; only the last one takes more rows."""

    parameters: BatchingParameters
    call: Call
    batches: deque[_Batch] = field(default_factory=deque)

    def due(self) -> float:
        """When the first batch may run, on the clock of time.monotonic."""
        first = self.batches[0]
        if len(self.batches) > 1 or first.rows >= self.parameters.limit:
            return 0.0
        return first.tasks[0].since + self.parameters.batch_timeout_micros / 1e6


class Batcher:
    """The threads that run batches, and the queues before them: one for each `key`.

    A batch is run when it is full, or when its first row has waited for `batch_timeout_micros` and a thread is free.
    """

    def __init__(self, num_threads: int):
        self._queues: dict[Hashable, _Queue] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True) for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(
        self,
        key: Hashable,
        parameters: BatchingParameters,
        call: Call,
        feeds: Arrays,
        deadline: float | None = None,
    ) -> list[np.ndarray]:
        """What `call` answers to the feeds, together with others under the same key.

        Args:
            key: calls with the same key may be merged.
            parameters: the same for a key.
            call: arrays -> arrays, rows along the first axis of each; also gets the latest deadline of its callers, or
                None where one has none.
            feeds: one array an input, all with the same number of rows.
            deadline: on the clock of time.monotonic: what is not begun by then is not run.

        Raises:
            StatusError: INVALID_ARGUMENT for arrays that have no rows to merge along, or too many; UNAVAILABLE when
                too many batches wait; DEADLINE_EXCEEDED; FAILED_PRECONDITION for an output without these rows;
                otherwise what `call` raises for this call's own rows.
        """
        rows = count_rows(feeds)
        if rows > parameters.max_batch_size:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {parameters.max_batch_size}")
        if rows == 0:
            return list(call(feeds, deadline))
        monitoring.INPUT_BATCH_SIZE.observe(rows)
        with self._changed:
            tasks = self._enqueue(key, parameters, call, feeds, rows, deadline)
        parts = [task.answer.result() for task in tasks]
        return parts[0] if len(parts) == 1 else [_joined(pieces) for pieces in zip(*parts)]

    def waiting(self, key: Hashable) -> int:
        """The rows that wait under a key."""
        with self._changed:
            queue = self._queues.get(key)
            return sum(batch.rows for batch in queue.batches) if queue else 0

    def close(self) -> None:
        """Runs what waits, then ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _enqueue(self, key, parameters, call, feeds, rows, deadline) -> list[_Task]:
        """The call's tasks, one unless it is split, put into their batches. Raises: StatusError UNAVAILABLE."""
        queue = self._queues.get(key) or _Queue(parameters, call)
        last = queue.batches[-1].rows if queue.batches else parameters.limit
        sizes = [rows]
        if parameters.enable_large_batch_splitting:
            first = min(rows, parameters.limit - last) or min(rows, parameters.limit)
            rest = rows - first
            sizes = [first] + [min(parameters.limit, rest - done) for done in range(0, rest, parameters.limit)]
        opened = len(sizes) - (last + sizes[0] <= parameters.limit)
        if len(queue.batches) + opened > parameters.max_enqueued_batches:
            raise StatusError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full; currently "
                f"{len(queue.batches)} batches enqueued and max_enqueued_batches is {parameters.max_enqueued_batches}",
            )
        ends = np.cumsum(sizes)
        tasks = [
            _Task(feeds if len(sizes) == 1 else [array[end - size : end] for array in feeds], size, deadline)
            for size, end in zip(sizes, ends)
        ]
        for task in tasks:
            if not queue.batches or queue.batches[-1].rows + task.rows > parameters.limit:
                queue.batches.append(_Batch())
            queue.batches[-1].tasks.append(task)
            queue.batches[-1].rows += task.rows
        self._queues[key] = queue
        # Who joins an open batch changes nothing for the threads that wait for it, unless it is full now.
        if opened or queue.due() == 0.0:
            self._changed.notify()
        return tasks

    def _work(self) -> None:
        while True:
            with self._changed:
                while (found := self._take()) is None:
                    if self._closed and not self._queues:
                        return
                    due = min((queue.due() for queue in self._queues.values()), default=None)
                    self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))
            _run(*found)
            del found  # or the arrays stay until the next batch

    def _take(self) -> tuple[_Queue, _Batch] | None:
        """The next batch that may run. The queue it comes from goes to the end, so that none starves."""
        now = time.monotonic()
        for key, queue in self._queues.items():
            if self._closed or queue.due() <= now:
                batch = queue.batches.popleft()
                del self._queues[key]
                if queue.batches:
                    self._queues[key] = queue
                    self._changed.notify()
                return queue, batch
        return None


def _joined(pieces: tuple[np.ndarray, ...]) -> np.ndarray:
    """The answers to the parts of a divided call as one, padded with "" or 0 to the widest of them."""
    if len({piece.ndim for piece in pieces}) > 1:
        ranks = [piece.ndim for piece in pieces]
        raise StatusError(Code.FAILED_PRECONDITION, f"Batched output tensors must have equal ranks, got {ranks}")
    widest = np.max([piece.shape[1:] for piece in pieces], axis=0)
    padding = b"" if pieces[0].dtype == object else 0
    return np.concatenate(
        [
            np.pad(
                piece,
                [(0, 0), *((0, int(most - size)) for most, size in zip(widest, piece.shape[1:]))],
                constant_values=padding,
            )
            for piece in pieces
        ]
    )


def count_rows(feeds: Arrays) -> int:
    """The rows of a call. Raises: StatusError INVALID_ARGUMENT unless all arrays have the same number of them."""
    if not feeds:
        raise invalid("Batching Run() must have at least one input tensor")
    if any(array.ndim == 0 for array in feeds):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = [len(array) for array in feeds]
    if len(set(sizes)) > 1:
        raise invalid(f"Batching Run() input tensors must have equal 0th-dimension size, got {sizes}")
    return sizes[0]


def merge(tasks: Sequence[Arrays], parameters: BatchingParameters) -> list[np.ndarray]:
    """The rows of all tasks one after another, padded and filled up as the parameters say.

    Raises:
        StatusError: INVALID_ARGUMENT for an array that cannot be padded: an empty one has no element to pad with.
    """
    merged = []
    for arrays in map(list, zip(*tasks)):
        if parameters.pad_variable_length_inputs:
            longest = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays))]
            arrays = [_pad(array, longest) for array in arrays]
        rows = sum(map(len, arrays))
        # A row of the last task is surely one that the model takes.
        arrays = [*arrays, *[arrays[-1][:1]] * (parameters.padded(rows) - rows)]
        merged.append(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
    return merged


def _pad(array: np.ndarray, longest: Sequence[int]) -> np.ndarray:
    if array.shape[1:] == tuple(longest):
        return array
    if array.size == 0:
        raise invalid("Got empty tensor in batch of non-empty tensors.")
    if array.ndim > 6:
        raise invalid(f"Only tensors with rank from 1 to 6 can be padded, got rank {array.ndim}.")
    # TensorFlow Serving's own rule: the tensor's first element, whatever it means.
    padded = np.full((len(array), *longest), array.flat[0], array.dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded


def _alike(tasks: list[_Task], parameters: BatchingParameters) -> list[list[_Task]]:
    """Tasks whose arrays can be merged, together. The real server fails all of a batch where one has another shape."""
    groups: dict[Hashable, list[_Task]] = {}
    for task in tasks:
        shapes = [array.ndim if parameters.pad_variable_length_inputs else array.shape[1:] for array in task.feeds]
        groups.setdefault(tuple(shapes), []).append(task)
    return list(groups.values())


def _run(queue: _Queue, batch: _Batch) -> None:
    """Answers the tasks of a batch; those that nobody waits for any more are not run."""
    for task in batch.tasks:
        monitoring.QUEUING_LATENCY.observe((time.monotonic() - task.since) * 1e6, POOL_NAME)
    awaited = [task for task in batch.tasks if not task.is_late()]
    for tasks in _alike(awaited, queue.parameters):
        _answer(queue, tasks)


def _answer(queue: _Queue, tasks: list[_Task]) -> None:
    """Runs the tasks in one call. Where that fails each is run alone: one bad request harms no other."""
    try:
        rows = sum(task.rows for task in tasks)
        padded = queue.parameters.padded(rows)
        monitoring.PROCESSED_BATCH_SIZE.observe(padded)
        monitoring.PADDING_SIZE.observe(padded - rows, str(padded))
        deadlines = [task.deadline for task in tasks]
        latest = None if None in deadlines else max(deadline for deadline in deadlines if deadline is not None)
        outputs = queue.call(merge([task.feeds for task in tasks], queue.parameters), latest)
        answers = _split(outputs, [task.rows for task in tasks], queue.parameters)
    except BaseException as error:
        if len(tasks) == 1:
            tasks[0].answer.set_exception(error)
            return
        for task in tasks:
            if not task.is_late():
                _answer(queue, [task])
        return
    for task, answer in zip(tasks, answers):
        task.answer.set_result(answer)


def _split(outputs: Arrays, sizes: list[int], parameters: BatchingParameters) -> list[list[np.ndarray]]:
    rows = parameters.padded(sum(sizes))
    for array in outputs:
        if array.ndim == 0:
            raise StatusError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(array) != rows:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                f"tensors: got {len(array)} for {rows}",
            )
    answers, start = [], 0
    for size in sizes:
        answers.append([array[start : start + size] for array in outputs])
        start += size
    return answers
