"""The CSV files that a person writes: the labels and the boxes of images."""

import codecs
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from scan_core.errors import ScanError


def csv_rows(path: Path, columns: Sequence[str], setting: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row of a CSV file, with the number of its last line; of a short row values are missing.

    The file is in UTF-8, or in what a spreadsheet calls Unicode text: UTF-16 with a mark. Values are separated by
    commas, or by semicolons or tabs if the first line has more of these.
    Raises ``ScanError`` if the file or one of ``columns`` is missing, or if it is not such a file. ``setting`` is what
    names the file.
    """
    try:
        with path.open("rb") as binary:
            encoding = "utf-16" if binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        with path.open(encoding=encoding, newline="") as file:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            lines = csv.reader(file, strict=True, delimiter=delimiter)
            header = [name.strip() for name in next(lines, [])]
            for name in columns:
                if header.count(name) != 1:
                    raise ScanError(
                        f'{path} has {header.count(name)} columns named "{name}"; its columns are '
                        f"{', '.join(header) or 'none'}; its first line needs one each of {', '.join(columns)}, "
                        "separated by commas"
                    )
            for line in lines:
                yield lines.line_num, dict(zip(header, line, strict=False))
    except UnicodeError as error:
        raise ScanError(f"{path} is not UTF-8 text; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise ScanError(f"{path}, line {lines.line_num}: {error}; repair that line") from error
    except OSError as error:
        raise ScanError(f"{path} cannot be read: {error.strerror}; {setting} must name a .csv file") from error
