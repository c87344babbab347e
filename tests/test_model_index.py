"""What model_index.json may say: the pipeline's own classes, from the package or from a repository's code."""

import inspect
import json

import pytest
from diffad import DiffADPipeline, FeatureDenoiser, MultiscaleFeatures, ReferenceImages
from diffad.model_index import (
    COMPONENT_CLASSES,
    OPTIONAL_COMPONENTS,
    read_json_object,
    with_installed_classes,
    with_repository_code,
)
from tiny_pipeline import tiny_pipeline

SAVED = {
    "_class_name": "DiffADPipeline",
    "_diffusers_version": "0.42.1",
    **{name: list(entry) for name, entry in COMPONENT_CLASSES.items()},
}


def test_the_classes_are_those_that_a_pipeline_saves(tmp_path):
    pipe = tiny_pipeline(("bright", "dark"))
    channels, classes = pipe.feature_extractor.config.channels, {"rank": 2, "neighbor_images": 1, "num_classes": 2}
    pipe.register_modules(multiscale=MultiscaleFeatures(channels, channels, grid=(4, 4), scales=("detail",), **classes))
    pipe.register_modules(feature_denoiser=FeatureDenoiser(channels, (4, 4), width=16, num_blocks=1, num_classes=2))
    pipe.register_modules(references=ReferenceImages((32, 32), (0, 1)))
    pipe.set_calibrations({"fast": pipe.calibration.unfitted()})
    pipe.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "model_index.json").read_text())
    assert {**saved, "_diffusers_version": SAVED["_diffusers_version"]} == SAVED


def test_the_components_are_those_of_the_pipeline():
    parameters = inspect.signature(DiffADPipeline).parameters
    assert set(parameters) == set(COMPONENT_CLASSES)
    left_out = {name for name, one in parameters.items() if one.default is None}
    # Only what is not trained yet has no residuals, so that this one is never left out by mistake.
    assert {*left_out, "residual_gaussian"} == set(OPTIONAL_COMPONENTS) and "residual_gaussian" not in left_out


@pytest.mark.parametrize("discriminant", [["diffad", "LinearDiscriminant"], [None, None]])
def test_it_is_changed_there_and_back(discriminant):
    saved = {**SAVED, "discriminant": discriminant}
    in_repository = with_repository_code(saved, "code_1")
    assert in_repository["_class_name"] == ["code_1", "DiffADPipeline"]
    assert in_repository["unet"] == ["code_1_components", "JointUNet2DModel"]
    assert in_repository["scheduler"] == saved["scheduler"]
    assert in_repository["discriminant"] == (
        [None, None] if discriminant[0] is None else ["code_1_components", discriminant[1]]
    )
    assert with_installed_classes(in_repository) == saved
    assert with_installed_classes(saved) == saved


def test_models_saved_before_there_were_categories_have_no_discriminant():
    saved = {name: value for name, value in SAVED.items() if name != "discriminant"}
    assert with_installed_classes(saved) == saved


def test_a_subclass_of_the_pipeline_loads_what_it_saved(tmp_path):
    class OwnPipeline(DiffADPipeline):
        pass

    OwnPipeline(**tiny_pipeline().components).save_pretrained(tmp_path)
    assert type(OwnPipeline.from_pretrained(tmp_path)) is OwnPipeline
    with pytest.raises(ValueError, match=r"model_index\.json: the model's _class_name is 'OwnPipeline', not DiffADPipeline"):
        DiffADPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"_class_name": "DDPMPipeline"}, "_class_name is 'DDPMPipeline', not DiffADPipeline"),
        ({"_class_name": None}, "_class_name is None"),
        ({"_class_name": ["code", "DDPMPipeline"]}, "_class_name is 'DDPMPipeline'"),
        ({"_class_name": {}}, "_class_name is {}"),
        ({"unet": ["os", "JointUNet2DModel"]}, "unet is .*, not the class JointUNet2DModel of diffad"),
        ({"_class_name": ["os", "DiffADPipeline"], "unet": ["os", "system"]}, "unet is .*'system'"),
        ({"_class_name": ["", "DiffADPipeline"], "unet": ["os", "JointUNet2DModel"]}, "unet is"),
        ({"scheduler": ["diffusers", "DDIMScheduler"]}, "not the class DDPMScheduler of diffusers"),
        ({"discriminant": [None, "LinearDiscriminant"]}, "discriminant is"),
        ({"residual_gaussian": "x" * 1000}, "residual_gaussian is 'xxx"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "vae is not a part of a DiffADPipeline"),
    ],
)
def test_other_classes_are_refused(change, words):
    with pytest.raises(ValueError, match=f"somewhere.json: .*{words}") as error:
        with_installed_classes({**SAVED, **change}, "somewhere.json")
    assert len(str(error.value)) < 250


def test_a_component_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="has no calibration"):
        with_installed_classes({name: value for name, value in SAVED.items() if name != "calibration"})


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"null", b"[]", b'"x"', b"1"])
def test_what_holds_no_settings_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: is not (a )?JSON"):
        read_json_object(tmp_path / "config.json")
