"""The service as an ASGI application, which any ASGI server can run."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from grood_jax.deploying.serving import answers, images, page
from grood_jax.deploying.serving.batching import Answer, Batcher, Pixels, QueueFull, batch_sizes
from grood_jax.deploying.serving.bodies import AGAIN, Bodies
from grood_jax.deploying.serving.limits import Limits
from grood_jax.deploying.serving.metrics import CountRequests, Metrics
from grood_jax.deploying.serving.servable import Servable

READERS = 4
"""Threads that decode: more would only multiply what hostile files can make them hold."""


def create_app(model: Servable, limits: Limits | None = None) -> Starlette:
    """Makes the service; it compiles when its lifespan begins, and then answers.

    Args:
      model: what is served.
      limits: what is taken from strangers; the defaults where None.

    Returns:
      The application; its `state.batcher` counts what was accepted and answered.
    """
    service = _Service(model, limits or Limits())
    routes = [
        Route("/", service.page),
        Route("/predict", service.predict, methods=["POST"]),
        Route("/calibration", service.calibration),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics_text),
    ]
    paths = frozenset(route.path for route in routes)
    app = Starlette(
        routes=routes,
        middleware=[Middleware(CountRequests, metrics=service.metrics, paths=paths)],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    app.state.batcher = service.batcher
    return app


class _Service:
    def __init__(self, model: Servable, limits: Limits) -> None:
        self._model = model
        self._limits = limits
        self._bodies = Bodies(limits)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._page = page.respond()
        self._calibration = JSONResponse(
            {**answers.calibration(model), "max_nearest": limits.max_nearest}
        )
        self.metrics = Metrics(batch_sizes(limits.max_batch))
        self.batcher = Batcher(
            self._compute,
            max_batch=limits.max_batch,
            max_queue=limits.max_queue,
            observe=self.metrics.batch,
        )
        self.metrics.watch_queue(lambda: self.batcher.waiting)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        wanted = self._model.preprocessing
        await self.batcher.start((wanted.image_size, wanted.image_size, wanted.channels))
        yield
        await self.batcher.close()
        self._readers.shutdown()

    async def predict(self, request: Request) -> Response:
        nearest = self._nearest(request)
        header = request.headers.get("content-type", "")
        kind = images.media_type(header)
        async with contextlib.AsyncExitStack() as stack:
            body = await stack.enter_async_context(self._bodies.hold(request))
            try:
                async with asyncio.timeout(self._limits.timeout):
                    loop = asyncio.get_running_loop()
                    wanted = self._model.preprocessing
                    if kind == images.FORM_TYPE:
                        files = await images.files_of(header, body, self._limits)
                        read = partial(images.read_all, files)
                    else:
                        read = partial(images.read, kind, body)
                    pixels = await loop.run_in_executor(self._readers, read, wanted, self._limits)
                    several = pixels.ndim == 4
                    batch = pixels if several else pixels[None]
                    answer = await self.batcher.submit(batch, more=nearest > 0)
            except TimeoutError as error:
                raise HTTPException(
                    504, f"no answer within {self._limits.timeout:g} s", AGAIN
                ) from error
            except QueueFull as error:
                raise HTTPException(503, "too many images wait already", AGAIN) from error
        predictions = answers.predictions(answer, self._model.class_names, nearest)
        self.metrics.verdicts(len(predictions), sum(one["is_ood"] for one in predictions))
        return JSONResponse({"predictions": predictions} if several else predictions[0])

    async def page(self, request: Request) -> Response:
        return self._page

    async def calibration(self, request: Request) -> Response:
        return self._calibration

    async def health(self, request: Request) -> Response:
        if self.batcher.failed:
            return JSONResponse({"status": "failing", "error": "the last batch failed"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _compute(self, pixels: Pixels, nearest: bool) -> Answer:
        # Always as many neighbours, so that nothing compiles anew.
        prediction, *near = (
            self._model.predict_and_nearest(pixels, self._limits.max_nearest)
            if nearest
            else (self._model.predict(pixels),)
        )
        answer = (prediction.label, prediction.score, prediction.p_value, prediction.is_ood)
        return (*answer, *near)

    def _nearest(self, request: Request) -> int:
        """The number of neighbours that a request wants."""
        given = request.query_params.get("nearest", "0")
        most = self._limits.max_nearest
        if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given) <= most):
            raise HTTPException(400, f"nearest is {given[:20]!r}; expected 0 to {most}")
        return int(given)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    logging.getLogger(__name__).error("%s failed", request.url.path)
    return JSONResponse({"error": "the server failed; its log says why"}, 500)
