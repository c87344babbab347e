"""Serving the web app, and which requests it takes."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .silent_gradio import gr

CSS = ".banner .html-container { padding: 0 !important }"  # as wide as what is below
# The system's own font: one of those that gradio ships lacks most letters.
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
MAX_MEGABYTES = 20  # of an uploaded file, by default
# What gradio answers by asking other machines, or by starting another program. The app has no use for either.
REFUSED_PATHS = re.compile(r"/(file=\s*https?:|proxy=|process_recording)", re.IGNORECASE)
SHARED = ".gradio.live"  # where gradio's servers make links of `share`


class RequestGuard:
    """ASGI middleware that takes requests only for names of this machine, and none for which it would ask others.

    A page that a user visits elsewhere can make its own name lead to this machine, and the browser would then let it read the
    app's answers: but such requests carry its name. Addresses in numbers can't be taken over like that.

    Args:
        app: to protect.
        hosts: further names that are taken; one that begins with a dot stands for all that end so.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()):
        own_name = socket.gethostname().lower()
        self.app = app
        self.hosts = {"localhost", own_name, f"{own_name}.local", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            host = Headers(scope=scope).get("host", "")
            answer = None
            if not self.is_known(host):
                answer = PlainTextResponse(f"{host}: not a name of this app; start it with --allowed-host\n", 400)
            elif REFUSED_PATHS.search(scope["path"]):
                answer = PlainTextResponse("Not found\n", 404)
            if answer is not None:
                return await answer(scope, receive, send)
        return await self.app(scope, receive, send)

    def is_known(self, host: str) -> bool:
        """Whether a Host header `name[:port]` is one of this app's."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.hosts or any(name.endswith(known) for known in self.hosts if known.startswith(".")):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def refuse_addresses(app: gr.Blocks) -> None:
    """Keeps gradio from fetching what users post as an address in place of a file, and from looking it up."""
    for block in app.blocks.values():
        block.async_move_resource_to_block_cache = _local_files_only(block.async_move_resource_to_block_cache)


def _local_files_only(move):
    async def guarded(path):
        if re.match(r"\s*https?:", str(path), re.IGNORECASE):
            raise gr.Error("Addresses are not read; send the file.")
        return await move(path)

    return guarded


def launch(
    app: gr.Blocks,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    max_megabytes: float = MAX_MEGABYTES,
    allowed_hosts: Iterable[str] = (),
    **options: Any,
) -> None:
    """Serves the app until it is stopped; nothing but a link asked for by `share` reaches beyond this machine's network.

    Args:
        app: of [`diffad.app.page.build_page`].
        host: address to listen on; `0.0.0.0` lets the whole network in.
        port: None takes the first free one from 7860 on.
        share: ask gradio's servers for a public link.
        max_megabytes: of an uploaded file; larger ones are answered with status 413.
        allowed_hosts: names under which the app is reached, besides this machine's own name and its addresses.
        options: more arguments of `gr.Blocks.launch`.
    """
    hosts = [*allowed_hosts, *([SHARED] if share else [])]
    app.launch(
        server_name=host,
        server_port=port,
        share=share,
        max_file_size=round(max_megabytes * 1e6),
        app_kwargs={"middleware": [Middleware(RequestGuard, hosts=hosts)]},
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=[],
        theme=THEME,
        css=CSS,
        **options,
    )
