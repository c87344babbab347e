"""The sink that an address names."""

from pathlib import Path
from urllib.parse import urlsplit

from ..delivery import Sink


def open_sink(address: str, identity: str) -> Sink:
    """A sink; nothing is connected before the first delivery.

    Args:
        address: `NAME.csv`, `NAME.jsonl`, or a URL that begins with `http://`, `https://`, `mqtt://`, `mqtts://` or `modbus://`.
        identity: of the journal that the results come from.

    Raises:
        ValueError, FileNotFoundError: if there is no such sink, or it needs an extra that is not installed.
    """
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme and urlsplit(address).username:  # journal, messages and lists of processes would show it
        raise ValueError(f"{urlsplit(address).hostname}: give user, password or token in variables, not in --to; see the guide")
    try:
        if scheme in ("http", "https"):
            from .webhook import Webhook

            return Webhook(address)
        if scheme in ("mqtt", "mqtts"):
            from .mqtt import Mqtt

            return Mqtt(address)
        if scheme == "modbus":
            from .modbus import Modbus

            return Modbus(address)
    except ModuleNotFoundError as error:
        raise ValueError(f"{address}: needs the Python package {error.name}: pip install 'diffad[watch]'") from None
    if scheme:
        raise ValueError(f"{address}: results go to .csv, .jsonl, http(s)://, mqtt(s):// or modbus://")
    from .files import TableFile

    return TableFile(Path(address), identity)
