"""uvicorn's connections, with a deadline for requests to begin and errors in JSON."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Cuts off a connection on which no request begins in time, or none ends.

    uvicorn waits forever for the first request, for the rest of begun headers and for a client that
    does not read its answers; a stranger could hold every connection there is.

    Attributes:
      begin_seconds: for headers to be complete; what is left of a refused body has to pass in that
        time too.
      end_seconds: from then until the answer is sent.
    """

    begin_seconds = 20.0
    end_seconds = 60.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self._restart(self.begin_seconds)

    def handle_events(self) -> None:
        """Gives a request that has begun its own time."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._restart(self.end_seconds)

    def on_response_complete(self) -> None:
        """Starts the clock for the next request."""
        self._restart(self.begin_seconds)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP; connections end with that."""
        body = json.dumps({"error": msg}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        events = (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        # A client may also break the rules when its answer has begun already.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _restart(self, seconds: float) -> None:
        self._stop()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
