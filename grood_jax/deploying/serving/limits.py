"""What the service takes from strangers."""

from dataclasses import dataclass, fields

from grood_jax.support import checks


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a request may be, and how long it may take; the status says what was exceeded.

    Attributes:
      max_body: bytes of one request's body (413).
      max_held: bytes of all bodies that are being read or decoded (503).
      max_pixels: of one image file, also after its shorter side has been resized (413).
      max_batch: images that run on the device at once, and in one request (413).
      max_queue: images that wait for the device (503).
      max_nearest: training samples that one may ask for with each image (400).
      timeout: seconds from the end of a request to its answer (504).
      body_timeout: seconds in which a request has to arrive (408).
    """

    max_body: int = 8 * 2**20
    max_held: int = 256 * 2**20
    max_pixels: int = 2**24
    max_batch: int = 64
    max_queue: int = 1024
    max_nearest: int = 10
    timeout: float = 10.0
    body_timeout: float = 20.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          TypeError: a limit that is no number, or no integer.
          ValueError: a limit that would let nothing pass.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_"):
                checks.at_least(field.name, value, 1)
            else:
                checks.positive(field.name, value)
        checks.at_least("max_held", self.max_held, self.max_body)
        checks.at_least("max_queue", self.max_queue, self.max_batch)
