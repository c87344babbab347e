"""Results as HTTP requests."""

import json
import os
from collections.abc import Sequence

import httpx

from ..states import Situation

TIMEOUT = 10.0  # seconds
TOKEN = "DIFFAD_WEBHOOK_TOKEN"


class Webhook:
    """Posts each result as JSON, at least once; the header `Idempotency-Key` holds its id, by which repetitions are told.

    A result is delivered when the answer's status is 2xx. The bearer token is read from the variable DIFFAD_WEBHOOK_TOKEN.

    Args:
        address: URL.
    """

    wants_latest_only = False

    def __init__(self, address: str):
        self.address = address
        token = os.environ.get(TOKEN)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT)

    def send(self, results: Sequence[dict], situation: Situation) -> None:
        """One request for each result; see [`Sink`].

        Raises:
            OSError: if one is answered with another status.
            httpx.HTTPError: if there is no answer.
        """
        for result in results:
            body = json.dumps(result).encode()
            answer = self._client.post(self.address, content=body, headers={"Idempotency-Key": result["id"]})
            if not answer.is_success:
                raise OSError(f"answers {answer.status_code} {answer.reason_phrase}")

    def close(self) -> None:
        """Closes connections."""
        self._client.close()
