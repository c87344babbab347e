"""The situation and the latest result in the holding registers of a Modbus/TCP device."""

from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from pymodbus.client import ModbusTcpClient

from ..states import Situation
from .registers import COUNT, registers

PORT = 502
TIMEOUT = 3.0  # seconds


class Modbus:
    """Writes all registers in one request (function 16), whenever anything changes and every second.

    Registers hold the latest result: those that came while the device could not be reached are not written later, which the
    part's number shows.

    Args:
        address: `modbus://HOST[:PORT][/BASE][?unit=N]`; the registers begin at BASE (0), as the protocol counts, of unit N (1).

    Raises:
        ValueError: if the address has no host, or a number is out of its range.
    """

    wants_latest_only = True

    def __init__(self, address: str):
        url = urlsplit(address)
        try:
            self._base = int(url.path.strip("/") or 0)
            self._unit = int(parse_qs(url.query, strict_parsing=bool(url.query)).get("unit", ["1"])[0])
        except ValueError:
            self._base = self._unit = -1
        if not url.hostname or not 0 <= self._base <= 65536 - COUNT or not 0 <= self._unit <= 255:
            raise ValueError(f"{address}: name host, first register and unit, such as modbus://plc:502/100?unit=1")
        self.address = address
        self._client = ModbusTcpClient(url.hostname, port=url.port or PORT, timeout=TIMEOUT, retries=0)
        self._latest: dict | None = None
        self._beat = 0

    def send(self, results: Sequence[dict], situation: Situation) -> None:
        """Writes the registers; see [`Sink`].

        Raises:
            OSError: if the device can't be reached or refuses.
            ModbusException: if it does not answer.
        """
        if results:
            self._latest = results[-1]
        if not self._client.connected and not self._client.connect():
            raise OSError("the device can't be reached")
        try:
            answer = self._client.write_registers(
                self._base, registers(situation, self._latest, self._beat), device_id=self._unit
            )
        except Exception:
            self._client.close()
            raise
        if answer.isError():
            raise OSError(f"the device refuses the registers {self._base} to {self._base + COUNT - 1} ({answer})")
        self._beat += 1

    def close(self) -> None:
        """Disconnects."""
        self._client.close()
