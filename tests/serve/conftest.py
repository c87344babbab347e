"""A server of a model that is loaded at once."""

from collections.abc import Iterator

import pytest
from diffad.serve.settings import ServeSettings
from running import Running, running
from stub_model import save_stub


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Running]:
    """For tests that leave it as it is, with a queue of 8 images, 100 kB and 1 megapixel."""
    folder = tmp_path_factory.mktemp("served")
    settings = ServeSettings(
        capacity=8, max_bytes=100_000, max_pixels=1_000_000, feedback=folder / "feedback.jsonl", body_seconds=1
    )
    with running(save_stub(folder / "model"), settings) as found:
        yield found
