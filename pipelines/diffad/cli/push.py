"""`diffad push`: a trained model as a repository of the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    model: Annotated[Path, typer.Argument(help="folder of a trained pipeline")],
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="repository on the Hub; created where there is none")],
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="output folder of an evaluation, for the card; once for each category")
    ] = None,
    license: Annotated[str | None, typer.Option(help="of the weights, as the Hub names it, such as apache-2.0")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="data set on the Hub that it was trained on")] = None,
    data_note: Annotated[str | None, typer.Option(help="where the training images come from, for the card")] = None,
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
    with_references: Annotated[
        bool, typer.Option("--with_references", help="include the images of good parts that the model holds for repair")
    ] = False,
    exported: Annotated[
        list[Path] | None, typer.Option(help="folder that `diffad export` wrote of this model; once for each format")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="also upload a Space with a page that inspects parts with the model"),
    ] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option(help="write the repository to this folder instead, and the Space to FOLDER-space; upload nothing"),
    ] = None,
) -> None:
    """Uploads a model with its card, sample pictures and the code that runs it where diffad is not installed.

    Log in once with `hf auth login`.

    Examples:

    ```
    diffad push runs/part me/part --evaluation runs/part-evaluation --license apache-2.0 --private
    diffad push runs/part me/part --evaluation runs/part-evaluation --exported exported --dry-run part-repository
    ```
    """
    # Not at the top: these take seconds to import.
    from diffusers.utils import logging

    from ..hub.card import DataTerms
    from ..hub.push import export_repo
    from ..hub.push import push as push_model
    from ..hub.space import push_space, write_space

    logging.disable_progress_bar()  # of loading
    terms = DataTerms(license=license, datasets=tuple(dataset or ()), note=data_note)
    if dry_run is not None:
        export_repo(model, dry_run, evaluation or (), terms, repo_id, with_references, exported or ())
        if space is not None:
            write_space(dry_run.with_name(f"{dry_run.name}-space"), space, repo_id)
        typer.echo(f"wrote {dry_run}")
    else:
        visibility = True if private else None
        url = push_model(
            model, repo_id, evaluation or (), terms, visibility, with_references=with_references, exported=exported or ()
        )
        typer.echo(f"uploaded {url}")
        if space is not None:
            typer.echo(f"uploaded {push_space(space, repo_id, visibility)}")
