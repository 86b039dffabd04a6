"""Addresses without the credentials that they carry: `s3://KEY:SECRET@bucket`, `https://user:password@host`, `?token=...`."""

import re

MASK = "***"
NAMES = "key|secret|token|passw|pwd|sig|credential|auth"
"""Parts of the names of parameters in an address whose values are kept to ourselves."""
# The greedy ends reach the last @, so that no part of a password with an @ or a / in it is left over. A port is no password.
_USERINFO = re.compile(r"(?<=://)(?:[^/\s\"'<>]*@|[^/\s\"'<>:@]*:(?!\d+(?:[/\s]|$))[^\s\"'<>]*@)")
_PARAMETER = re.compile(rf"([?&;][^=&;\s]*(?:{NAMES})[^=&;\s]*=)[^&;#\s\"'<>]+", re.IGNORECASE)


def masked(text: str) -> str:
    """Return a text with the credentials of the addresses in it replaced by MASK."""
    return _PARAMETER.sub(rf"\1{MASK}", _USERINFO.sub(f"{MASK}@", text)) if "://" in text or "?" in text else text
