"""The process of `guarded.Probe`: decodes the pictures that come through its standard input, and answers a byte for each."""

import os
import sys
from contextlib import suppress

from .decode import BadImage, decode
from .guarded import DONE, HEADER


def main() -> None:
    """Answer until the input ends. Whatever a decoder prints goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    answers.write(DONE)
    while head := sys.stdin.buffer.read(HEADER.size):
        length, max_pixels = HEADER.unpack(head)
        with suppress(BadImage):  # whoever asks will see the same, and say so
            decode(sys.stdin.buffer.read(length), max_pixels)
        answers.write(DONE)


if __name__ == "__main__":
    main()
