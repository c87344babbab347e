"""What /predict and /repair answer, and how they refuse."""

import base64
import hashlib
import io

import numpy as np
import pytest
from diffad.serve.answers import Error, Predictions, Repairs
from diffad.serve.settings import ServeSettings
from PIL import Image
from running import form, png, running
from stub_model import FAILS, SIZE, UNKNOWN, save_stub


def pixels_of(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def error_of(answer) -> str:
    assert set(answer.json()) == {"error", "retryable"}
    return Error(**answer.json()).error


def test_images_of_a_form_are_answered_in_their_order(server):
    images = [png(level) for level in (60, 200, 90)]
    answer = server.client.post("/predict", files=form(*images))
    assert answer.status_code == 200
    found = Predictions(**answer.json())
    assert [one.name for one in found.images] == ["0.png", "1.png", "2.png"]
    assert [one.score for one in found.images] == [60, 200, 90]
    assert [one.label for one in found.images] == ["good", "defective", "good"]
    assert [one.digest for one in found.images] == [hashlib.sha256(image).hexdigest() for image in images]
    assert found.model.digest == "stub 0" and found.model.version == 1
    # Of 100 calibration scores 40..139 the 80 from 60 on are at least as high; the threshold of 5 % is the 96th.
    assert found.images[0].p_value == pytest.approx(81 / 101) and found.images[0].image_threshold == 135
    assert found.images[1].boxes == [(0, 0, *SIZE)] and found.images[0].boxes == []
    assert set(answer.json()["images"][0]) == set(Predictions.model_fields["images"].annotation.__args__[0].model_fields) - {
        "mask_png",
        "overlay_png",
    }


def test_a_body_is_one_image(server):
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        answer = server.client.post("/predict?name=part 7", content=png(60), headers={"Content-Type": kind})
        (found,) = Predictions(**answer.json()).images
        assert (found.name, found.score) == ("part 7", 60)


def test_pictures_come_on_request(server):
    half = Image.new("RGB", SIZE, (5, 5, 5))
    half.paste((250, 250, 250), (0, 0, SIZE[0], 7))
    file = io.BytesIO()
    half.save(file, format="PNG")
    (found,) = server.client.post("/predict?mask=true&overlay=true", content=file.getvalue()).json()["images"]
    mask, overlay = pixels_of(found["mask_png"]), pixels_of(found["overlay_png"])
    assert mask.shape == (SIZE[1], SIZE[0]) and (mask[:7] == 255).all() and (mask[7:] == 0).all()
    assert overlay.shape == (*mask.shape, 3) and (overlay[7:] == 5).all() and (overlay[:7] != 250).any()
    (found,) = server.client.post("/predict?overlay=true", content=file.getvalue()).json()["images"]
    assert "mask_png" not in found and "overlay_png" in found


def test_a_damaged_image_is_named(server):
    cut = png(60, (300, 300))[:-40]
    for files, name in ((form(png(60), cut), "1.png"), (form(cut), "0.png"), (form(png(60), b"no image"), "1.png")):
        answer = server.client.post("/predict", files=files)
        assert answer.status_code == 422 and not answer.json()["retryable"]
        assert error_of(answer).startswith(f"{name}: ")
    large = error_of(server.client.post("/predict?name=large.png", content=png(60, (1001, 1000))))
    assert "large.png: 1001x1000 are more than 1,000,000 pixels" in large
    assert "empty file" in error_of(server.client.post("/predict", files=form(b"")))
    for answer in (server.client.post("/predict"), server.client.post("/predict", files={"a": (None, "b")})):
        assert answer.status_code == 422
    assert "send files of a multipart form" in error_of(answer)


def test_arguments_are_checked(server):
    answer = server.client.post("/predict?category=screw", content=png(60))
    assert answer.status_code == 422 and "this model was trained on one category" in error_of(answer)
    answer = server.client.post("/predict?mask=perhaps", content=png(60))
    assert answer.status_code == 422 and error_of(answer).startswith("query.mask: ")
    assert server.client.get("/predict").status_code == 405 and error_of(server.client.get("/nowhere")) == "Not Found"


def test_one_failure_is_of_one_request_only(server):
    answer = server.client.post("/predict", files=form(png(FAILS)))
    assert answer.status_code == 500 and "failed on 0.png: out of memory" in error_of(answer)
    assert server.client.post("/predict", content=png(60)).status_code == 200


def test_repair(server):
    answer = server.client.post("/repair", files=form(png(60), png(70)))
    found = Repairs(**answer.json())
    assert [one.name for one in found.images] == ["0.png", "1.png"]
    assert found.images[0].changed_share == 0.5 and (pixels_of(found.images[1].repaired_png) == (1, 2, 3)).all()
    assert error_of(server.client.post("/repair", content=b"no image")).startswith("image: not a readable image")


def test_several_categories(tmp_path):
    with running(save_stub(tmp_path / "model", categories="nut bolt"), ServeSettings(level=0.1)) as server:
        found = server.client.post("/predict?category=bolt", files=form(png(60), png(70))).json()["images"]
        assert [one["category"] for one in found] == ["bolt", "bolt"]
        (unknown,) = server.client.post("/predict", content=png(UNKNOWN)).json()["images"]
        assert unknown["label"] == "unknown" and unknown["category"] is None
        answer = server.client.post("/predict?category=screw", content=png(60))
        assert answer.status_code == 422 and "'screw' is none of nut, bolt" in error_of(answer)
        monitors = server.client.get("/monitor").json()["categories"]
        assert [(one["category"], one["parts"]) for one in monitors] == [("nut", 0), ("bolt", 2)]
        # Together they have the level: 75 % of half of it is the test of scores'.
        assert monitors[0]["limits"]["scores"] == pytest.approx(1 / (0.75 * 0.05))
        assert server.metric("diffad_images_total", verdict="unknown") == 1
        assert server.metric("diffad_reject_rate") == pytest.approx(1 / 3)


def test_the_page_of_requests_needs_no_network(server):
    page = server.client.get("/docs").text
    assert "https://" not in page and "http://" not in page
    for file in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f"docs/files/{file}" in page and server.client.get(f"/docs/files/{file}").status_code == 200
    schema = server.client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/repair", "/feedback", "/model", "/health", "/ready", "/metrics", "/monitor"}
    assert "multipart/form-data" in schema["paths"]["/predict"]["post"]["requestBody"]["content"]
