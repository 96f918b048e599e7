"""The exceptions for what a user can mend."""


class ScanError(Exception):
    """What is wrong, in one line: the thing, what it is, what is allowed, what to do."""


class DamagedFile(ScanError):
    """A file that an earlier step has written is missing or damaged. The caller says how it is made again."""
