"""Images of good parts are photographs of someone's parts: a repository holds them only where that was asked for."""

import json

import torch
from diffad import DiffADPipeline, ReferenceImages
from diffad.hub.push import export_repo

SENTENCE = "the model holds 2 of its training images"


def test_a_repository_holds_references_only_if_wanted(pipe, tmp_path):
    references = ReferenceImages(pipe.image_size, (0, 0))
    references.images.copy_(torch.arange(references.images.numel()).reshape(references.images.shape) % 256)
    model = DiffADPipeline(**{**pipe.components, "references": references})
    model.save_pretrained(tmp_path / "model")
    export_repo(tmp_path / "model", tmp_path / "without")
    export_repo(tmp_path / "model", tmp_path / "with", with_references=True)

    assert not (tmp_path / "without/references").exists()
    assert json.loads((tmp_path / "without/model_index.json").read_text())["references"] == [None, None]
    assert SENTENCE not in (tmp_path / "without/README.md").read_text()
    loaded = DiffADPipeline.from_pretrained(tmp_path / "without")
    assert loaded.references is None and loaded.digest == model.digest == pipe.digest

    assert SENTENCE in (tmp_path / "with/README.md").read_text()
    loaded = DiffADPipeline.from_pretrained(tmp_path / "with")
    assert torch.equal(loaded.references.images, references.images)
