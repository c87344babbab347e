"""How a pipeline is saved and loaded: whole or not at all, and through the Hub; and how two are told apart."""

from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from .model_index import PACKAGE, REFERENCES, read_json_object, with_installed_classes
from .models.digest import model_digest
from .system.atomic import complete, finish, writing

# diffusers finds a component's class by looking its library up here and its base classes up in that library; without
# the entry a pipeline loads from a folder but not from the Hub.
LOADABLE_CLASSES.setdefault(
    PACKAGE, {name: ["save_pretrained", "from_pretrained"] for name in ("ModelMixin", "SchedulerMixin")}
)

MOMENTS = "moments.safetensors"  # that training leaves beside a model for its update; scoring needs none of it
Pipeline = TypeVar("Pipeline")


class SavedWhole:
    """Mixin before DiffusionPipeline: what is loaded is what was saved, whatever was killed meanwhile."""

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Saves the pipeline; options are those of DiffusionPipeline. A killed process leaves the former model or the new one.

        Raises:
            DiskFullError: if the disk is full; the former model stays.
        """
        tensors = [t for part in self.components.values() if hasattr(part, "state_dict") for t in part.state_dict().values()]
        repo_id = options.pop("repo_id", Path(save_directory).name) if options.pop("push_to_hub", False) else None
        with writing(save_directory, size=sum(t.numel() * t.element_size() for t in tensors)) as unfinished:
            super().save_pretrained(unfinished, **options)
        if repo_id is not None:
            self.push_to_hub(repo_id)

    @property
    def digest(self) -> str:
        """Tells whether two pipelines score alike; see [`diffad.models.digest.model_digest`]. Reference images don't count."""
        return model_digest({name: part for name, part in self.components.items() if name != REFERENCES})

    @classmethod
    def from_pretrained(cls: type[Pipeline], pretrained_model_name_or_path: str | Path, **options: Any) -> Pipeline:
        """Loads a pipeline from a folder or the Hub; options are those of DiffusionPipeline.

        Raises:
            ValueError: naming the file or tensor that is missing or not as it was saved.
        """
        if not Path(pretrained_model_name_or_path).is_dir():
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        finish(pretrained_model_name_or_path)
        pipe = super().from_pretrained(pretrained_model_name_or_path, **options)
        # After the components' own checks, which name the tensor and not only the file.
        complete(pretrained_model_name_or_path, without=(MOMENTS,))
        return pipe

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path, **_: Any) -> dict[str, Any]:
        # A repository's own code is for readers without diffad. This class needs none of it, nor trust in it.
        return with_installed_classes(read_json_object(json_file), json_file, cls.__name__)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads a complete model repository; options and errors are those of [`diffad.push`]."""
        # Through the public API, because the Hub's room stands above the pipeline.
        return import_module(PACKAGE).push(self, repo_id, **options)
