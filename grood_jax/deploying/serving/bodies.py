"""Reading bodies of requests, bounded in size and time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from grood_jax.deploying.serving.limits import Limits

AGAIN = {"Retry-After": "1"}


class Bodies:
    """Holds bodies while they are needed, and knows how many bytes that are."""

    def __init__(self, limits: Limits) -> None:
        """Holds nothing.

        Args:
          limits: of one body, of all together, and of the time in which one has to arrive.
        """
        self._limits = limits
        self.held = 0

    @contextlib.asynccontextmanager
    async def hold(self, request: Request) -> AsyncIterator[bytes]:
        """Reads a request's body, which counts until the context is left.

        Raises:
          HTTPException: 408 where it takes too long, 413 where it is too large, 503 where all
            bodies together are, 400 where the client has gone.
        """
        chunks: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(self._limits.body_timeout):
                    await self._read(request, chunks)
            except TimeoutError as error:
                raise HTTPException(
                    408,
                    f"the body took longer than {self._limits.body_timeout:g} s",
                    {"Connection": "close"},
                ) from error
            except ClientDisconnect as error:
                raise HTTPException(400, "the body has ended early") from error
            yield b"".join(chunks)
        finally:
            self.held -= sum(map(len, chunks))

    async def _read(self, request: Request, chunks: list[bytes]) -> None:
        size = 0
        declared = request.headers.get("content-length", "")
        if declared.isdecimal():
            self._check(int(declared[:20]))
        async for chunk in request.stream():
            size += len(chunk)
            self._check(size)
            if self.held + len(chunk) > self._limits.max_held:
                raise HTTPException(503, "too many large requests at once", AGAIN)
            chunks.append(chunk)
            self.held += len(chunk)

    def _check(self, size: int) -> None:
        if size > self._limits.max_body:
            raise HTTPException(
                413, f"the body is larger than {self._limits.max_body} bytes, the most allowed"
            )
