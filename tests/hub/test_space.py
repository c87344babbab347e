"""A Space: its files, its page, and its upload."""

import importlib.util

import numpy as np
import pytest
import yaml
from diffad.hub import space
from diffad.hub.push import export_repo
from diffad.hub.space import PLACEHOLDER, push_space, write_space
from hub_server import hub_server, upload_to
from PIL import Image
from tiny_pipeline import smooth_images

gradio = pytest.importorskip("gradio")


def test_the_files_of_a_space(tmp_path):
    write_space(tmp_path, "me/inspection", "me/part")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    page = (tmp_path / "app.py").read_text()
    assert 'MODEL = "me/part"' in page and PLACEHOLDER not in page
    head = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert head == {
        "title": "inspection",
        "sdk": "gradio",
        "sdk_version": gradio.__version__,
        "app_file": "app.py",
        "models": ["me/part"],
    }
    assert "diffusers==" in (tmp_path / "requirements.txt").read_text()


def test_the_page_inspects_and_repairs(model, pipe, tmp_path):
    """`app.py` runs as on the Hub, with a local folder in the place of the model's name."""
    export_repo(model, tmp_path / "part")
    write_space(tmp_path / "space", "me/inspection", str(tmp_path / "part"))
    spec = importlib.util.spec_from_file_location("space_page", tmp_path / "space" / "app.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert isinstance(page.page, gradio.Blocks)
    good = next(image for image in smooth_images(19, seed=4) if not pipe(image, false_alarm_rate=0.1).is_defective[0])
    pixels = np.array(good)
    pixels[10:20, 12:22] = (255, 0, 255)
    verdict, marked, repaired = page.inspect(Image.fromarray(pixels), 10)
    assert verdict.startswith("**defective**") and (np.asarray(marked) == page.RED).all(axis=2).any()
    assert np.abs(np.asarray(repaired, int) - pixels)[10:20, 12:22].mean() > 10
    verdict, marked, repaired = page.inspect(good, 10)
    assert verdict.startswith("**good**") and repaired is None and np.array_equal(marked, good)
    assert page.inspect(None, 10) == ("", None, None)


def test_a_space_is_uploaded_as_one(monkeypatch):
    with hub_server() as hub:
        upload_to(hub, monkeypatch)
        url = push_space("me/inspection", "me/part", private=True)
        assert url.endswith("/spaces/me/inspection") and hub.kinds == {"me/inspection": "space"}
        assert hub.private["me/inspection"] and 'MODEL = "me/part"' in hub.files("me/inspection")["app.py"].decode()


def test_without_gradio_a_space_has_no_version_to_name(tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise space.PackageNotFoundError(name)

    monkeypatch.setattr(space, "version", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install 'diffad\\[app\\]'"):
        write_space(tmp_path / "space", "me/inspection", "me/part")
    assert not (tmp_path / "space").exists()
