"""Pictures of every mode and orientation, against NumPy; and the work that a file may cost."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from prepared import random_images

from grood_jax.data import Preprocessing, pictures
from grood_jax.data.pictures import ImageTooLarge
from grood_jax.data.preprocessing import decode

RNG = np.random.default_rng(0)
WORDS = RNG.integers(0, 2**16, (8, 8)).astype(np.uint16)
WORDS[0, :2] = 0, 2**16 - 1
LEVELS = np.round(WORDS / 65535.0 * 255).astype(np.uint8)
COLOURS = random_images(1, 8, 3)[0]
GREYS = COLOURS[..., 0]
ALPHA = random_images(1, 8, 1)[0][..., 0]


def saved(picture, kind="PNG", **more) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **more)
    return file.getvalue()


def read(encoded, channels=3, **more):
    return decode(encoded, 8, channels, formats=pictures.file_formats(), **more)


def on_white(colours, alpha):
    """Alpha composition over 255, in float64."""
    share = alpha[..., None] / 255.0
    return colours * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_keeps_its_levels(kind, channels):
    found = read(saved(Image.fromarray(WORDS), kind), channels)
    np.testing.assert_array_equal(found, np.repeat(LEVELS[..., None], channels, axis=2))


def test_big_endian_16_bit_grey():
    picture = Image.frombytes("I;16B", (8, 8), WORDS.astype(">u2").tobytes())
    np.testing.assert_array_equal(np.asarray(pictures.plain(picture)), LEVELS)


def test_a_transparent_level_of_16_bit_grey():
    found = read(saved(Image.fromarray(WORDS), transparency=int(WORDS[3, 4])), 1)[..., 0]
    np.testing.assert_array_equal(found, np.where(WORDS == WORDS[3, 4], 255, LEVELS))


def test_12_bit_grey_in_a_tiff():
    values = WORDS >> 4
    file = bytearray(saved(Image.fromarray(values), "TIFF"))
    # Tag 258, bits per sample, one SHORT of 16: of 12 bits, Pillow reads three bytes to two pixels.
    place = file.index(b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00") + 8
    file[place] = 12
    packed = bytearray()
    for first, second in values.reshape(-1, 2).tolist():
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    start = file.index(values.astype("<u2").tobytes())
    file[start : start + len(packed)] = packed
    expected = np.round(values / 4095.0 * 255)
    np.testing.assert_array_equal(read(bytes(file), 1)[..., 0], expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_pictures_run_from_their_least_to_their_largest(dtype):
    values = (RNG.normal(size=(8, 8)) * 1e5).astype(dtype)
    exact = values.astype(np.float64)
    expected = np.round((exact - exact.min()) / (exact.max() - exact.min()) * 255)
    np.testing.assert_array_equal(read(saved(Image.fromarray(values), "TIFF"), 1)[..., 0], expected)


def test_a_32_bit_picture_of_one_value_is_black():
    assert read(saved(Image.fromarray(np.full((8, 8), 7.5, np.float32)), "TIFF")).max() == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_real_picture_with_no_numbers_is_refused(value):
    values = np.zeros((8, 8), np.float32)
    values[2, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        read(saved(Image.fromarray(values), "TIFF"))


def test_16_bit_colour_is_its_higher_bits():
    words = RNG.integers(0, 2**16, (8, 8, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in words)

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    np.testing.assert_array_equal(read(file + chunk(b"IEND", b"")), words >> 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_colour_lies_on_white(kind):
    rgba = np.dstack([COLOURS, ALPHA])
    more = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = read(saved(Image.fromarray(rgba), kind, **more))
    np.testing.assert_allclose(found, on_white(COLOURS, ALPHA), atol=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_grey_lies_on_white(channels):
    picture = Image.fromarray(np.dstack([GREYS, ALPHA]), "LA")
    found = read(saved(picture), channels)
    np.testing.assert_allclose(
        found, np.repeat(on_white(GREYS[..., None], ALPHA), channels, axis=2), atol=1
    )


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_colour(kind):
    places = RNG.integers(0, 4, (8, 8)).astype(np.uint8)
    places[0, 0] = 2
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 99, 0], [7, 7, 250]], np.uint8)
    picture = Image.fromarray(places, "P")
    picture.putpalette(palette.tobytes())
    expected = palette[places]
    np.testing.assert_array_equal(read(saved(picture, kind)), expected)
    expected[places == 2] = 255
    np.testing.assert_array_equal(read(saved(picture, kind, transparency=2)), expected)


def test_a_palette_with_several_degrees_of_transparency():
    places = np.arange(64, dtype=np.uint8).reshape(8, 8)
    picture = Image.fromarray(places, "P")
    picture.putpalette(np.repeat(np.arange(64, dtype=np.uint8), 3).tobytes())
    alpha = (places * 4).astype(np.uint8)
    found = read(saved(picture, transparency=alpha.tobytes()))
    expected = on_white(np.repeat(places[..., None], 3, axis=2), alpha)
    np.testing.assert_allclose(found, expected, atol=1)


def test_a_colour_key():
    expected = COLOURS.copy()
    expected[2, 5] = 255
    key = tuple(map(int, COLOURS[2, 5]))
    np.testing.assert_array_equal(read(saved(Image.fromarray(COLOURS), transparency=key)), expected)


def test_cmyk():
    inks = np.dstack([COLOURS, ALPHA])
    found = read(saved(Image.fromarray(inks, "CMYK"), "TIFF"))
    expected = (255.0 - COLOURS) * (255 - ALPHA[..., None]) / 255
    np.testing.assert_allclose(found, expected, atol=1)


def test_lab():
    lab, srgb = (ImageCms.createProfile(space) for space in ("LAB", "sRGB"))
    picture = Image.fromarray(COLOURS // 2 + 64)
    there = ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
    np.testing.assert_allclose(read(saved(there, "TIFF")), np.asarray(picture), atol=6)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_one_bit(kind):
    bits = GREYS > 127
    found = read(saved(Image.fromarray(bits), kind), 1)[..., 0]
    np.testing.assert_array_equal(found, bits * 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "La", "RGBa", "CMYK"])
def test_an_opaque_picture_is_what_pillow_makes_of_it(mode):
    picture = Image.fromarray(COLOURS).convert("RGBA" if mode in ("La", "RGBa") else mode)
    expected = np.asarray(picture.convert("RGB"))
    if mode in ("La", "RGBa"):
        picture = picture.convert("LA").convert("La") if mode == "La" else picture.convert(mode)
        expected = np.asarray(picture.convert("LA" if mode == "La" else "RGBA").convert("RGB"))
    np.testing.assert_array_equal(np.asarray(pictures.plain(picture).convert("RGB")), expected)


def turned(image, orientation):
    """What a viewer shows, by TIFF 6.0: where the stored rows and columns begin."""
    if orientation > 4:
        image = np.swapaxes(image, 0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return image[rows, columns]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind, orientation):
    image = np.kron(random_images(1, 6, 3)[0][:4], np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    more = {"lossless": True} if kind == "WEBP" else {}
    file = saved(Image.fromarray(image), kind, exif=exif, **more)
    plain = decode(file, 64, 3)
    preprocessing = Preprocessing(64, 3, (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(preprocessing.decode(file), plain)
    upright = decode(file, 64, 3, upright=True)
    # 64 × 96 pixels: their centre crop turns as they do.
    np.testing.assert_array_equal(upright, turned(plain, orientation))
    always = Preprocessing(64, 3, (0.5,) * 3, (0.5,) * 3, upright=True)
    np.testing.assert_array_equal(always.decode(file), upright)
    np.testing.assert_array_equal(always.decode(file, upright=False), plain)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(orientation):
    image = np.kron(random_images(1, 4, 3)[0], np.ones((2, 2, 1), np.uint8))
    file = saved(Image.fromarray(image), "TIFF", tiffinfo={274: orientation})
    np.testing.assert_array_equal(read(file, upright=True), turned(image, orientation))


@pytest.mark.parametrize("damage", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"rubbish"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_metadata_turn_nothing(damage):
    file = saved(Image.fromarray(COLOURS), "JPEG", exif=damage)
    np.testing.assert_array_equal(decode(file, 8, 3, upright=True), decode(file, 8, 3))


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_is_none(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    file = saved(Image.fromarray(COLOURS), exif=exif)
    np.testing.assert_array_equal(decode(file, 8, 3, upright=True), COLOURS)


def scans(encoded):
    """The parts of a progressive JPEG that begin with a scan, without the file's end."""
    cuts = [i for i in range(len(encoded)) if encoded[i : i + 2] == b"\xff\xda"]
    return [encoded[a:b] for a, b in itertools.pairwise([*cuts, len(encoded) - 2])]


