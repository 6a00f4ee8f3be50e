"""`PolicyServer`: a policy behind a websocket, in openpi's protocol.

On connect the server sends its metadata. Each message of the client is an observation, each answer a map with
`actions`; both are msgpack (`wire`). What a client does wrong is answered by a line of text on its own connection,
which stays open. GET /healthz answers 200.
"""

from __future__ import annotations

import asyncio
import errno
import http
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HandshakeRequest
from websockets.http11 import Response

from vla_rl.distributed.seeding import stable_seed
from vla_rl.errors import RunError, UserError
from vla_rl.serving.batcher import Batcher
from vla_rl.serving.request import Expected, parse_request
from vla_rl.serving.wire import pack, unpack

HEALTH = "/healthz"
LAST_PORT = 65535
BURST_S = 1.0  # seconds' worth of requests that a client may send at once


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for."""

    max_message_bytes: int
    requests_per_s: float
    max_clients: int


class PolicyServer:
    """Sessions of many clients.

    Args:
        metadata: sent to each client on connect.
        window: control steps of a chunk that are sent; None = all.
        seed: of the sampling of clients that send no seed of their own.
    """

    def __init__(
        self,
        batcher: Batcher,
        expected: Expected,
        limits: Limits,
        *,
        metadata: dict[str, Any],
        window: int | None,
        seed: int,
    ) -> None:
        self.batcher, self.expected, self.limits = batcher, expected, limits
        self.metadata, self.window, self.seed = metadata, window, seed
        self.answered = 0
        self._sessions = 0  # since the start: numbers them
        self._busy: dict[ServerConnection, bool] = {}  # by session: an answer is under way
        self._stopping = False

    async def run(self, host: str, port: int, stop: asyncio.Event, started: Callable[[int], None]) -> None:
        """Serve until `stop` is set; then answer what is under way and close.

        Args:
            port: 0 takes any that is free.
            started: called with the port when clients can connect.

        Raises:
            UserError: the address cannot be used.
        """
        deciding = asyncio.create_task(self.batcher.run())
        try:
            server = await serve(
                self._session,
                host,
                port,
                process_request=self._handshake,
                compression=None,
                max_size=self.limits.max_message_bytes,
                max_queue=1,  # messages of a client that are held at once
            )
        except OSError as e:
            deciding.cancel()
            other_port = f"port={port + 1 if port < LAST_PORT else 0}"
            fix = other_port if e.errno in (errno.EADDRINUSE, errno.EACCES) else "host=127.0.0.1, or 0.0.0.0 for all"
            raise UserError(f"cannot listen on {host}:{port} ({e.strerror}): {fix}") from e
        try:
            started(next(iter(server.sockets)).getsockname()[1])
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({stopped, deciding}, return_when=asyncio.FIRST_COMPLETED)
            if deciding.done():
                deciding.result()  # a defect: raises what nobody could answer after
            await self._end(server)
        finally:
            server.close()
            deciding.cancel()

    async def _end(self, server: Server) -> None:
        self._stopping = True
        server.close(close_connections=False)
        idle = [connection for connection, busy in self._busy.items() if not busy]
        await asyncio.gather(*(connection.close(CloseCode.GOING_AWAY) for connection in idle))
        await server.wait_closed()  # until the others have their answers

    async def _handshake(self, connection: ServerConnection, request: HandshakeRequest) -> Response | None:
        """Answer what is no websocket, and refuse the client that is too many."""
        if request.path == HEALTH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if len(self._busy) >= self.limits.max_clients:
            text = f"{self.limits.max_clients} clients are connected already (max_clients={2 * len(self._busy)})\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def _session(self, connection: ServerConnection) -> None:
        number, self._sessions = self._sessions, self._sessions + 1
        rate = _Rate(self.limits.requests_per_s)
        self._busy[connection] = False
        try:
            await connection.send(pack(self.metadata))
            count = 0
            async for message in connection:
                self._busy[connection] = True
                await connection.send(await self._answer(message, rate, stable_seed(self.seed, "serve", number, count)))
                self._busy[connection] = False
                count += 1
                if self._stopping:
                    await connection.close(CloseCode.GOING_AWAY)
        except ConnectionClosed:
            pass  # a client that goes in the middle; what it waited for is nobody's any more
        finally:
            del self._busy[connection]

    async def _answer(self, message: str | bytes, rate: _Rate, seed: int) -> str | bytes:
        """The answer to a message: bytes, or a line of text about what is wrong with it."""
        began = time.perf_counter()
        try:
            rate.take()
            if isinstance(message, str):
                raise UserError("an observation is a binary message, got text")
            request = parse_request(unpack(message), self.expected)
            decided = time.perf_counter()
            command_LA = await self.batcher.decide(request, seed if request.seed is None else request.seed)
        except (UserError, RunError) as e:
            return f"error: {' '.join(str(e).split())}"
        except Exception as e:  # of the policy: this client is told, others go on
            traceback.print_exc(file=sys.stderr)
            return f"error: the policy failed ({type(e).__name__}); the server's log says more"
        self.answered += 1
        now = time.perf_counter()
        return pack(
            {
                "actions": command_LA[: self.window],
                "policy_timing": {"infer_ms": 1e3 * (now - decided)},
                "server_timing": {"infer_ms": 1e3 * (now - began)},
            }
        )


class _Rate:
    """Requests of one client: `per_s` on average, and at most a second's worth at once."""

    def __init__(self, per_s: float) -> None:
        self.per_s, self._next = per_s, 0.0

    def take(self) -> None:
        """Raise UserError where this request is one too many."""
        now = time.monotonic()
        if self._next - now > BURST_S:
            raise UserError(f"more than {self.per_s:g} requests per second: wait, or start the server with "
                            f"requests_per_s={2 * self.per_s:g}")  # fmt: skip
        self._next = max(self._next, now) + 1 / self.per_s
