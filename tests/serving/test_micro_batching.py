"""What waits together runs together; what was accepted is answered."""

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grood_jax.deploying.serving.batching import Batcher, QueueFull, batch_sizes


class Gate:
    """A computation that waits until it may go on, and remembers batches."""

    def __init__(self, is_open=True):
        self.go = threading.Event()
        self.started = threading.Event()
        self.batches = []
        self.threads = set()
        if is_open:
            self.go.set()

    def __call__(self, pixels, more):
        self.threads.add(threading.current_thread())
        self.batches.append((len(pixels), more))
        self.started.set()
        assert self.go.wait(20)
        return pixels.max(axis=(1, 2, 3)), pixels.min(axis=(1, 2, 3))


def images(*values):
    return np.uint8(values).reshape(-1, 1, 1, 1)


async def started(compute, max_batch=8, max_queue=16, **more):
    batcher = Batcher(compute, max_batch=max_batch, max_queue=max_queue, **more)
    gated, compute.go = compute.go, threading.Event()
    compute.go.set()
    await batcher.start((1, 1, 1))
    compute.go = gated
    compute.batches.clear()
    compute.started.clear()
    return batcher


async def busy(gate, **more):
    """A batcher whose thread is held up by a first request."""
    batcher = await started(gate, **more)
    first = asyncio.create_task(batcher.submit(images(1)))
    await asyncio.to_thread(gate.started.wait, 20)
    return batcher, first


async def later(coroutines):
    """Tasks that have begun."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_few_sizes_compile(most, sizes):
    assert batch_sizes(most) == sizes


def test_every_size_is_compiled_before_the_first_request():
    gate = Gate()

    async def run():
        batcher = Batcher(gate, max_batch=4, max_queue=4)
        await batcher.start((1, 1, 1))
        await batcher.close()

    asyncio.run(run())
    assert gate.batches == [(size, more) for size in (1, 2, 4) for more in (False, True)]
    assert len(gate.threads) == 1


def test_what_waits_goes_together_in_order():
    gate = Gate(is_open=False)
    seen = []

    async def run():
        batcher, first = await busy(gate, observe=lambda count, seconds: seen.append(count))
        tasks = await later(
            [batcher.submit(images(2, 3)), batcher.submit(images(4), more=True)]
            + [batcher.submit(images(*range(5, 12))), batcher.submit(images(12))]
        )
        assert batcher.waiting == 11
        gate.go.set()
        answers = await asyncio.gather(first, *tasks)
        await batcher.close()
        return answers

    answers = asyncio.run(run())
    assert [list(largest) for largest, _ in answers] == [[1], [2, 3], [4], [*range(5, 12)], [12]]
    assert gate.batches == [(1, False), (4, True), (8, False)]
    assert seen == [1, 3, 8]


def test_a_full_queue_refuses_and_what_waits_is_answered():
    gate = Gate(is_open=False)

    async def run():
        batcher, first = await busy(gate, max_batch=2, max_queue=3)
        tasks = await later(batcher.submit(images(value)) for value in (2, 3, 4))
        with pytest.raises(QueueFull):
            await batcher.submit(images(5))
        gate.go.set()
        await asyncio.gather(first, *tasks)
        assert (batcher.accepted, batcher.answered, batcher.waiting) == (4, 4, 0)
        await batcher.submit(images(6))
        await batcher.close()

    asyncio.run(run())


def test_a_deadline_withdraws_what_waits():
    gate = Gate(is_open=False)

    async def run():
        batcher, first = await busy(gate)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await batcher.submit(images(2))
        assert batcher.waiting == 0
        (kept,) = await later([batcher.submit(images(3))])
        gate.go.set()
        await asyncio.gather(first, kept)
        await batcher.close()
        assert (batcher.accepted, batcher.answered) == (3, 3)

    asyncio.run(run())
    assert gate.batches == [(1, False), (1, False)]


def test_closing_answers_what_was_accepted_and_takes_no_more():
    gate = Gate(is_open=False)

    async def run():
        batcher, first = await busy(gate, max_batch=2)
        tasks = await later(batcher.submit(images(value)) for value in range(2, 9))
        closing, *_ = await later([batcher.close()])
        with pytest.raises(QueueFull):
            await batcher.submit(images(9))
        assert not closing.done()
        gate.go.set()
        await closing
        answers = await asyncio.gather(first, *tasks)
        assert [int(largest[0]) for largest, _ in answers] == [*range(1, 9)]
        assert batcher.accepted == batcher.answered == 8

    asyncio.run(run())


def test_an_error_reaches_its_own_batch_only():
    class Fragile(Gate):
        def __call__(self, pixels, more):
            answer = super().__call__(pixels, more)
            if pixels.max() == 13:
                raise RuntimeError("out of luck")
            return answer

    gate = Fragile()

    async def run():
        batcher = await started(gate)
        both = await later([batcher.submit(images(13)), batcher.submit(images(1))])
        for failure in await asyncio.gather(*both, return_exceptions=True):
            assert isinstance(failure, RuntimeError)
        assert batcher.failed
        assert list((await batcher.submit(images(2)))[0]) == [2]
        assert not batcher.failed
        await batcher.close()

    asyncio.run(run())


@pytest.mark.parametrize("count", [0, 9])
def test_a_request_must_fit_into_a_batch(count):
    async def run():
        batcher = await started(Gate())
        with pytest.raises(ValueError, match=f"{count} images; expected 1 to 8"):
            await batcher.submit(images(*[0] * count))
        await batcher.close()

    asyncio.run(run())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 8), max_size=20), st.integers(8, 12))
def test_everybody_gets_the_own_rows(counts, max_batch):
    starts = np.cumsum([0, *counts])
    gate = Gate()

    async def run():
        batcher = await started(gate, max_batch=max_batch, max_queue=200)
        own = [images(*range(a, a + n)) for a, n in zip(starts, counts, strict=False)]
        answers = await asyncio.gather(*map(batcher.submit, own))
        await batcher.close()
        return own, answers

    for pixels, (largest, smallest) in zip(*asyncio.run(run()), strict=True):
        np.testing.assert_array_equal(largest, pixels.ravel())
        np.testing.assert_array_equal(smallest, pixels.ravel())
    assert {size for size, _ in gate.batches} <= set(batch_sizes(max_batch))
