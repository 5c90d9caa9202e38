"""The model card: front matter that hubs can read, figures, and what was not tested."""

import importlib
import sys

import pytest
import yaml

from unlearn.report.card import write_model_card


def read(path):
    text = path.read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_card_says_what_was_done_and_what_was_not(make_run):
    folder = make_run()
    path = write_model_card(folder)
    front, body = read(path)
    assert path == folder / "model" / "README.md"
    assert front == {"library_name": "unlearnkit", "tags": ["machine-unlearning", "flow", "category_taming"]}
    for text in (
        "**forgets**: items labelled ‘3’",
        "fell from 9.8 % to 0.9 %",
        "- reached: share of ‘3’ in the samples: at most 3.0 % (0.9 %)",
        "| bits per dimension | retain | 2.001 (1.990 to 2.012) | 2.027 (2.016 to 2.038) | 1.994 (1.983 to 2.005) |",
        "**Relearning** (not run)",
        "python -m unlearn.run recipe=flow/category_digits",
        '.from_pretrained(Path("model"))',
    ):
        assert text in body, text
    columns = {line.count("|") for line in body.splitlines() if line.startswith("|")}
    assert columns == {7}
    assert "license" not in front and "None is stated" in body


def test_missed_goals_are_not_hidden(make_run):
    gate = {"share": {"metric": "sample_share", "split": "forget", "max": 0.001}}
    _, body = read(write_model_card(make_run(recipe_gate=gate)))
    assert "NOT reached: share of ‘3’" in body and "1 of 2 goals were not reached" in body


def test_names_cannot_become_markup(make_run):
    nasty = "<script>a</script>|*b*\n# heading\n---"
    _, body = read(write_model_card(make_run(category=nasty, title=nasty), load="x = 1"))
    body = "\n".join(line for line in body.splitlines() if not line.startswith("    "))  # code shows as it stands
    assert "<script" not in body and "&lt;script&gt;" in body and "\n# heading" not in body
    assert "```python\nx = 1\n```" in body
    assert {line.replace("\\|", "").count("|") for line in body.splitlines() if line.startswith("|")} == {7}


@pytest.mark.parametrize("name", ["stranger:Model", "stranger.Model"])
def test_a_class_that_a_folder_names_is_not_imported(make_run, tmp_path, monkeypatch, name):
    """Unless the run that writes the card has it already."""
    (tmp_path / "stranger.py").write_text(
        "from unlearn.models.flow.config import *; from pathlib import Path\n"
        f"Path({str(tmp_path / 'ran')!r}).touch(); Model = GlowConfig\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = make_run(recipe_model={"name": name})
    _, body = read(write_model_card(run))
    assert "from_pretrained" not in body
    assert not (tmp_path / "ran").exists() and "stranger" not in sys.modules
    try:
        importlib.import_module("stranger")
        _, body = read(write_model_card(run))
        assert "from_pretrained" in body
    finally:
        sys.modules.pop("stranger", None)


def test_unknown_model_has_no_loading_lines(make_run):
    _, body = read(write_model_card(make_run(recipe_model={"name": "none_such"})))
    assert "How to load" not in body


def test_hub_library_reads_the_card(make_run):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(write_model_card(make_run()))
    assert card.data.library_name == "unlearnkit" and "category_taming" in card.data.tags
