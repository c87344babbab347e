"""Results and the situation as MQTT messages."""

import json
import os
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from paho.mqtt.client import CallbackAPIVersion, Client, ConnectFlags
from paho.mqtt.enums import MQTTErrorCode

from ..states import Situation

PORTS = {"mqtt": 1883, "mqtts": 8883}
USERNAME, PASSWORD = "DIFFAD_MQTT_USERNAME", "DIFFAD_MQTT_PASSWORD"
TIMEOUT = 5.0  # seconds to connect, and for the broker to acknowledge
KEEP_ALIVE = 10  # seconds; the broker publishes the last will after one and a half times as much
AT_LEAST_ONCE = 1  # quality of service
OFFLINE = json.dumps({"state": "OFFLINE"})


class Mqtt:
    """Publishes to `PREFIX/result` every result, at least once, and to `PREFIX/status` the situation, retained.

    The broker itself publishes the status OFFLINE when the connection is lost.

    Args:
        address: `mqtt://HOST[:PORT]/PREFIX`, or `mqtts://` for TLS with the system's certificates. User and password are read
            from the variables DIFFAD_MQTT_USERNAME and DIFFAD_MQTT_PASSWORD.

    Raises:
        ValueError: if the address has no host or prefix.
    """

    wants_latest_only = False

    def __init__(self, address: str):
        url = urlsplit(address)
        self._prefix = url.path.strip("/")
        if not url.hostname or not self._prefix or set(address) & set("+#?"):
            raise ValueError(f"{address}: name host and topic, such as mqtt://broker/line1/camera2")
        self.address = address
        self._scheme, self._host, self._port = url.scheme, url.hostname, url.port or PORTS[url.scheme]
        self._client: Client | None = None
        self._shown: str | None = None

    def send(self, results: Sequence[dict], situation: Situation) -> None:
        """Publishes results, then the situation if it has changed; see [`Sink`].

        Raises:
            OSError: if the broker can't be reached, refuses, or does not acknowledge in time.
        """
        if self._client is None:
            self._connect()
        try:
            if not self._client.is_connected():
                raise OSError("the connection was lost")
            messages = [("result", json.dumps(result), False) for result in results]
            status = _status(situation)
            if status != self._shown:
                messages.append(("status", status, True))
            self._publish(messages)
            self._shown = status
        except Exception:
            self._disconnect()  # with what the client still holds: it would be sent beside the repetition
            raise

    def close(self) -> None:
        """Says OFFLINE and disconnects."""
        if self._client is not None:
            if self._client.is_connected():
                self._publish([("status", OFFLINE, True)])
            self._disconnect()

    def _connect(self) -> None:
        client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        if self._scheme == "mqtts":
            client.tls_set()
        if USERNAME in os.environ:
            client.username_pw_set(os.environ[USERNAME], os.environ.get(PASSWORD))
        client.will_set(f"{self._prefix}/status", OFFLINE, AT_LEAST_ONCE, retain=True)
        client.connect_timeout = TIMEOUT
        answered, refusal = threading.Event(), []

        def on_connect(client: Client, userdata: object, flags: ConnectFlags, reason, properties: object) -> None:
            if reason.is_failure:
                refusal.append(str(reason))
            answered.set()

        client.on_connect = on_connect
        client.connect(self._host, self._port, KEEP_ALIVE)
        client.loop_start()
        self._client, self._shown = client, None
        if not answered.wait(TIMEOUT) or refusal:
            self._disconnect()
            raise OSError(f"the broker refuses: {refusal[0]}" if refusal else "the broker does not answer")

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        client.disconnect()
        client.loop_stop()

    def _publish(self, messages: Sequence[tuple[str, str, bool]]) -> None:
        sent = [
            self._client.publish(f"{self._prefix}/{topic}", text, AT_LEAST_ONCE, retain) for topic, text, retain in messages
        ]
        deadline = time.monotonic() + TIMEOUT
        for message in sent:
            if message.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_QUEUE_SIZE):
                raise OSError("the connection was lost")
            while not message.is_published():
                if time.monotonic() > deadline or not self._client.is_connected():
                    raise OSError("the broker does not acknowledge")
                message.wait_for_publish(0.1)


def _status(situation: Situation) -> str:
    failures = [{"cause": cause.name, "of": who, "reason": reason} for (cause, who), reason in situation.failures.items()]
    return json.dumps({"state": situation.state.name, "number": situation.number, "failures": failures})
