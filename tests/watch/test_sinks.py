"""Sinks against a real broker, the library's own Modbus server and a web server, all on loopback."""

import struct
import sys

import pytest
from diffad.watch.sinks.modbus import Modbus
from diffad.watch.sinks.mqtt import Mqtt
from diffad.watch.sinks.opening import open_sink
from diffad.watch.sinks.webhook import Webhook
from diffad.watch.states import Cause, Situation, State
from line_servers import broker, device, free_port, hook, subscriber
from watch_stub import eventually

OK = Situation(State.OK, 2)


def result(number: int, label: str = "good") -> dict:
    return {
        "id": f"j-{number}",
        "number": number,
        "label": label,
        "score": 1.5,
        "image_threshold": 2.5,
        "defects": 0,
        "error": None,
        "monitor": None,
    }


def test_mqtt(tmp_path):
    with broker(tmp_path) as server, subscriber(server.port) as messages:
        sink = Mqtt(server.address)
        sink.send([result(1), result(2)], OK)
        sink.send([], OK)
        sink.send([], OK.failed(Cause.SOURCE, "camera", "gone"))
        eventually(lambda: len(messages) == 4)
        assert messages[0] == ("result", result(1), False) and messages[1] == ("result", result(2), False)
        assert [topic for topic, *_ in messages] == ["result", "result", "status", "status"]
        assert messages[2][1] == {"state": "OK", "number": 2, "failures": []}
        failures = [{"cause": "SOURCE", "of": "camera", "reason": "gone"}]
        assert messages[3][1] == {"state": "ERROR", "number": 2, "failures": failures}
        with subscriber(server.port) as later:  # the status is retained, results are not
            eventually(lambda: later)
            assert later == [("status", messages[3][1], True)]
        sink.close()
        eventually(lambda: messages[-1][1] == {"state": "OFFLINE"})


def test_the_broker_says_offline_for_a_process_that_is_gone(tmp_path):
    with broker(tmp_path) as server, subscriber(server.port) as messages:
        sink = Mqtt(server.address)
        sink.send([], OK)
        sink._client.socket().shutdown(2)  # without a word, as a killed process
        eventually(lambda: messages and messages[-1][1] == {"state": "OFFLINE"})
        with pytest.raises(OSError, match="connection was lost"):
            sink.send([], OK)
        sink.send([], OK)  # connects anew, and shows the situation again
        eventually(lambda: messages[-1][1]["state"] == "OK")
        sink.close()


def test_a_broker_that_is_not_there_or_refuses(tmp_path, monkeypatch):
    with broker(tmp_path, password="secret") as server:
        with pytest.raises(OSError, match="the broker refuses: Not authorized"):
            Mqtt(server.address).send([result(1)], OK)
        monkeypatch.setenv("DIFFAD_MQTT_USERNAME", "line")
        monkeypatch.setenv("DIFFAD_MQTT_PASSWORD", "secret")
        sink = Mqtt(server.address)
        sink.send([result(1)], OK)
        server.stop()
        eventually(lambda: not sink._client.is_connected())
        for _ in range(2):
            with pytest.raises(OSError):
                sink.send([result(2)], OK)
        server.start()
        sink.send([result(2)], OK)
        sink.close()


def test_modbus():
    with device() as plc:
        sink = Modbus(f"modbus://127.0.0.1:{plc.port}/100?unit=1")
        assert sink.wants_latest_only
        sink.send([result(1), result(2, "defective")], Situation(State.NG, 2))
        words = plc.read(100, 12)
        assert words[:7] == [4, 0, 0, 0, 2, 2, 0] and words[11] == 0
        assert struct.unpack(">ff", struct.pack(">4H", *words[7:11])) == (1.5, 2.5)
        sink.send([], Situation(State.BUSY, 2))
        assert plc.read(100, 6) == [2, 0, 1, 0, 2, 2]  # the beat counts, the latest result stays
        assert plc.read(99, 1) == [0] and plc.read(112, 1) == [0]
        plc.stop()
        with pytest.raises(Exception, match="."):
            sink.send([], OK)
        with pytest.raises(OSError, match="can't be reached"):
            sink.send([], OK)
        plc.start()
        sink.send([], OK)
        assert plc.read(100, 5) == [3, 0, 2, 0, 2]
        sink.close()
        outside = Modbus(f"modbus://127.0.0.1:{plc.port}/190")
        with pytest.raises(OSError, match="refuses the registers 190 to 201"):
            outside.send([], OK)
        outside.close()


def test_webhook(monkeypatch):
    monkeypatch.setenv("DIFFAD_WEBHOOK_TOKEN", "secret")
    with hook() as server:
        sink = Webhook(server.address)
        sink.send([result(1), result(2)], OK)
        assert [body for _, body in server.requests] == [result(1), result(2)]
        headers = server.requests[0][0]
        assert headers["Idempotency-Key"] == "j-1" and headers["Authorization"] == "Bearer secret"
        for status in (302, 404, 503):
            server.status = status
            with pytest.raises(OSError, match=f"answers {status}"):
                sink.send([result(3)], OK)
        sink.close()
    gone = Webhook(server.address)
    with pytest.raises(Exception, match="[Cc]onnect"):
        gone.send([result(3)], OK)


def test_addresses_of_sinks(tmp_path):
    assert type(open_sink("http://host/x", "j")) is Webhook
    assert open_sink("mqtts://host/x", "j")._port == 8883
    assert open_sink(str(tmp_path / "results.csv"), "j").address == str((tmp_path / "results.csv").resolve())
    port = free_port()
    for address, message in (
        ("ftp://host", "results go to"),
        ("mqtt://host", "name host and topic"),
        ("mqtt://host/a/#", "name host and topic"),
        (f"mqtt://user:secret@host:{port}/a", "host: give user, password or token in variables"),
        ("modbus://host/65530", "name host, first register and unit"),
        ("modbus://host/x", "name host, first register and unit"),
        ("modbus://host/1?unit=300", "name host, first register and unit"),
        ("results.parquet", "appended to .csv or .jsonl"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            open_sink(address, "j")
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "module", "package"),
    [
        ("http://host/x", "webhook", "httpx"),
        ("mqtt://host/x", "mqtt", "paho.mqtt.client"),
        ("modbus://host", "modbus", "pymodbus.client"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, address, module, package):
    monkeypatch.delitem(sys.modules, f"diffad.watch.sinks.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install 'diffad\[watch\]'"):
        open_sink(address, "j")
