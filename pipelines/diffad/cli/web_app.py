"""`diffad app`: the web app."""

from pathlib import Path
from typing import Annotated

import typer


def serve_app(
    model: Annotated[str, typer.Argument(help="Folder of a trained model, or its name on the Hub.", show_default=False)],
    examples: Annotated[Path | None, typer.Option(help="Folder of images to offer as examples.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets the whole network in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; by default the first free one from 7860 on.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...; by default cuda where there is one.")] = None,
    browser: Annotated[bool, typer.Option(help="Open the app in the browser.")] = True,
    share: Annotated[
        bool, typer.Option(help="Ask gradio's servers for a public link: images then leave this machine.")
    ] = False,
) -> None:
    """Inspect images in the browser: verdict, heat map, repaired image.

    Examples:

    ```
    diffad app runs/part
    diffad app runs/part --examples parts/test --port 8000
    ```
    """
    try:
        from ..app.page import build_app, launch
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"the web app needs {error.name}: pip install 'diffad[app]'") from error
    from .loading import load_model

    pipe = load_model(model, device)
    pipe.set_progress_bar_config(disable=True)
    launch(build_app(pipe, name=Path(model).resolve().name, examples=examples), host, port, share, inbrowser=browser)
