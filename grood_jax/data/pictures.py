"""Image files of every kind that Pillow opens: limits on decoding, orientation, 8-bit pixels."""

import importlib.util
import io
import re
import time
from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What the service takes and what tensorflow-datasets stores; Pillow would try rarer formats before
some of these."""

SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpx", ".jpf", ".jpc"),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
}
"""Of image files in folders, by Pillow's names of their formats."""

MAX_PIXELS = 2**26
"""Of an image, as it is stored and when its shorter side has been resized: a few bytes may promise
any number of them."""

MAX_SCANS = 64
"""Of a JPEG: each costs a pass over all pixels, and thousands fit into a small file."""

MAX_PASSES = 16
"""Over as many pixels as an image may have: more scans than a large progressive JPEG has."""

GROUND = "white"
"""What transparent pictures lie on: what a page shows them on."""

# Where a decoder looks for the next marker: stuffed zeros and restarts end no scan.
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_ORIENTATION, _BITS, _ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH = 274, 258, 278, 322, 323
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageTooLarge(ValueError):
    """An image of more pixels, or of more work, than is allowed."""


@cache
def file_formats() -> tuple[str, ...]:
    """The formats of files in folders that can be read here.

    HEIC needs the package pillow-heif; AVIF a Pillow that was built with it, as its wheels are.
    """
    Image.init()
    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in SUFFIXES if name in Image.OPEN)


def suffixes() -> tuple[str, ...]:
    """Of files in folders that are taken for images, lower case."""
    return tuple(suffix for own in SUFFIXES.values() for suffix in own)


def missing_decoder(encoded: bytes) -> str:
    """What an image would need that could not be identified, as the end of a sentence."""
    heif = encoded[4:8] == b"ftyp" and encoded[8:12] in (
        b"heic",
        b"heix",
        b"mif1",
        b"hevc",
        b"heim",
    )
    if heif and importlib.util.find_spec("pillow_heif") is None:
        return " but HEIC, which needs the package pillow-heif (pip install pillow-heif)"
    return ""


def timed(encoded: bytes, seconds: float | None) -> io.BytesIO:
    """A file of these bytes that refuses to be read when the seconds are over."""
    return io.BytesIO(encoded) if seconds is None else _Timed(encoded, seconds)


class _Timed(io.BytesIO):
    """Pillow reads 64 KiB at a time, so that a decode ends soon after its time."""

    def __init__(self, encoded: bytes, seconds: float) -> None:
        super().__init__(encoded)
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._end:
            raise ImageTooLarge(f"decoding the image took longer than {self._seconds:g} s")
        return super().read(size)


def require_few_scans(picture: Image.Image, encoded: bytes, max_pixels: int = MAX_PIXELS) -> None:
    """Refuses a JPEG whose scans are too much work, whatever Pillow calls it.

    A JPEG with an MPF segment is an MPO; a TIFF may hold a JPEG in each of its strips or tiles.

    Args:
      picture: as it was opened, not yet decoded.
      encoded: its bytes.
      max_pixels: `MAX_PASSES` times as many may be passed over.

    Raises:
      ImageTooLarge: it has more than `MAX_SCANS` scans, or they pass over too many pixels.
    """
    pixels = picture.width * picture.height
    tags = getattr(picture, "tag_v2", None)
    # All scans, and what only looks like one: of most files there is no more to be known.
    scans = bytes(encoded).count(b"\xff\xda")
    if is_jpeg := encoded[:2] == b"\xff\xd8":
        most = MAX_SCANS
    elif tags is not None and "jpeg" in str(picture.info.get("compression")):
        # Any of them may lie in one strip or tile.
        most = len(encoded)
        tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
        pixels = min(pixels, tile or picture.width * int(tags.get(_ROWS_PER_STRIP, picture.height)))
    else:
        return
    most = min(most, MAX_PASSES * max_pixels // max(1, pixels))
    if scans > most and is_jpeg:
        scans = _scans(encoded)
    if scans > most:
        raise ImageTooLarge(f"the JPEG has {scans} scans or more; expected at most {most}")


def _scans(encoded: bytes) -> int:
    """How many scans a decoder finds, as far as it matters; what follows the picture is not its."""
    place, scans = 2, 0
    while scans <= MAX_SCANS and (match := _MARKER.search(encoded, place)) is not None:
        marker, place = match.group(1)[0], match.end()
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        if marker not in (0x01, 0xD8, 0xDA):
            # The segment's length counts itself. A scan's is not needed: its data are searched.
            place += int.from_bytes(encoded[place : place + 2], "big")
    return scans


def turned_upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says that it is to be seen."""
    # Decoding a TIFF turns it, and takes the tag away.
    picture.load()
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Pillow raises whatever it meets in damaged metadata, without which there is a picture yet.
        turn = None
    return picture if turn is None else picture.transpose(turn)


def plain(picture: Image.Image) -> Image.Image:
    """The picture in one of Pillow's modes of 8 bits and without transparency.

    16-bit grey is scaled from its whole range (that of its bits, where a TIFF says how many); a
    32-bit picture, whole numbers or real, from its own least value to its largest, since there is
    no range that all keep to. 16-bit colour comes from Pillow as the higher 8 bits. Transparent
    pictures, palettes and colour keys included, are laid on white. CMYK, YCbCr and the like become
    RGB by Pillow's formulas, without a colour profile.

    Args:
      picture: of any mode that Pillow opens.

    Raises:
      ValueError: it holds NaN or infinities.
    """
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(picture))
    if picture.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = (ImageCms.createProfile(space) for space in ("LAB", "sRGB"))
        converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if picture.has_transparency_data:
        if picture.mode == "La":
            picture = picture.convert("LA")
        ground = Image.new("RGBA", picture.size, GROUND)
        return Image.alpha_composite(ground, picture.convert("RGBA"))
    return picture


def _eight_bits(picture: Image.Image) -> UInt8[np.ndarray, "h w"]:
    values = np.asarray(picture)
    if picture.mode != "F" and (picture.mode != "I" or picture.format in ("PNG", "PPM")):
        top = 2 ** _bits(picture) - 1
        table = np.round(np.arange(2**16) * (255 / top)).clip(0, 255).astype(np.uint8)
        grey = table[values.clip(0, 2**16 - 1)]
        key = picture.info.get("transparency")
        if isinstance(key, int):
            grey[values == key] = 255
        return grey
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        raise ValueError("it holds values that are NaN or infinite")
    # float64 only row by row: of a large picture it would be gigabytes.
    scale = 255 / (high - low) if high > low else 0.0
    rows = (np.round((row.astype(np.float64) - low) * scale) for row in values)
    return np.stack([row.astype(np.uint8) for row in rows])


def _bits(picture: Image.Image) -> int:
    """Of each value, where a TIFF says so; 16 otherwise."""
    tags = getattr(picture, "tag_v2", None) or {}
    bits = tags.get(_BITS, 16)
    depth = bits[0] if isinstance(bits, tuple) and bits else bits
    return depth if isinstance(depth, int) and 8 < depth <= 16 else 16
