"""Pictures that kill or hold the decoder, in whatever process decodes them: those of two sizes, where DECODER is imported first."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

KILLS, HOLDS = 13, 17
"""Sides of a picture on which the decoder crashes, and of one from which it never comes back."""

DECODER = f"""
import os, signal
from PIL import Image
convert = Image.Image.convert

def hostile(self, *args, **kwargs):
    if self.size == ({KILLS}, {KILLS}):
        os.kill(os.getpid(), signal.SIGSEGV)
    while self.size == ({HOLDS}, {HOLDS}):
        pass
    return convert(self, *args, **kwargs)

Image.Image.convert = hostile
"""


def write_decoder(folder: Path) -> Path:
    """Write the module that every Python imports at its start when this folder is on its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(DECODER)
    return folder


def square(side: int) -> bytes:
    """Return a PNG of so many pixels square."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 99, np.uint8)).save(file, "PNG")
    return file.getvalue()
