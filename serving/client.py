"""One set of methods over TensorFlow Serving's public API, sync and async, with two transports: REST and gRPC.

Works against stock TensorFlow Serving and the embedded server alike. Importing this module imports neither TensorFlow
nor grpc nor the library; the gRPC transport brings its stubs, and with them TensorFlow, when a client with it is made.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal

from serving.retries import Retries, ServingError
from serving.wire import MAX_MESSAGE_BYTES, Address, Call, Signatures, StaleSignature, Wire, features

__all__ = ["AsyncClient", "Client", "Retries", "ServingError", "Signatures"]

# Neither transport can wait for ever; infinity is as good.
LONGEST_SECONDS = 30 * 86_400.0

# What a method does, without doing it: it yields calls to be sent (with the seconds left) and pauses (seconds), is
# given the answers, and returns the result. So waiting, the only difference between sync and async, is written twice
# and nothing else is.
Steps = Generator[tuple[Call, float] | float, Any, Any]


class _Questions(ABC):
    """What can be asked of a model server.

    Args:
        host: name or address.
        port: the gRPC port.
        rest_api_port: the REST port.
        transport: "rest" or "grpc".
        timeout: seconds until a call is given up, pauses and repeats included.
        retries: when a call is sent again. Only UNAVAILABLE (503) and RESOURCE_EXHAUSTED (429) ever are, and a
            server's Retry-After is waited for.
        max_send_bytes: the largest request.
        max_receive_bytes: the largest answer.
        numpy: answers are NumPy arrays of the signature's dtypes (strings as objects, bfloat16 as float32).
        tls: False: none. True: the system's certificate authorities. A path: those of a PEM file.
        headers: sent with every call, such as {"authorization": "Bearer KEY"}; metadata over gRPC.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8500,
        rest_api_port: int = 8501,
        transport: Literal["rest", "grpc"] = "rest",
        timeout: float = 60.0,
        retries: Retries | None = None,
        max_send_bytes: int = MAX_MESSAGE_BYTES,
        max_receive_bytes: int = MAX_MESSAGE_BYTES,
        numpy: bool = False,
        tls: bool | str = False,
        headers: Mapping[str, str] | None = None,
    ):
        if transport not in ("rest", "grpc"):
            raise ValueError(f'Client needs transport "rest" or "grpc", got transport={transport!r}.')
        if not timeout > 0:
            raise ValueError(f"Client needs timeout > 0 seconds, got timeout={timeout!r}.")
        for name, number in (("max_send_bytes", max_send_bytes), ("max_receive_bytes", max_receive_bytes)):
            if not 0 < number <= MAX_MESSAGE_BYTES:
                raise ValueError(f"Client needs {name} from 1 to {MAX_MESSAGE_BYTES}, got {name}={number!r}.")
        self.timeout, self.retries, self.max_send_bytes = timeout, retries or Retries(), max_send_bytes
        self._wire = _wire(
            transport,
            Address(host, port, rest_api_port, max_receive_bytes, max_send_bytes, tls, headers or {}, numpy),
        )
        self._signatures: dict[tuple[str, int | str | None], Signatures] = {}

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Any] | Any,
        signature: str = "serving_default",
        version: int | str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Runs a signature.

        Args:
            model: the model's name.
            inputs: input name -> nested lists or NumPy array, the batch first; str and bytes for strings. A signature
                with one input takes the value alone.
            signature: the signature's name.
            version: the version's number, or its label as a str; the newest when None.
            timeout: seconds, instead of the client's.

        Returns:
            Output name -> nested lists, or arrays with `numpy=True`. Strings are str where they are UTF-8, bytes where
            not. In lists a float32 is the shortest decimal that stands for it (0.1), over both transports.

        Raises:
            ServingError: with the side that refused.
        """
        return self._run(self._predict(model, inputs, signature, version, self._deadline(timeout)))

    def classify(
        self,
        model: str,
        examples: Sequence[Mapping[str, Any]],
        signature: str = "serving_default",
        version: int | str | None = None,
        timeout: float | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Any:
        """Asks a classify signature, whose input is tf.Examples.

        Args:
            model: the model's name.
            examples: feature name -> a value or a list of values, for each example. What a feature holds follows from
                its Python type, over both transports: str and bytes are bytes, int and bool int64, float is float (a
                model that reads floats wants 2.0, not 2).
            signature: the signature's name.
            version: the version's number, or its label as a str; the newest when None.
            timeout: seconds, instead of the client's.
            context: features that every example has which does not say otherwise.

        Returns:
            For each example a list of (label, score); "" or 0.0 for what the signature does not answer.

        Raises:
            ServingError: with the side that refused.
        """
        steps = self._infer("classify", model, examples, signature, version, context, self._deadline(timeout))
        return self._run(steps)

    def regress(
        self,
        model: str,
        examples: Sequence[Mapping[str, Any]],
        signature: str = "serving_default",
        version: int | str | None = None,
        timeout: float | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Any:
        """Asks a regress signature, whose input is tf.Examples; the arguments are those of `classify`.

        Returns:
            A float for each example, or an array (n,) float32 with `numpy=True`.

        Raises:
            ServingError: with the side that refused.
        """
        steps = self._infer("regress", model, examples, signature, version, context, self._deadline(timeout))
        return self._run(steps)

    def metadata(self, model: str, version: int | str | None = None, timeout: float | None = None) -> Any:
        """Signature name -> {"inputs": ..., "outputs": ...}, each name -> {"dtype": "float32", "shape": [-1, 3]}.

        A shape is None where the rank is unknown. Raises: ServingError.
        """
        return self._run(self._ask(self._wire.metadata(model, version), self._deadline(timeout)))

    def status(self, model: str, timeout: float | None = None) -> Any:
        """A dict for each version: version (int), state, error_code and error_message. Raises: ServingError."""
        return self._run(self._ask(self._wire.status(model), self._deadline(timeout)))

    @abstractmethod
    def _run(self, steps: Steps) -> Any:
        """Takes the steps: sends, and waits."""

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + min(self.timeout if timeout is None else timeout, LONGEST_SECONDS)

    def _predict(self, model: str, inputs: Any, signature: str, version: int | str | None, deadline: float) -> Steps:
        names = list(inputs) if isinstance(inputs, Mapping) else None
        known = yield from self._signature(model, version, signature, names, deadline)
        values = inputs if isinstance(inputs, Mapping) else {next(iter(known["inputs"])): inputs}
        try:
            try:
                return (yield from self._ask(self._wire.predict(model, values, signature, version, known), deadline))
            except StaleSignature:
                # A new version answered, with other outputs: asked once more by its own signature.
                self._signatures.pop((model, version), None)
                known = yield from self._signature(model, version, signature, names, deadline)
                return (yield from self._ask(self._wire.predict(model, values, signature, version, known), deadline))
        except ServingError as error:
            # A new version may have other signatures than the ones remembered.
            if error.code in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"):
                self._signatures.pop((model, version), None)
            raise

    def _infer(
        self,
        method: Literal["classify", "regress"],
        model: str,
        examples: Sequence[Mapping[str, Any]],
        signature: str,
        version: int | str | None,
        context: Mapping[str, Any] | None,
        deadline: float,
    ) -> Steps:
        try:
            asked = [features(example) for example in examples]
            shared = None if context is None else features(context)
            call = self._wire.infer(method, model, asked, shared, signature, version)
        except (TypeError, ValueError) as error:
            raise ServingError("INVALID_ARGUMENT", f"the examples cannot be sent: {error}", "client") from error
        return (yield from self._ask(call, deadline))

    def _signature(
        self, model: str, version: int | str | None, signature: str, names: list | None, deadline: float
    ) -> Steps:
        """The signature as remembered if the names fit it, else as the server says now."""
        key = (model, version)
        refusal = _misfit(self._signatures.get(key, {}), model, signature, names)
        if refusal:
            self._signatures[key] = yield from self._ask(self._wire.metadata(model, version), deadline)
            refusal = _misfit(self._signatures[key], model, signature, names)
        if refusal:
            raise ServingError("INVALID_ARGUMENT", refusal, "client")
        return self._signatures[key][signature]

    def _ask(self, call: Call, deadline: float) -> Steps:
        """One call, and its repeats."""
        if len(call.body) > self.max_send_bytes:
            message = f"the request has {len(call.body)} bytes, max_send_bytes={self.max_send_bytes}"
            raise ServingError("RESOURCE_EXHAUSTED", message, "client")
        attempt = 1
        while True:
            try:
                # A wire needs some time, or it would not even try.
                return (yield call, max(0.001, deadline - time.monotonic()))
            except ServingError as error:
                pause = self.retries.pause(error, attempt)
                if pause is None or time.monotonic() + pause >= deadline:
                    raise
            yield pause
            attempt += 1


class Client(_Questions):
    __doc__ = f"Asks a model server, and waits for its answers.{(_Questions.__doc__ or '').partition('.')[2]}"

    def close(self) -> None:
        """Closes the connections."""
        self._wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self, steps: Steps) -> Any:
        try:
            step = next(steps)
            while True:
                answer = None
                try:
                    if isinstance(step, float):
                        time.sleep(step)
                    else:
                        answer = self._wire.send(*step)
                except ServingError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            return done.value


class AsyncClient(_Questions):
    __doc__ = f"`Client` whose methods are awaited.{(_Questions.__doc__ or '').partition('.')[2]}"

    async def close(self) -> None:
        """Closes the connections."""
        await self._wire.close_async()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    async def _run(self, steps: Steps) -> Any:
        try:
            step = next(steps)
            while True:
                answer = None
                try:
                    if isinstance(step, float):
                        await asyncio.sleep(step)
                    else:
                        answer = await self._wire.send_async(*step)
                except ServingError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            return done.value


def _wire(transport: str, address: Address) -> Wire:
    if transport == "rest":
        from serving.rest_wire import RestWire

        return RestWire(address)
    from serving.grpc_wire import GrpcWire

    return GrpcWire(address)


def _misfit(signatures: Signatures, model: str, signature: str, names: list | None) -> str:
    """Why these inputs cannot be given to this signature; names: None for a value alone."""
    if signature not in signatures:
        return f"model {model!r} has no signature {signature!r}, only {', '.join(sorted(signatures))}."
    wanted = list(signatures[signature]["inputs"])
    if names is None and len(wanted) != 1:
        return f"signature {signature!r} takes a dict with the inputs {wanted}."
    unknown = [name for name in names or () if name not in wanted]
    return f"unknown input {unknown[0]!r}; the inputs are {', '.join(wanted)}." if unknown else ""
