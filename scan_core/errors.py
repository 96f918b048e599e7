"""The one exception for mistakes a user can mend."""


class ScanError(Exception):
    """What is wrong, in one line: the thing, what it is, what is allowed, what to do."""
