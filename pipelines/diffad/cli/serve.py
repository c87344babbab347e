"""diffad serve"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, ExportedPrecision, FalseAlarmRate, Profile


def serve(
    model: Annotated[
        str, typer.Argument(help="Folder of a trained or exported model, or its name on the Hub.", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that requests must carry; without it the variable DIFFAD_TOKEN, if set."),
    ] = None,
    queue: Annotated[int, typer.Option(help="Images waiting or being scored; further requests get 429.", min=1)] = 32,
    batch_size: Annotated[int, typer.Option(help="Images scored together, unless one by one is faster.", min=1)] = 8,
    max_megabytes: Annotated[float, typer.Option(help="Of a request; larger ones get 413.", min=0.001)] = 20,
    max_megapixels: Annotated[float, typer.Option(help="Of an image; larger ones are refused.", min=0.001)] = 50,
    batch_seconds: Annotated[
        float, typer.Option(help="That a batch may take; then the process that computes is restarted.", min=1)
    ] = 300,
    min_agreement: Annotated[
        float, typer.Option(help="Share of recent images on which a new model's label must be the present one's.", min=0, max=1)
    ] = 0.95,
    feedback: Annotated[Path | None, typer.Option(help="File that operators' words are appended to (.jsonl).")] = None,
    monitor_state: Annotated[Path | None, typer.Option(help="JSON file that keeps what the monitor has seen.")] = None,
    level: Annotated[float, typer.Option(help="Probability that unchanged production ever raises an alarm.")] = 0.05,
    false_alarm_rate: FalseAlarmRate = None,
    profile: Profile = None,
    device: Device = None,
    precision: ExportedPrecision = None,
    threads: Annotated[
        int | None, typer.Option(help="Of one computation on the CPU; without it all cores.", min=1, show_default=False)
    ] = None,
) -> None:
    """Serve a model over HTTP: judge and repair images, exchange the model, take feedback, tell Prometheus.

    The page /docs describes all requests. SIGTERM and Ctrl+C end the server once accepted requests are answered.

    Examples:

    ```
    diffad serve runs/part
    diffad serve exported --feedback feedback.jsonl --monitor-state monitor.json
    diffad serve exported --host 0.0.0.0 --token-file token
    ```
    """
    try:
        from ..serve.auth import check_exposure, read_token
        from ..serve.run import listen, run
        from ..serve.settings import ServeSettings
    except ModuleNotFoundError as error:
        raise ValueError(f"serving needs the Python package {error.name}: pip install 'diffad[serve]'") from error
    from .loading import load_scoring

    if not 0 < level < 1:
        raise ValueError(f"--level must lie between 0 and 1, got {level}")
    for file in (feedback, monitor_state):
        if file is not None and not file.resolve().parent.is_dir():
            raise ValueError(f"{file}: its folder does not exist")
    token = read_token(token_file)
    check_exposure(host, token)
    settings = ServeSettings(
        false_alarm_rate=false_alarm_rate,
        batch_size=batch_size,
        capacity=queue,
        max_bytes=round(max_megabytes * 1e6),
        max_pixels=round(max_megapixels * 1e6),
        batch_seconds=batch_seconds,
        min_agreement=min_agreement,
        level=level,
        monitor_state=monitor_state,
        feedback=feedback,
    )
    load = partial(load_scoring, device=device, profile=profile, precision=precision, threads=threads)
    with listen(host, port) as listening:
        run(load, model, settings, listening, token)
