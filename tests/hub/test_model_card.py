"""Model cards: metadata that the Hub reads back, tables from the evaluations, and refusal of a card that would mislead."""

import re
import shlex

import pytest
from diffad.cli import app
from diffad.hub.card import DataTerms, model_card
from diffad.hub.evaluation_record import EvaluationRecord
from huggingface_hub import ModelCard
from typer.main import get_command

METRICS = {"image_auroc": 0.9, "image_ap": 0.8, "pixel_auroc": 0.7, "pixel_ap": 0.6, "aupro_30": 0.5}
RECIPE = {"timesteps": [20, 201], "weights": {"kl": 0.5, "mahalanobis": 0.5}, "num_calibration_images": 19}
TRAINING = {"data": "gear", "seed": 7, "held_out_fraction": 0.15}


def evaluation(data: str = "gear", metrics: dict = METRICS, digest: str | None = "0123", **recipe) -> EvaluationRecord:
    content = {
        "scores": {"ensemble": metrics, "kl": {name: value / 2 for name, value in metrics.items()}, "kl@20": metrics},
        "images": {"good": 2, "defective": 3},
        "operating_point": {
            "requested_false_alarm_rate": 0.1,
            "realised_false_alarm_rate": 0.5,
            "detection_rate": 2 / 3,
        },
        "recipe": {**RECIPE, **recipe},
        "cost": {"images_per_second": 5.0, "peak_memory_mib": 1536.0, "unet_parameters": 2e6, "threads": 2, "device": "cpu"},
    }
    content |= {} if digest is None else {"model_digest": digest}
    return EvaluationRecord(data, content, [("good", 2, 0.5), ("hole", 3, 2 / 3)], sheet=None)


def card(evaluations=(), grid=(4, 4), sheets=None, configs=None, **options) -> ModelCard:
    configs = {
        "unet": {"sample_size": 32},
        "calibration": {**RECIPE, "per_image": False},
        "gaussian": {"grid": grid},
        "feature_extractor": {"backbone": "tf_efficientnet_lite0"},
        **(configs or {}),
    }
    sheets = [f"samples/{one.data}.png" for one in evaluations] if sheets is None else sheets
    return model_card("me/gear-detector", configs, "0123", "1.2", "diffad_code_0", evaluations, sheets, **options)


def table(text: str, heading: str) -> list[list[str]]:
    """Cells of the table whose header starts with `heading`, without header and rule."""
    lines = re.search(rf"^\| {heading} .*\n\|[ -|]*\n((?:\|.*\n?)*)", text, flags=re.MULTILINE).group(1).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_metadata_is_read_back(no_network):
    terms = DataTerms(license="mit", datasets=("me/gears",))
    data = ModelCard(str(card([evaluation()], terms=terms, training=TRAINING))).data
    assert (data.license, data.datasets, data.library_name, data.pipeline_tag) == (
        "mit",
        ["me/gears"],
        "diffusers",
        "image-segmentation",
    )
    assert {"anomaly-detection", "diffad"} <= set(data.tags)
    assert data.model_name == "gear-detector"
    results = {result.metric_name: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "image AUROC": 0.9,
        "image AP": 0.8,
        "pixel AUROC": 0.7,
        "pixel AP": 0.6,
        "AUPRO": 0.5,
    }
    assert {(result.dataset_type, result.dataset_config, result.dataset_split) for result in data.eval_results} == {
        ("me/gears", "gear", "test")
    }


def test_tables_hold_the_figures_of_the_evaluations():
    better = {name: value + 0.1 for name, value in METRICS.items()}
    text = card([evaluation(), evaluation("shaft", better)]).text
    assert table(text, "category [|] good") == [
        ["gear", "2", "3", "90.0", "80.0", "70.0", "60.0", "50.0"],
        ["shaft", "2", "3", "100.0", "90.0", "80.0", "70.0", "60.0"],
        ["**mean**", "", "", "95.0", "85.0", "75.0", "65.0", "55.0"],
    ]
    assert table(text, "category [|] kind")[:2] == [["gear", "good", "2", "50.0"], ["gear", "hole", "3", "66.7"]]
    assert table(text, "score") == [["KL divergence of the reverse step", "45.0", "40.0", "35.0", "30.0", "25.0"]]
    assert "requested false-alarm rate of 10.0%, 66.7% of the defective and 50.0% of the good" in text


def test_metrics_without_masks_are_left_out_not_zero():
    image_only = {name: value for name, value in METRICS.items() if name.startswith("image")}
    written = card([evaluation(metrics=image_only)])
    assert table(written.text, "category [|] good") == [["gear", "2", "3", "90.0", "80.0", "", "", ""]]
    assert {result.metric_name for result in written.data.eval_results} == {"image AUROC", "image AP"}


def test_the_commands_reproduce_the_run():
    text = card([evaluation()], training=TRAINING).text
    assert (
        "accelerate launch -m diffad_training.train --config training_config.json --data DATA/gear --output_dir "
        "runs/gear-detector\n"
        "diffad evaluate DATA/gear --model runs/gear-detector --output runs/gear-detector-evaluation "
        "--false-alarm-rate 0.1\n```" in text
    )
    assert "seed 7" in text


