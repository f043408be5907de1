"""Requests that wait at the same time go to the device together."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

Pixels = UInt8[np.ndarray, "b h w c"]
Answer = tuple[np.ndarray, ...]
"""Arrays with a row for each image."""

Compute = Callable[[Pixels, bool], Answer]
"""What runs on the device; the flag asks for the dearer answer."""


class QueueFull(Exception):
    """As many images wait as may."""


@dataclass(eq=False, frozen=True)
class _Request:
    pixels: Pixels
    more: bool
    answer: asyncio.Future[Answer]


def batch_sizes(max_batch: int) -> list[int]:
    """The sizes that are compiled: powers of two, and the largest."""
    return [2**i for i in range((max_batch - 1).bit_length())] + [max_batch]


class Batcher:
    """Runs a computation in one thread, on what has come in while it ran before.

    No request waits for others to come: batches are large when, and because, the device is busy.
    Cancelling `submit` withdraws a request that still waits.

    Attributes:
      waiting: images that wait.
      accepted: requests taken.
      answered: requests that got their answer or its error, or were withdrawn.
      failed: whether the last batch raised an error.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        max_batch: int,
        max_queue: int,
        observe: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        """Starts nothing yet.

        Args:
          compute: called from one thread, with one of `batch_sizes` images.
          max_batch: the most images in a batch, and in a request.
          max_queue: the most images that wait.
          observe: told of the images of each batch and its seconds.
        """
        self._compute = compute
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._observe = observe
        self._queue: deque[_Request] = deque()
        self._something = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._worker: asyncio.Task[None] | None = None
        self.waiting = self.accepted = self.answered = 0
        self.failed = False

    async def start(self, image_shape: Sequence[int]) -> None:
        """Compiles for every batch size, then begins.

        Args:
          image_shape: height, width, channels.

        Raises:
          Exception: what the computation raises.
        """
        loop = asyncio.get_running_loop()
        for size in batch_sizes(self._max_batch):
            blank = np.zeros((size, *image_shape), np.uint8)
            for more in (False, True):
                await loop.run_in_executor(self._thread, self._compute, blank, more)
        self._worker = asyncio.create_task(self._work())

    async def submit(self, pixels: Pixels, *, more: bool = False) -> Answer:
        """Waits for the answer on up to max_batch images.

        Raises:
          QueueFull: max_queue images wait, or would; nothing has been accepted.
          ValueError: there are no images, or more than fit into a batch.
          Exception: what the computation raises.
        """
        if not 1 <= len(pixels) <= self._max_batch:
            raise ValueError(f"{len(pixels)} images; expected 1 to {self._max_batch}")
        if self._closing or self.waiting + len(pixels) > self._max_queue:
            raise QueueFull
        request = _Request(pixels, more, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self.waiting += len(pixels)
        self.accepted += 1
        self._something.set()
        try:
            return await request.answer
        except asyncio.CancelledError:
            # It has left the queue already where a batch has it.
            with contextlib.suppress(ValueError):
                self._queue.remove(request)
                self.waiting -= len(pixels)
            raise
        finally:
            self.answered += 1

    async def close(self) -> None:
        """Accepts no more, and returns when all that was accepted is answered."""
        self._closing = True
        self._something.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._something.wait()
            requests = self._take()
            if requests:
                # Futures belong to the loop: the thread does not touch them.
                try:
                    answer = await loop.run_in_executor(self._thread, self._run, requests)
                    _distribute(answer, requests)
                    self.failed = False
                except Exception as error:
                    self.failed = True
                    for request in requests:
                        if not request.answer.done():
                            request.answer.set_exception(error)
            elif self._closing:
                return
            else:
                self._something.clear()

    def _take(self) -> list[_Request]:
        """The oldest requests that fit into a batch, less those withdrawn."""
        taken: list[_Request] = []
        room = self._max_batch
        while self._queue and len(self._queue[0].pixels) <= room:
            request = self._queue.popleft()
            self.waiting -= len(request.pixels)
            if not request.answer.done():
                taken.append(request)
                room -= len(request.pixels)
        return taken

    def _run(self, requests: Sequence[_Request]) -> Answer:
        """In the thread: one batch, filled up with black images to a size that is compiled."""
        start = time.perf_counter()
        count = sum(len(request.pixels) for request in requests)
        size = next(size for size in batch_sizes(self._max_batch) if size >= count)
        batch = np.zeros((size, *requests[0].pixels.shape[1:]), np.uint8)
        np.concatenate([request.pixels for request in requests], out=batch[:count])
        answer = self._compute(batch, any(request.more for request in requests))
        self._observe(count, time.perf_counter() - start)
        return answer


def _distribute(answer: Answer, requests: Sequence[_Request]) -> None:
    start = 0
    for request in requests:
        stop = start + len(request.pixels)
        if not request.answer.done():
            request.answer.set_result(tuple(rows[start:stop] for rows in answer))
        start = stop
