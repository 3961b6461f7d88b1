"""Small pictures for the report, which are also kept in a saved classifier."""

import io
from pathlib import Path

from mamllit.data.sources.bounded import IMAGE, read_bytes
from mamllit.data.sources.pixels import opened, settled

SIDE = 112  # pixels of the longer side


def thumbnail(file: Path) -> bytes:
    """A small JPEG of an image file; empty where it is gone or cannot be read."""
    try:
        with opened(read_bytes(file, IMAGE)) as image:
            image.draft(None, (2 * SIDE, 2 * SIDE))  # a JPEG is decoded no larger than that
            small = settled(image, channels=3, upright=True)
            small.thumbnail((SIDE, SIDE))
            data = io.BytesIO()
            small.save(data, "JPEG", quality=82)
    except Exception:  # Pillow can raise nearly anything on a damaged file
        return b""
    return data.getvalue()
