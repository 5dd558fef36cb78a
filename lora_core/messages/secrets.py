"""What other programs and servers say, as it may be shown: one line, without the secrets it may repeat."""

from __future__ import annotations

import os
import re

HIDDEN = "***"
MIN_SECRET_CHARS = 6
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)
_KEY = re.compile(
    r"\b(?:hf_(?!hub|transfer|xet|home|token|cache)|api_org_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA|AIza)[\w-]{4,}"
)
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{4,}", re.IGNORECASE)
_NAMED = re.compile(
    r"""\b((?:authorization|[\w-]*(?:token|secret|password|passwd|api[_-]?key|signature|credential)s?|sig|policy|key-pair-id)["']?\s*[=:]\s*["']?)"""
    r"""(?!\s)[^\s"'&,;<>]{4,}""",
    re.IGNORECASE,
)
_LOGIN = re.compile(r"(\w://)[^/\s@]+@")
_BREAKS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)  # controls, line breaks, marks that turn the direction of text, halves of characters


def in_one_line(text: str) -> str:
    """The text without line breaks and other characters that act instead of being shown; they are written as escapes."""
    return _BREAKS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def without_secrets(text: str) -> str:
    """The text with keys, tokens, passwords and logins hidden: by how they look, by what stands before them, and those of the environment."""
    for name, value in os.environ.items():
        if len(value) >= MIN_SECRET_CHARS and _SECRET_NAME.search(name) and not os.path.isabs(value):
            text = text.replace(value, HIDDEN)
    text = _BEARER.sub(rf"\1 {HIDDEN}", _KEY.sub(HIDDEN, text))
    return _LOGIN.sub(rf"\1{HIDDEN}@", _NAMED.sub(rf"\1{HIDDEN}", text))