def test_the_command_line_knows_the_commands_of_evaluation():
    odd = evaluation("my shaft")
    odd.metrics.update(map_size="640x960", class_labels={"given": True, "images": {"my shaft": 5}})
    lines = re.findall("^diffad evaluate .*$", card([evaluation(), odd], training=TRAINING).text, flags=re.MULTILINE)
    group = get_command(app)
    parse, parent = group.commands["evaluate"].make_context, group.context_class(group)
    values = [parse("evaluate", shlex.split(line)[2:], parent=parent).params for line in lines]
    assert [(one["category"], one["false_alarm_rate"], str(one["output"])) for one in values] == [
        (None, 0.1, "runs/gear-detector-evaluation"),
        ("my shaft", 0.1, "runs/gear-detector-evaluation-my shaft"),
    ]


def test_the_size_of_the_compared_maps_is_named_and_kept():
    tiled = evaluation("shaft")
    tiled.metrics["map_size"] = "640x960"
    text = card([evaluation(), tiled], training=TRAINING).text
    assert "compared at 256x256 and 640x960" in text
    assert "runs/gear-detector-evaluation-shaft --false-alarm-rate 0.1 --map-size 640x960\n" in text
    assert text.count("--map-size") == 1


def test_a_card_without_evaluation_training_or_licence_says_so():
    written = card()
    assert "Not evaluated." in written.text and "No licence is stated" in written.text
    assert "settings of the training run were not kept" in written.text
    assert "model-index" not in written.data.to_dict()
    assert "false_alarm_rate=0.05" in written.text


def test_sample_pictures_are_shown_where_there_are_some():
    text = card([evaluation(), evaluation("shaft")], sheets=["samples/gear.png", ""]).text
    assert text.count("](samples/") == 1 and "![gear: input, truth, heat map, overlay](samples/gear.png)" in text
    assert "## Samples" not in card([evaluation()], sheets=[""]).text


def test_limits_and_usage_follow_the_model():
    assert "5.0% or more can be guaranteed" in card().text.replace("\n", " ")  # 1 / (19 + 1)
    assert "parts must lie in the image as they did" in card().text
    assert "parts must lie in the image as they did" not in card(grid=None).text
    assert "categories" not in card().text


def test_a_model_of_several_categories_says_how_they_are_named_and_recognised():
    configs = {"discriminant": {"class_names": ["gear", "shaft"]}, "calibration": {**RECIPE, "num_calibration_images": [19, 9]}}
    text = card(configs=configs, training=TRAINING).text.replace("\n", " ")
    assert "One model of gear, shaft: `output.categories` names" in text and '`categories="gear"` gives it' in text
    assert "28 calibration images (gear 19, shaft 9)" in text
    assert "9 calibration images of the category with the fewest set the thresholds" in text
    assert "10.0% or more can be guaranteed" in text  # 1 / (9 + 1)


@pytest.mark.parametrize("options", [{}, {"training": TRAINING}])
@pytest.mark.parametrize("evaluations", [[], [evaluation()], [evaluation(), evaluation("shaft")]])
def test_no_placeholder_is_left_empty(evaluations, options):
    text = str(card(evaluations, **options))
    assert not re.search(r"None|\{\{|\}\}|\{%|``|: *\n- *\n|\n\n\n", text.replace("```", "'''")), text


def test_an_evaluation_of_another_calibration_is_refused():
    with pytest.raises(
        ValueError, match=r"gear was made with another calibration.*num_calibration_images 40, now 19.*evaluate again"
    ):
        card([evaluation(num_calibration_images=40)])


def test_an_evaluation_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"gear was made with another model.*model_digest 4567, now 0123.*evaluate again"):
        card([evaluation(digest="4567")])


def test_an_evaluation_that_names_no_model_is_said_to():
    assert "The evaluation of shaft does not say which model" in card([evaluation(), evaluation("shaft", digest=None)]).text
    with pytest.raises(ValueError, match=r"num_calibration_images 40, now 19"):
        card([evaluation(digest=None, num_calibration_images=40)])


def test_settings_of_older_evaluations_go_by_their_former_names():
    older = evaluation(digest=None)
    older.metrics["recipe"]["num_normals"] = older.metrics["recipe"].pop("num_calibration_images")
    assert card([older]).text
    older.metrics["recipe"]["num_normals"] = 40
    with pytest.raises(ValueError, match=r"num_calibration_images 40, now 19"):
        card([older])


def test_names_do_not_break_tables():
    odd = EvaluationRecord("gear", evaluation().metrics, [("a|b", 2, 0.5)], sheet=None)
    assert "| gear | a\\|b | 2 | 50.0 |" in card([odd]).text


def test_the_licence_of_mvtec_ad_can_not_be_forgotten():
    with pytest.raises(ValueError, match="cc-by-nc-sa-4.0"):
        card([evaluation("screw")])
    assert card([evaluation("screw")], terms=DataTerms(license="cc-by-nc-sa-4.0")).data.license == "cc-by-nc-sa-4.0"
