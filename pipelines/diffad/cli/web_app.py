"""diffad app"""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, ExportedPrecision, Profile


def serve_app(
    model: Annotated[str, typer.Argument(help="Folder of a trained model, or its name on the Hub.", show_default=False)],
    examples: Annotated[Path | None, typer.Option(help="Folder of images to offer as examples.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets the whole network in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; by default the first free one from 7860 on.")] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which the app is reached, if it is not this machine's own; can be repeated."),
    ] = None,
    max_megabytes: Annotated[float, typer.Option(help="Of a file that is sent; larger ones are refused.", min=0.001)] = 20,
    max_megapixels: Annotated[float, typer.Option(help="Of an image; larger ones are refused.", min=0.001)] = 50,
    feedback: Annotated[
        Path | None, typer.Option(help="File to which verdicts that users call wrong are appended (JSON lines).")
    ] = None,
    profile: Profile = None,
    device: Device = None,
    precision: ExportedPrecision = None,
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
    diffad app runs/part --feedback feedback.jsonl
    diffad app runs/part --host 0.0.0.0 --allowed-host inspection.example.com
    ```
    """
    from ..app.temporary_files import temporary_files_removed
    from ..pipeline_diffad import DiffADPipeline
    from .loading import load_scoring

    if feedback is not None and not feedback.absolute().parent.is_dir():
        raise FileNotFoundError(f"{feedback.parent}: no such folder")
    pipe = load_scoring(model, device, profile, precision)
    if isinstance(pipe, DiffADPipeline):
        pipe.set_progress_bar_config(disable=True)
    with temporary_files_removed(), suppress(KeyboardInterrupt):  # how a server ends
        try:
            from ..app.launch import launch
            from ..app.page import build_page
        except ModuleNotFoundError as error:
            raise ValueError(f"the web app needs the Python package {error.name}: pip install 'diffad[app]'") from error
        app = build_page(pipe, Path(model).resolve().name, examples, round(max_megapixels * 1e6), feedback)
        launch(app, host, port, share, max_megabytes, allowed_host or (), inbrowser=browser)
