"""Decoding by content: what a model is shown, and every way in which bytes can fail to be an image."""

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from clipsan.stages.decode import BadImage, decode, image_facts
from clipsan.stages.samples import Reject

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

LIMIT = 50_000_000


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def photo(side: int = 96) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def reason(data: bytes, max_pixels: int = LIMIT) -> Reject:
    with pytest.raises(BadImage) as error:
        decode(data, max_pixels)
    return error.value.reason


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_give_their_pixels(form: str) -> None:
    image = photo() if form != "GIF" else photo().quantize(64)
    options = {"lossless": True} if form == "WEBP" else {}
    decoded = decode(encode(image, form, **options), LIMIT)
    np.testing.assert_array_equal(decoded.rgb, np.asarray(image.convert("RGB")))
    assert decoded.rgb.dtype == np.uint8
    assert (decoded.width, decoded.height) == (96, 96)


def test_empty_text_and_foreign_formats_are_not_images() -> None:
    assert reason(b"") == Reject.IMAGE_EMPTY
    assert reason(b"<html>404 not found</html>") == Reject.IMAGE_UNREADABLE
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == Reject.IMAGE_UNREADABLE
    assert reason(encode(photo(), "ICO")) == Reject.IMAGE_UNREADABLE


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_file_is_truncated(form: str, share: float) -> None:
    data = encode(photo(), form)
    cut = data[: int(len(data) * share)]
    expected = {Reject.IMAGE_TRUNCATED}
    if form in ("BMP", "GIF") and share == 0.1:
        expected.add(Reject.IMAGE_UNREADABLE)  # too little for a header
    assert reason(cut) in expected


@pytest.mark.parametrize("size", [(20_000, 20_000), (60_000, 60_000)])
def test_a_bomb_is_refused_by_its_header_and_takes_no_memory(size: tuple[int, int]) -> None:
    data = bomb_png(*size)
    assert len(data) < 200
    tracemalloc.start()
    assert reason(data) == Reject.IMAGE_TOO_LARGE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 50}, {"quality": 50, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}]
)
def test_a_webp_is_refused_before_its_canvas_is_allocated(options: dict) -> None:
    data = encode(Image.new("RGB", (300, 200), "red"), "WEBP", **options)
    assert reason(data, 300 * 200 - 1) == Reject.IMAGE_TOO_LARGE
    assert decode(data, 300 * 200).width == 300


def test_the_limit_is_inclusive() -> None:
    data = encode(photo(10), "PNG")
    assert decode(data, 100).width == 10
    assert reason(data, 99) == Reject.IMAGE_TOO_LARGE


def test_alpha_is_dropped_as_open_clip_drops_it() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200
    decoded = decode(encode(Image.fromarray(pixels), "PNG"), LIMIT)
    np.testing.assert_array_equal(decoded.rgb, pixels[..., :3])


def test_cmyk_palette_grey_and_bilevel_become_rgb() -> None:
    for image, form in [
        (photo().convert("CMYK"), "JPEG"),
        (photo().quantize(16), "PNG"),
        (photo().convert("L"), "PNG"),
        (photo().convert("1"), "PNG"),
        (photo().convert("LA"), "PNG"),
    ]:
        data = encode(image, form)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(decode(data, LIMIT).rgb, expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(form: str) -> None:
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    decoded = decode(encode(Image.fromarray(values), form), LIMIT)
    np.testing.assert_array_equal(decoded.rgb[..., 0].ravel(), np.arange(256))
    np.testing.assert_array_equal(decoded.rgb[..., 0], decoded.rgb[..., 2])


def test_orientation_of_exif_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (30, 20)), "JPEG", exif=exif.tobytes())
    assert decode(data, LIMIT).rgb.shape == (20, 30, 3)


def test_of_an_animation_the_first_frame_counts() -> None:
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    data = encode(first, "GIF", save_all=True, append_images=[second])
    assert decode(data, LIMIT).rgb.min() == 255


def test_broken_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(1)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = bytearray(encode(photo(24), form))
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 8):
                broken[place] = rng.integers(256)
            with contextlib.suppress(BadImage):
                assert decode(bytes(broken), 10_000).rgb.shape[2] == 3


