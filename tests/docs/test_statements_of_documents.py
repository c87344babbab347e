"""What the documents say is so: names, links, paths, tables."""

import dataclasses
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

import pytest
import typer
from diffad.cli import app
from diffad.imaging.reading import IMAGE_SUFFIXES
from diffad.jobs.table import SCHEMA
from diffad.pipeline_output import DiffADOutput
from diffad.repair.presets import PRESETS
from diffad.scoring.config import DEFAULT_EDGE, SCALE_TERMS, TERMS, ScoreConfig
from diffad.scoring.conformal import check_supported, images_behind_thresholds, smallest_rate, threshold_rank
from diffad.scoring.presets import DEFAULT
from diffad.watch.results import COLUMNS
from diffad.watch.sinks.registers import (
    BEAT,
    CAUSES,
    DEFECTS,
    MONITOR,
    NUMBER,
    SCORE,
    STATE,
    THRESHOLD,
    VERDICT,
)
from diffad.watch.states import Cause, State
from diffad_training.benchmarks import (
    ablation,
    audit,
    cascade,
    detection,
    few_images,
    label_ambiguity,
    monitoring,
    monitoring_tables,
    precisions,
    records,
    reference_content,
    repair,
    repair_confidence,
    repair_region,
    robustness,
    scaling,
    serving,
    speed,
    speed_tables,
    stronger_peers,
    update,
)
from diffad_training.config import TrainingConfig
from documents import DOCUMENTS, GUIDE, README, ROOT, TRAINING
from scipy.stats import beta

COMMANDS = typer.main.get_command(app).commands


