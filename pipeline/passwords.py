"""Passwords stay out of what is shown, logged and recorded: every text that leaves passes ``without_passwords``."""

import base64
import os
import re
import sys
import traceback
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote, unquote

HIDDEN = "***"
SHORTEST = 6  # characters of a secret that is replaced wherever it stands; a shorter one is part of many words
# Variables of MLflow, of what it stores artifacts with, of PostgreSQL and of the Hub, that hold a secret,
SECRETS = (
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "POSTGRES_PASSWORD", "HF_TOKEN"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING"),
)
# and an address that may hold one.
ADDRESSES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_S3_ENDPOINT_URL", "HF_ENDPOINT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
)
IN_TEXT = (
    (re.compile(r"(://[^\s:@/\"']*:)[^\s\"']*@"), rf"\1{HIDDEN}@"),  # user:password@
    (re.compile(r"(://)[^\s:@/\"']+@"), rf"\1{HIDDEN}@"),  # token@
    (re.compile(r"(?i)((?:password|passwd|passphrase|token|secret|api_?key)=)[^\s&\"';,]+"), rf"\1{HIDDEN}"),
)


def without_passwords(text: str) -> str:
    """``text`` with ``***`` for each password of an address, and for this process's own wherever they stand."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    for pattern, instead in IN_TEXT:
        text = pattern.sub(instead, text)
    return text


def in_values(value: Any) -> Any:
    """``without_passwords`` of every text in ``value``, but not of the names in it."""
    if isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, dict):
        return {name: in_values(each) for name, each in value.items()}
    return [in_values(each) for each in value] if isinstance(value, list) else value


def _secrets() -> list[str]:
    """The secrets in this process's variables, in the forms in which libraries write them, the longest first."""
    found = {os.environ.get(name, "") for name in SECRETS}
    for name in ADDRESSES:
        user, at, _ = re.sub(r"^[\w+.-]*:?/+", "", os.environ.get(name, "")).rpartition("@")
        name_of_user, _, password = user.partition(":")
        found |= {password or name_of_user, base64.b64encode(unquote(user).encode()).decode()} if at else set()
    forms = {form for secret in found for form in (secret, unquote(secret), quote(secret, safe=""), repr(secret)[1:-1])}
    return sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)


class WithoutPasswords:
    """A text stream that ``without_passwords`` goes before, for what libraries write by themselves."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes ``text`` without passwords."""
        self._stream.write(without_passwords(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def show_error(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """``sys.excepthook`` without passwords."""
    sys.stderr.write(without_passwords("".join(traceback.format_exception(kind, error, where))))
