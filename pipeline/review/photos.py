"""The photos themselves: large pictures and days. Only a review sees them; a report has what the store holds."""

import datetime
import os
from pathlib import Path

from PIL import Image, ImageOps

from pipeline.params import Params
from pipeline.review.images import StoredImages, encoded
from scan_core.data.open import resolve
from scan_core.errors import ScanError

LARGE = 2_048  # pixels of the longer side at most


class Photos(StoredImages):
    """The images of the last run, with their files as far as these are still there."""

    def __init__(self, params: Params) -> None:
        super().__init__()
        self._data = params.data

    def photo(self, image: int) -> bytes:
        """A large JPEG picture: the photo itself if it is a file that is still there, else what the store has."""
        try:
            with Image.open(self.file(image)) as opened:
                opened.draft("RGB", (LARGE, LARGE))
                picture = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, ScanError):
            picture = self.stored(image, self.stats["size"])
        picture.thumbnail((LARGE, LARGE))
        return encoded(picture.convert("RGB"), "JPEG")

    def file(self, image: int) -> Path:
        """The photo's file. Raises ``ScanError`` if it is inside an archive or a table, or is a part of a picture."""
        if self._data.name != "folder" or self._data.boxes is not None:
            raise ScanError(f"{self.sources[image]} is no file of its own")
        found: Path = resolve(self._data.path or "", Path.cwd()) / self.sources[image]
        return found

    def date(self, image: int) -> str:
        """The day on which the photo's file was written last, such as 2024-05-03; "" if there is no such file."""
        try:
            return datetime.date.fromtimestamp(os.stat(self.file(image)).st_mtime).isoformat()
        except (OSError, OverflowError, ValueError, ScanError):
            return ""
