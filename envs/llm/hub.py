"""Checks the connection to the Hugging Face hub."""

from __future__ import annotations

from functools import cache


@cache
def is_hub_reachable() -> bool:
    """Return True if the hub responds. Without this check, downloads would be retried for about 30 seconds."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # any network error
        return False
    return True
