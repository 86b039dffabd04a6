"""From bytes to pixels: content-checked, bounded, and exactly the pixels that a CLIP model is trained on."""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from .files import LFS, LFS_POINTER
from .guarded import TIMEOUT_S, late, refused, timed
from .samples import Reject

Image.init()
FORMATS = tuple(
    form for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000") if form in Image.OPEN
)
"""What may be decoded, where Pillow was built with it. Pillow knows more, among them PostScript, which it hands to an
interpreter: those are never opened."""

MAX_SIDE_RATIO = 200
"""Longer side to shorter side. A model's input has the shorter side at its own size, and what is cut away is resized with the
rest: 1 x 20,000 pixels become 224 x 4,480,000, of which an image of 164 bytes takes 4.7 GiB."""

MAX_JPEG_SCANS = 64
"""Scans of a JPEG; encoders write about ten, and each goes over the whole image."""

MIN_PROGRESSIVE_BITS = 64
"""Pixels that one bit of a JPEG can stand for at most: every block of 8 x 8 has a bit of its mean at least."""

MAX_TILE_RATIO = 16
"""Pixels of a TIFF's tile to those of the image: a tile is read whole, however little of it shows."""

MAX_PIXELS = 89_478_485
"""Pillow's own limit on width x height: 0.25 GiB as RGB."""
MaxPixels = Annotated[int, Field(ge=1)]
"""Setting of how many pixels an image may have; one whose header claims more is never decoded."""