def table_after(text: str, heading: str) -> list[list[str]]:
    """Cells of the rows of the first table whose head begins so."""
    rows = text[text.index(f"| {heading}") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_readme_is_short():
    assert len(README.text) <= 12_000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)]+)\)", document.prose):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = document.path.parent / name if name else document.path
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_paths_presets_and_extras_exist(document):
    for path in re.findall(r"(?<![\w/.])(?:training|model_cards|tests|pipelines)/[\w/]+\.\w+", document.text):
        assert (ROOT / path).is_file(), path
    for preset in re.findall(r"--config ([\w-]+)(?![\w.])", document.text):
        assert (ROOT / "training/configs" / f"{preset}.yaml").is_file() or f"{preset}.yaml" in document.text, preset
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r"pip install .*?\[([\w,]+)\]", document.text):
        assert set(extras.split(",")) <= set(setup["options.extras_require"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_option_exists(document):
    known = {f"--{name}" for name in TrainingConfig.__dataclass_fields__} | {"--config", "--multi_gpu", "--num_processes"}
    known |= {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    for script in (ROOT / "training").rglob("*.py"):
        known |= set(re.findall(r'add_argument\(\s*"(--\w+)"', script.read_text()))
    known |= {"--help", "--num_machines", "--machine_rank", "--main_process_ip", "--main_process_port"}
    ours = "\n".join(line for line in document.text.splitlines() if not line.startswith(("uv ", "ray ")))
    options = set(re.findall(r"(?<![\w<!-])--[a-z][\w-]*", ours))
    assert {option for option in options if option not in known and option.replace("_", "-") not in known} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_field_of_an_output_exists(document):
    assert set(re.findall(r"output\.([a-z]\w*)", document.text)) <= {field.name for field in dataclasses.fields(DiffADOutput)}


def test_every_command_is_described():
    assert set(re.findall(r"^\| `diffad (\w+)", README.text, re.MULTILINE)) == set(COMMANDS)


def test_every_benchmark_is_described():
    files = (ROOT / "training/benchmarks").glob("*.py")
    scripts = {path.stem for path in files if "__main__" in path.read_text()}
    assert {row[0].strip("`") for row in table_after(TRAINING.text, "script")} == {f"{name}.py" for name in scripts}
    assert {Path(name).stem for name in re.findall(r"python training/benchmarks/(\w+)\.py", TRAINING.text)} == scripts


def test_every_preset_of_repair_is_described():
    assert [row[0].strip("`") for row in table_after(GUIDE.text, "preset")] == list(PRESETS)


def test_every_training_preset_is_described():
    presets = {path.stem for path in (ROOT / "training/configs").glob("*.yaml")}
    assert {row[0].strip("`") for row in table_after(TRAINING.text, "preset")} == presets


def test_settings_of_training_exist():
    names = {name for row in table_after(TRAINING.text, "setting") for name in re.findall(r"`(\w+)`", row[0])}
    assert names and names <= {field.name for field in dataclasses.fields(TrainingConfig)}


def test_the_guide_names_all_columns_of_the_table():
    (columns,) = re.findall(r"Its columns: (.*?)\.\s+`--maps`", GUIDE.text, re.DOTALL)
    assert re.findall(r"`([a-z_]+)`", columns) == SCHEMA.names


def test_the_guide_names_states_causes_and_registers_of_the_line():
    assert {row[0].strip("`"): int(row[1]) for row in table_after(GUIDE.text, "state | number")} == {
        state.name: state.value for state in State
    }
    assert {row[0].strip("`"): int(row[1]) for row in table_after(GUIDE.text, "cause | bit")} == {
        cause.name: cause.value for cause in Cause
    }
    places = [STATE, CAUSES, BEAT, NUMBER, VERDICT, MONITOR, SCORE, THRESHOLD, DEFECTS]
    names = [f"FIRST{f' + {first}' * bool(first)}" for first in places]
    names = [f"{name}, {place + 1}" if place in (NUMBER, SCORE, THRESHOLD) else name for name, place in zip(names, places)]
    assert [row[0] for row in table_after(GUIDE.text, "register | value")] == names
    (fields,) = re.findall(r"with the fields (.*?)\. `diffad monitor", GUIDE.text, re.DOTALL)
    assert re.findall(r"`(\w+)`", fields) == [name for name in COLUMNS if name not in SCHEMA.names]


def test_the_guide_names_all_image_formats():
    (formats,) = re.findall(r"\*\*Image files\*\* are (.*?), in grey", GUIDE.text)
    suffixes = {f".{name.lower()}" for name in re.split(r", | and ", formats)} | {".jpg", ".tif"}
    assert suffixes == IMAGE_SUFFIXES


def test_the_guide_explains_the_score():
    listed = re.findall(r"^- (`\w+`(?:, `\w+`)*): ", GUIDE.text, re.MULTILINE)
    explained = [term for terms in listed for term in re.findall(r"\w+", terms)]
    assert sorted(explained) == sorted((*TERMS, *SCALE_TERMS))
    (weights,) = re.findall(r"The default, (.*?),\s+stays unless", GUIDE.text, re.DOTALL)
    assert re.findall(r"`(\w+)`", weights) == list(DEFAULT["weights"])
    (verdict,) = re.findall(r"of the pixels of each of the terms (.*?), standardises", GUIDE.text, re.DOTALL)
    assert sorted(re.findall(r"`(\w+)`", verdict)) == sorted(DEFAULT["verdict"])
    assert tuple(map(int, re.findall(r"one noise level, timestep (\d+) of", GUIDE.text))) == DEFAULT["timesteps"]
    (timesteps,) = re.findall(r"three: (\d+), (\d+) and (\d+), the paper's", GUIDE.text)
    assert tuple(map(int, timesteps)) == ScoreConfig().timesteps


def test_the_guide_explains_masks():
    assert re.findall(r"down to (\d+) % of its\s+own peak", GUIDE.text) == [f"{100 * DEFAULT_EDGE:.0f}"]
    assert re.findall(r"mask_edge=([\d.]+)", GUIDE.text) == [f"{DEFAULT_EDGE:g}"]


def test_the_table_of_image_numbers():
    """Long-run false-alarm rates of a split conformal threshold follow Beta(n + 1 - k, k)."""
    for images, held_out, smallest, *spreads in table_after(GUIDE.text, "good images in the folder"):
        assert int(held_out) == round(int(images) * TrainingConfig().held_out_fraction)
        n = images_behind_thresholds(int(held_out))
        assert float(smallest.removesuffix(" %")) == pytest.approx(100 * smallest_rate(n), rel=0.02)
        for rate, spread in zip((0.05, 0.01), spreads, strict=True):
            if not spread:
                with pytest.raises(ValueError, match="calibrate on"):
                    check_supported(n, rate)
                continue
            k = threshold_rank(n, rate)
            low, high = map(float, spread.removesuffix(" %").split(" and "))
            assert [low, high] == [round(100 * beta.ppf(share, n + 1 - k, k), 1) for share in (0.05, 0.95)]


def test_tables_are_those_of_the_kept_results(tmp_path, monkeypatch):
    (tmp_path / "model_cards").mkdir()
    for document in DOCUMENTS:
        if document.path.parent in (ROOT, ROOT / "model_cards"):
            shutil.copy(document.path, tmp_path / document.name)
    kept = ROOT / "training/benchmarks/results"
    monkeypatch.setattr(detection, "ROOT", tmp_path)
    detection.write_tables()
    ablations = records.latest_results(kept / "ablation.jsonl", ablation.IDENTITY)
    records.fill_tables(tmp_path / "model_cards/ablations.md", "ablation", lambda _: ablation.table(ablations))
    repair.update_tables(tmp_path / "model_cards/repair.md", kept / "repair.jsonl")
    speed_tables.update_tables(tmp_path / "model_cards/speed.md", kept / "speed.jsonl")
    monitoring_tables.update_tables(tmp_path / "model_cards/monitoring.md", kept / "monitoring.jsonl")
    scaling.update_tables(tmp_path / "model_cards/scaling.md", kept / "scaling.jsonl")
    serving.update_tables(tmp_path / "model_cards/serving.md", kept / "serving.jsonl")
    update.update_tables(tmp_path / "model_cards/update.md", kept / "update.jsonl")
    precisions.update_table(tmp_path / "model_cards/speed.md", kept / "precisions.jsonl")
    cascade.update_table(tmp_path / "model_cards/speed.md", kept / "cascade.jsonl", kept / "precisions.jsonl")
    audit.update_table(tmp_path / "model_cards/audit.md", kept / "audit.jsonl")
    robustness.update_tables(tmp_path / "model_cards/robustness.md", kept / "robustness.jsonl")
    few_images.update_tables(tmp_path / "model_cards/few_images.md", kept / "few_images.jsonl")
    stronger_peers.update_table(tmp_path / "model_cards/benchmark.md", kept / "stronger_peers.jsonl")
    reference_content.update_table(tmp_path / "model_cards/repair.md", kept / "reference_content.jsonl")
    repair_confidence.update_table(tmp_path / "model_cards/repair.md", kept / "repair_confidence.jsonl")
    repair_region.update_table(tmp_path / "model_cards/repair.md", kept / "repair_region.jsonl")
    for document in DOCUMENTS:
        copy = tmp_path / document.name
        assert not copy.is_file() or copy.read_text() == document.text, document.name


def test_every_table_is_rendered_by_a_benchmark():
    """A marker in a document that no benchmark writes to would never be filled again."""
    for document in DOCUMENTS:
        kinds = set(re.findall(r"<!-- (\w+)", document.text)) - {"benchmark"}
        cards = {"ablation": ablation.CARD, "repair": repair.CARD, "label_ambiguity": label_ambiguity.CARD}
        cards |= {"speed": speed.CARD, "precisions": precisions.CARD, "cascade": cascade.CARD}
        cards |= {"monitoring": monitoring.CARD, "audit": audit.CARD, "reference_content": reference_content.CARD}
        cards |= {"repair_confidence": repair_confidence.CARD, "repair_region": repair_region.CARD}
        cards |= {"few_images": few_images.CARD, "stronger_peers": stronger_peers.CARD}
        cards |= {"scaling": scaling.CARD, "serving": serving.CARD, "update": update.CARD, "robustness": robustness.CARD}
        assert all(cards[kind].name == document.path.name for kind in kinds), document.name
