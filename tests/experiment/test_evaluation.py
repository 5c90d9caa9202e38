"""A run reads each given model once, and measures one model at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.toys.language import tiny
from tests.toys.language_files import SMALL, figures
from tests.toys.one_model import OneLives
from unlearn.core.float_types import float_types
from unlearn.core.reference_model import ReferenceModel
from unlearn.evaluators.subjects import OneAtATime, precision_of, trainable_copy
from unlearn.experiment import evaluation
from unlearn.experiment.model_store import StoredModel
from unlearn.models.language.wrapper import Language
from unlearn.run import main

COMPARING = (
    "evaluate={cost: {}, quantization: {bits: [4], items: 4}, memorization: {}, relearning: {items: [2], steps: [1]}}"
)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_reads_each_given_model_once_and_measures_one_at_a_time(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluators that compare subjects included; NPO's reference, too, is the target that was read first."""
    folders = {name: tmp_path / name for name in ("target", "retrained")}
    for seed, folder in enumerate(folders.values()):
        folder.mkdir()
        tiny(seed).save_pretrained(folder)
    reads: list[Path] = []
    read = Language.from_pretrained.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Language], folder: Path, **settings: Any) -> Language:
        reads.append(folder)
        found: Language = read(cls, folder, **settings)
        return found

    monkeypatch.setattr(Language, "from_pretrained", classmethod(counted))
    monkeypatch.setattr(evaluation, "OneAtATime", OneLives)
    monkeypatch.setattr(OneLives, "most", 0)
    monkeypatch.chdir(tmp_path)
    models = [f"model.pretrained={folders['target']}", f"model.retrained={folders['retrained']}"]
    settings = [*models, f"model.dtype={precision}", "optim.steps=2", COMPARING, "output=run"]
    assert main([SMALL, *settings]) == 0
    read_back = Path("run") / "model"
    assert sorted(reads) == sorted([read_back, *folders.values()])
    assert OneLives.most == 1
    assert {"target", "unlearned", "retrained"} <= {record["subject"] for record in figures(tmp_path / "run")}


def test_the_subject_before_goes_back_in_its_own_precision() -> None:
    models = {"target": tiny(0), "unlearned": tiny(1).to(torch.bfloat16)}
    asked: list[str] = []
    subjects = OneAtATime(
        {name: lambda name=name: asked.append(name) or models[name] for name in models},  # type: ignore[misc]
        torch.device("meta"),
    )
    assert list(subjects) == ["target", "unlearned"] and "target" in subjects and not asked
    assert next(subjects["target"].parameters()).is_meta and subjects["target"] is models["target"]
    assert asked == ["target"]
    assert precision_of(models["unlearned"]) == torch.bfloat16
    with pytest.raises(NotImplementedError):  # back to the CPU, which weights on meta cannot go
        subjects["unlearned"]


def mixed(seed: int = 0) -> Language:
    """Return a model in bfloat16 whose norms are in float32."""
    model = tiny(seed, dtype=torch.bfloat16)
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.float()
    return model


def test_each_tensor_keeps_its_type() -> None:
    """While it is measured, and after steps in double precision; what steps leave alone is not changed at all."""
    model = mixed()
    types, before = float_types(model), {name: value.clone() for name, value in model.state_dict().items()}
    assert set(types.values()) == {torch.bfloat16, torch.float32} and precision_of(model) == torch.bfloat16
    subjects = OneAtATime({"target": lambda: model}, torch.device("cpu"))
    assert float_types(subjects["target"]) == types
    subjects.release()
    assert float_types(model) == types
    stored = StoredModel.in_memory(model)
    reference = ReferenceModel(stored.shared)
    reference.to(torch.zeros(1, dtype=torch.bfloat16))
    assert float_types(reference()) == types
    reference.to(torch.zeros(1, dtype=torch.float64))  # trainer.precision=64-true
    assert set(float_types(reference()).values()) == {torch.float64}
    stored.release()
    assert float_types(stored.shared()) == types
    assert all(torch.equal(value, before[name]) for name, value in stored.shared().state_dict().items())
    other = nn.Linear(2, 2).double()  # a name that the target has not
    stored.cast_back(other)  # type: ignore[arg-type]
    assert set(float_types(other).values()) == {torch.float32}


def test_an_attack_trains_a_copy_in_single_precision_at_least() -> None:
    half = tiny(0).to(torch.bfloat16)
    assert (
        precision_of(trainable_copy({"target": half}, "target")) == torch.float32
        and precision_of(half) == torch.bfloat16
    )
    assert precision_of(trainable_copy({"target": tiny(0).double()}, "target")) == torch.float64
