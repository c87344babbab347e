"""Addresses as they may be shown and kept."""

from urllib.parse import urlsplit


def without_credentials(address: str) -> str:
    """An address without the user name and password that a URL may carry; paths stay as they are."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
