"""From a request's body to pixels, or to an error that says what is wrong with it."""

import io
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from grood_jax.data import Preprocessing
from grood_jax.data.pictures import FORMATS, ImageTooLarge
from grood_jax.deploying.serving.limits import Limits

IMAGE_TYPES = (
    *(f"image/{name.lower()}" for name in FORMATS),
    "image/x-ms-bmp",
    "application/octet-stream",
)
JSON_TYPE, NPY_TYPE = "application/json", "application/x-npy"
FORM_TYPE = "multipart/form-data"


def media_type(header: str) -> str:
    """The type that a Content-Type header names, without parameters.

    Raises:
      HTTPException: 415, it is none that is read here.
    """
    kind = header.partition(";")[0].strip().lower()
    if kind not in (*IMAGE_TYPES, JSON_TYPE, NPY_TYPE, FORM_TYPE):
        raise HTTPException(
            415,
            f"Content-Type is {kind[:100]!r}; expected {', '.join(IMAGE_TYPES)}, {JSON_TYPE}, "
            f"{NPY_TYPE} or {FORM_TYPE}",
        )
    return kind


async def files_of(header: str, body: bytes, limits: Limits) -> list[bytes]:
    """The image files of a form, as a browser or ``curl -F`` sends it.

    Args:
      header: the Content-Type of the request, with its boundary.
      body: of the request.
      limits: how many images there may be.

    Raises:
      HTTPException: 400 for what is no form, or holds too many files; 422 where there is none, or a
        field that is no file.
    """

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        Headers({"content-type": header}), whole(), max_files=limits.max_batch, max_fields=1
    )
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        raise HTTPException(400, f"the body is no form that is read here: {error}"[:200]) from error
    files = []
    try:
        for name, part in form.multi_items():
            if isinstance(part, str):
                raise HTTPException(422, f"{name!r} in the form is no file; expected images"[:200])
            files.append(await part.read())
    finally:
        await form.close()
    if not files:
        raise HTTPException(422, "the form holds no file; expected images")
    return files


def read_all(
    bodies: Sequence[bytes], preprocessing: Preprocessing, limits: Limits
) -> UInt8[np.ndarray, "b h w c"]:
    """Reads image files, (B, H, W, C).

    Raises:
      HTTPException: as `read`, with the number of the file.
    """
    pixels = []
    for number, body in enumerate(bodies, start=1):
        try:
            pixels.append(_from_file(body, preprocessing, limits))
        except HTTPException as error:
            raise HTTPException(error.status_code, f"file {number}: {error.detail}") from error
    return np.stack(pixels)


def read(
    kind: str, body: bytes, preprocessing: Preprocessing, limits: Limits
) -> UInt8[np.ndarray, "..."]:
    """Reads one image or several.

    Args:
      kind: what `media_type` found.
      body: of the request.
      preprocessing: size and channels of the images wanted.
      limits: how large images may be, and how many.

    Returns:
      (H, W, C), or (B, H, W, C) where the body has that shape.

    Raises:
      HTTPException: 400 for what cannot be read, 413 for too much of it, 422 for arrays of another
        shape or type.
    """
    if kind == JSON_TYPE:
        return _from_json(body, preprocessing, limits)
    if kind == NPY_TYPE:
        return _from_npy(body, preprocessing, limits)
    return _from_file(body, preprocessing, limits)


def _from_file(
    body: bytes, preprocessing: Preprocessing, limits: Limits
) -> UInt8[np.ndarray, "h w c"]:
    try:
        return preprocessing.decode(
            body, max_pixels=limits.max_pixels, upright=True, seconds=limits.timeout
        )
    except ImageTooLarge as error:
        raise HTTPException(413, str(error)) from error
    except ValueError as error:
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise HTTPException(400, f"the body is no readable {kinds} image: {error}"[:300]) from error


def _from_json(body: bytes, preprocessing: Preprocessing, limits: Limits) -> np.ndarray:
    try:
        parsed = json.loads(body)
    # ValueError also for bytes that are no text; RecursionError for [[[[…
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON: {error}"[:200]) from error
    if not isinstance(parsed, dict) or list(parsed) != ["pixels"]:
        raise HTTPException(422, 'the JSON is not of the form {"pixels": [...]}')
    pixels = parsed["pixels"]
    one = _one(preprocessing)
    shape = (len(pixels), *one) if _depth(pixels) == 4 else one
    _check_shape(shape, preprocessing, limits)
    return np.frombuffer(_flat(pixels, shape, preprocessing), np.uint8).reshape(shape)


def _depth(value: Any) -> int:
    """How deep lists are nested in each other, up to 5."""
    depth = 0
    while isinstance(value, list) and value and depth < 5:
        value, depth = value[0], depth + 1
    return depth


def _flat(value: Any, shape: Sequence[int], preprocessing: Preprocessing) -> bytes:
    """The bytes of nested lists; NumPy would read strings and cut off fractions."""
    if not isinstance(value, list) or len(value) != shape[0]:
        raise HTTPException(422, f"pixels is not of shape {_expected(preprocessing)}")
    if len(shape) > 1:
        return b"".join(_flat(part, shape[1:], preprocessing) for part in value)
    if not all(type(number) is int and 0 <= number <= 255 for number in value):
        raise HTTPException(422, "pixels holds more than whole numbers from 0 to 255")
    return bytes(value)


def _from_npy(body: bytes, preprocessing: Preprocessing, limits: Limits) -> np.ndarray:
    # Not np.load: it makes room for whatever the header promises.
    file = io.BytesIO(body)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    # The header is a Python literal: parsing a hostile one can raise anything.
    except Exception as error:
        raise HTTPException(400, "the body is no .npy file of format 1 or 2") from error
    if dtype != np.uint8:
        raise HTTPException(422, f"the array has dtype {dtype}; expected uint8"[:200])
    # Python does not even write out an integer of thousands of digits.
    if any(abs(side) > len(body) for side in shape):
        raise HTTPException(422, "the array's shape is larger than the body")
    shape = tuple(map(int, shape))
    _check_shape(shape, preprocessing, limits)
    # Of a checked shape, hence small.
    count, left = int(np.prod(shape)), len(body) - file.tell()
    if left != count:
        raise HTTPException(400, f"the .npy file has {left} bytes of pixels; expected {count}")
    pixels = np.frombuffer(body, np.uint8, count, file.tell())
    return pixels.reshape(shape, order="F" if fortran else "C")


def _check_shape(shape: Sequence[int], preprocessing: Preprocessing, limits: Limits) -> None:
    one = _one(preprocessing)
    count, *rest = shape if len(shape) == 4 else (1, *shape)
    if tuple(rest) != one or count < 1:
        raise HTTPException(
            422, f"pixels has shape {tuple(shape)}; expected {_expected(preprocessing)}"[:200]
        )
    if count > limits.max_batch:
        raise HTTPException(413, f"{count} images at once; expected at most {limits.max_batch}")


def _one(preprocessing: Preprocessing) -> tuple[int, int, int]:
    size = preprocessing.image_size
    return size, size, preprocessing.channels


def _expected(preprocessing: Preprocessing) -> str:
    inner = ", ".join(map(str, _one(preprocessing)))
    return f"({inner}) or (B, {inner})"