def mpf_segment():
    two = [Image.new("RGB", (16, 16)) for _ in range(2)]
    encoded = saved(two[0], "MPO", save_all=True, append_images=two[1:])
    place = 2
    while encoded[place + 4 : place + 8] != b"MPF\0":
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    return encoded[place : place + 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")]


@pytest.fixture
def progressive():
    return saved(Image.fromarray(random_images(1, 32, 3)[0]), "JPEG", progressive=True)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_of_many_scans_is_refused_whatever_it_is_called(progressive, kind):
    extra = mpf_segment() if kind == "MPO" else b""
    named = progressive[:2] + extra + progressive[2:]
    with Image.open(io.BytesIO(named)) as picture:
        assert picture.format == kind
    np.testing.assert_array_equal(decode(named, 32, 3), decode(progressive, 32, 3))
    own = scans(named)
    hostile = named[:-2] + min(own[1:], key=len) * (65 - len(own))
    with pytest.raises(ImageTooLarge, match="the JPEG has 65 scans or more; expected at most 64"):
        decode(hostile + b"\xff\xd9", 32, 3)
    # Without an end, and with what a decoder passes over in search of the next segment.
    for between in (b"", b"\xff" * 9, b"\0rubbish\xff\0", b"\xff\xd0", b"\xff\xfe\0\x04xy"):
        with pytest.raises(ImageTooLarge, match="the JPEG has 65 scans"):
            decode(named[:-2] + (between + min(own[1:], key=len)) * (65 - len(own)), 32, 3)


def test_what_follows_or_describes_a_picture_is_none_of_its_scans(progressive):
    comment = b"\xff\xfe" + (2 + 400).to_bytes(2, "big") + b"\xff\xda" * 200
    file = progressive[:2] + comment + progressive[2:] + b"\xff\xda" * 200
    np.testing.assert_array_equal(decode(file, 32, 3), decode(progressive, 32, 3))


def test_scans_of_a_large_picture_are_fewer(progressive):
    count = len(scans(progressive))
    assert count > 8
    decode(progressive, 8, 3, max_pixels=32 * 32)
    more = progressive[:-2] + min(scans(progressive)[1:], key=len) * (17 - count) + b"\xff\xd9"
    with pytest.raises(ImageTooLarge, match="17 scans or more; expected at most 16"):
        decode(more, 8, 3, max_pixels=32 * 32)
    decode(more, 8, 3, max_pixels=2 * 32 * 32)


def test_a_tiff_of_jpegs():
    image = Image.fromarray(random_images(1, 64, 3)[0])
    file = saved(image, "TIFF", compression="jpeg")
    assert read(file, max_pixels=64 * 64).shape == (8, 8, 3)
    with pytest.raises(ImageTooLarge, match="scans"):
        read(file + b"\xff\xda" * 2000, max_pixels=64 * 64)


def test_a_decode_ends_with_its_time(monkeypatch):
    file = saved(Image.fromarray(random_images(1, 400, 3)[0]), "PNG")
    assert len(file) > 5 * 65536
    now = itertools.count()
    monkeypatch.setattr(pictures.time, "monotonic", lambda: next(now))
    assert decode(file, 8, 3, seconds=1e6).shape == (8, 8, 3)
    with pytest.raises(ImageTooLarge, match="took longer than 4 s"):
        decode(file, 8, 3, seconds=4.0)


def test_every_suffix_is_read(tmp_path):
    for name in pictures.file_formats():
        for suffix in pictures.SUFFIXES[name]:
            if suffix in (".heic", ".heics", ".heif", ".heifs", ".hif"):
                continue
            path = tmp_path / f"picture{suffix}"
            Image.fromarray(COLOURS if suffix not in (".pgm",) else GREYS).save(path, name)
            found = read(path.read_bytes())
            assert found.shape == (8, 8, 3)
            if name in ("PNG", "BMP", "TIFF"):
                np.testing.assert_array_equal(found, COLOURS)


def test_heic_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="HEIC, which needs the package pillow-heif"):
        decode(b"\0\0\0\x18ftypheic" + bytes(40), 8, 3)