def test_facts_by_hand() -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (40, 72, 3), dtype=np.uint8)
    assert image_facts(rgb).pixel_std == pytest.approx(rgb.astype(np.float64).std(), rel=1e-12)
    assert image_facts(np.full((9, 9, 3), 7, np.uint8)).pixel_std == 0
    # Brightness steps of 9 x 8 equal cells: the hash follows from the grid itself.
    grid = np.random.default_rng(3).permutation(72).reshape(8, 9).astype(np.uint8)
    image = np.repeat(np.repeat(grid, 5, axis=0), 4, axis=1)[..., None].repeat(3, axis=2)
    bits = "".join("1" if grid[r, c] < grid[r, c + 1] else "0" for r in range(8) for c in range(8))
    assert image_facts(image).dhash == int(bits, 2)


def test_dhash_survives_a_codec_and_tells_photos_apart() -> None:
    smooth = Image.fromarray(np.random.default_rng(4).integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((200, 150))
    other = Image.fromarray(np.random.default_rng(5).integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((200, 150))
    one, again, far = (
        image_facts(decode(data, LIMIT).rgb).dhash
        for data in (encode(smooth, "PNG"), encode(smooth.resize((160, 120)), "JPEG", quality=60), encode(other, "PNG"))
    )
    assert (one ^ again).bit_count() <= 6
    assert (one ^ far).bit_count() >= 16


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000"])
def test_newer_formats_are_read_where_pillow_reads_them(form: str) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    data = encode(photo(), form)
    np.testing.assert_array_equal(decode(data, LIMIT).rgb, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert reason(data, 96 * 96 - 1) == Reject.IMAGE_TOO_LARGE
    assert reason(data[: len(data) // 2]) in (Reject.IMAGE_TRUNCATED, Reject.IMAGE_UNREADABLE)


@pytest.mark.parametrize("form", ["EPS", "PPM", "TGA", "PCX", "ICNS", "SGI", "DIB"])
def test_formats_that_nobody_trains_on_are_not_opened(form: str) -> None:
    assert reason(encode(photo(128), form)) == Reject.IMAGE_UNREADABLE


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 601)])
def test_a_strip_is_refused_before_it_is_resized(size: tuple[int, int]) -> None:
    data = encode(Image.new("1", size), "PNG")
    with pytest.raises(BadImage, match="times as long"):
        decode(data, LIMIT)
    assert decode(encode(Image.new("1", (3, 600)), "PNG"), LIMIT).height == 600


def test_a_jpeg_of_a_thousand_scans_is_not_decoded() -> None:
    data = encode(photo(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert decode(data, LIMIT).width == 96
    with pytest.raises(BadImage, match="scans"):
        decode(data[:-2] + data[last:-2] * 1000 + data[-2:], LIMIT)


def test_a_jpeg_too_small_for_its_pixels_is_refused_and_a_plain_one_is_not() -> None:
    plain = encode(Image.new("L", (3000, 3000)), "JPEG", progressive=True, optimize=True)
    assert decode(plain, LIMIT).width == 3000
    tracemalloc.start()
    with pytest.raises(BadImage, match="cannot hold"):
        decode(plain[:600], LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_tiff_of_one_huge_tile_is_refused() -> None:
    tags = {256: 96, 257: 96, 258: 8, 259: 1, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 8, 325: 9216}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4 + 9216)
    with pytest.raises(BadImage, match="in tiles of") as error:
        decode(data, 2**31)
    assert error.value.reason == Reject.IMAGE_TOO_LARGE


def test_a_rejection_keeps_the_words_of_pillow() -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("note", "x" * (3 * 2**20), zip=True)
    with pytest.raises(BadImage, match="MAX_TEXT_CHUNK"):
        decode(encode(photo(), "PNG", pnginfo=chunks), LIMIT)
    with pytest.raises(BadImage, match="git lfs pull"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", LIMIT)
    with pytest.raises(BadImage, match="42 bytes: Pillow knows no such image"):
        decode(b"<html>404 not found</html>" + b" " * 16, LIMIT)
