"""The exceptions for what a user can mend."""

import errno


class ScanError(Exception):
    """What is wrong, in one line: the thing, what it is, what is allowed, what to do."""


class DamagedFile(ScanError):
    """A file that an earlier step has written is missing or damaged. The caller says how it is made again."""


def exhausted(error: BaseException, less: str = "the number of images") -> str | None:
    """In words, if the machine has run out of disk or memory; ``less`` is what takes memory and can be lowered.

    Libraries say it in their own ways: torch by a RuntimeError, safetensors by an error of its own.
    """
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        return "no room is left on the disk; make room, then run the same again: what was finished is there"
    if isinstance(error, MemoryError) or any(
        words in text for words in ("ut of memory", "allocate memory", "bad_alloc")
    ):
        return f"out of memory; close other programs, or lower {less}, then run the same again"
    return None
