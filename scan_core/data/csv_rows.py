"""The CSV files that a person writes: the labels and the boxes of images."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from scan_core.errors import ScanError


def csv_rows(path: Path, columns: Sequence[str], setting: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row of a UTF-8 CSV file, with the number of its last line; of a short row values are missing.

    Raises ``ScanError`` if the file or one of ``columns`` is missing, or if it is not CSV in UTF-8. ``setting`` is what
    names the file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
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
    except UnicodeDecodeError as error:
        raise ScanError(f"{path} is not UTF-8 text; save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise ScanError(f"{path}, line {lines.line_num}: {error}; repair that line") from error
    except OSError as error:
        raise ScanError(f"{path} cannot be read: {error.strerror}; {setting} must name a .csv file") from error