# Every bad image is reported with its reason; Pillow's warnings about odd tags and large headers add only noise.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(ValueError):
    """The bytes cannot be turned into pixels; `reason` is the reject reason, the message says more."""

    def __init__(self, reason: Reject, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Decoded:
    """One decoded image."""

    rgb: np.ndarray
    """`[H, W, 3] uint8`."""
    width: int
    """Pixels, as stored."""
    height: int
    """Pixels, as stored."""


def decode(data: bytes, max_pixels: int, timeout_s: float = TIMEOUT_S) -> Decoded:
    """Decode an image by its content, whatever its file name says.

    The pixels are those that open_clip trains on (`Image.open(...).convert("RGB")`), because a detector must see what
    the suspect model saw: EXIF orientation is not applied (neither open_clip nor img2dataset applies it), alpha is
    dropped without compositing, of an animation the first frame counts. One exception: samples deeper than 8 bits are
    scaled to 8, where Pillow would clip almost all of them to white.

    Args:
        data: the file's bytes.
        max_pixels: limit on width x height; above it nothing is decoded, and no memory is taken for it.
        timeout_s: limit on the seconds that it takes (see `guarded`).

    Raises:
        BadImage: with IMAGE_EMPTY, IMAGE_UNREADABLE, IMAGE_TRUNCATED, IMAGE_TOO_LARGE, DECODE_TIMEOUT or WORKER_DIED.
    """
    if not data:
        raise BadImage(Reject.IMAGE_EMPTY, "0 bytes")
    check_webp_size(data, max_pixels)
    if data.startswith(LFS_POINTER):
        raise BadImage(Reject.IMAGE_UNREADABLE, LFS)
    refusal = refused(data, max_pixels, timeout_s)
    if refusal is not None:
        raise BadImage(*refusal)
    try:
        with timed(timeout_s):
            return _decoded(data, max_pixels)
    except TimeoutError:
        raise BadImage(*late(timeout_s)) from None


def _decoded(data: bytes, max_pixels: int) -> Decoded:
    # Pillow's plugins raise nearly anything (struct.error, SyntaxError, IndexError, ...) on hostile headers and bodies.
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(Reject.IMAGE_TOO_LARGE, str(error)) from error
    except Exception as error:
        reason = Reject.IMAGE_TRUNCATED if has_signature(data) else Reject.IMAGE_UNREADABLE
        raise BadImage(reason, f"{len(data)} bytes: {_words(error)}") from error
    with image:
        width, height = image.size
        check_size(width, height, max_pixels)
        check_work(image, data, max_pixels)
        try:
            rgb = np.asarray(to_rgb(image))
        except Image.DecompressionBombError as error:
            raise BadImage(Reject.IMAGE_TOO_LARGE, str(error)) from error
        except Exception as error:
            raise BadImage(Reject.IMAGE_TRUNCATED, f"{image.format} body: {_words(error)}") from error
    return Decoded(rgb=rgb, width=width, height=height)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB; 16-bit, 32-bit and float greys are scaled, not clipped."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16) >> 8
    elif image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        # Pillow also opens 16-bit PNG and TIFF as 32-bit; no file states its white level, so the range decides.
        top = 255.0 if values.max(initial=0.0) <= 255 else 65535.0
        top = 1.0 if image.mode == "F" and values.max(initial=0.0) <= 1 else top
        grey = np.clip(np.nan_to_num(values) * (255 / top), 0, 255)
    else:
        return image.convert("RGB")
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise BadImage when the header promises more pixels than allowed, or none."""
    if width * height > max_pixels:
        raise BadImage(Reject.IMAGE_TOO_LARGE, f"{width} x {height} is more than {max_pixels} pixels")
    if width * height == 0:
        raise BadImage(Reject.IMAGE_UNREADABLE, f"{width} x {height} has no pixels")


def check_work(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Raise BadImage for an opened, undecoded image that would cost far more than its pixels to decode or to resize."""
    width, height = image.size
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        told = f"{width} x {height} has one side more than {MAX_SIDE_RATIO} times as long as the other"
        raise BadImage(Reject.IMAGE_TOO_LARGE, told)
    if image.format in ("JPEG", "MPO"):
        scans = data.count(b"\xff\xda")
        if scans > MAX_JPEG_SCANS:
            raise BadImage(Reject.IMAGE_TOO_LARGE, f"a JPEG of {scans} scans, more than {MAX_JPEG_SCANS}")
        if 8 * len(data) * MIN_PROGRESSIVE_BITS < width * height:
            raise BadImage(Reject.IMAGE_TRUNCATED, f"{len(data)} bytes cannot hold a JPEG of {width} x {height}")
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        tile = _number(tags.get(TILE_WIDTH)) * _number(tags.get(TILE_HEIGHT))
        if tile > max(MAX_TILE_RATIO * width * height, 2**20) or tile > max_pixels:
            raise BadImage(Reject.IMAGE_TOO_LARGE, f"a TIFF of {width} x {height} in tiles of {tile} pixels")


TILE_WIDTH, TILE_HEIGHT = 322, 323
"""Tags of TIFF 6.0, section 15."""


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _words(error: Exception) -> str:
    """Return Pillow's own words; its address of a stream in memory says nothing."""
    text = " ".join(str(error).split())
    return "Pillow knows no such image" if isinstance(error, UnidentifiedImageError) or not text else text[:200]


def check_webp_size(data: bytes, max_pixels: int) -> None:
    """Check a WebP's canvas by hand (RFC 9649): opening one makes libwebp allocate the canvas twice."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif chunk == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[26:30]))
    else:
        return
    check_size(width, height, max_pixels)


def has_signature(data: bytes) -> bool:
    """Whether the bytes begin as one of FORMATS: then what does not open is a broken image, not something else."""
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")
    return data.startswith(starts) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Cheap facts of an image, for placeholders and near-duplicates."""

    pixel_std: float
    """Standard deviation of all pixel values of all channels, 0..255; near 0: a blank image."""
    dhash: int
    """Difference hash, 64 bits: bit 8 r + c (from the top) says that cell (r, c) is darker than cell (r, c + 1)."""


def image_facts(rgb: np.ndarray) -> ImageFacts:
    """Return the facts of `rgb`, `[H, W, 3] uint8`. The standard deviation is exact (from counts, in float64)."""
    image = Image.fromarray(rgb)
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256).sum(axis=0)
    levels = np.arange(256.0)
    mean = counts @ levels / counts.sum()
    variance = counts @ (levels - mean) ** 2 / counts.sum()
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)  # [8, 9]
    bits = np.packbits(cells[:, :-1] < cells[:, 1:])
    return ImageFacts(pixel_std=float(np.sqrt(variance)), dhash=int.from_bytes(bits.tobytes(), "big"))
