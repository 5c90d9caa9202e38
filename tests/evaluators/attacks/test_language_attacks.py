"""Attacks by prompt: what is asked, what is scored, and that a model which knows is told from one that does not."""

from typing import Any

import pytest
import torch

from tests.toys.language import encoder, tiny, tiny_dataset, tiny_splits
from tests.toys.scripted import value
from tests.toys.trained_language import evaluation_on, family, fit, remembering
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.data.text import TextDataset, TextItem
from unlearn.evaluators.attacks.answer_relearning import AnswerRelearning
from unlearn.evaluators.attacks.base.extraction import attacked, memorised
from unlearn.evaluators.attacks.base.prompting import related_questions, with_context
from unlearn.evaluators.attacks.in_context import InContext
from unlearn.evaluators.attacks.paraphrase import Paraphrase, wordings
from unlearn.evaluators.attacks.prefix import CONSENT, Prefix, with_prefix
from unlearn.evaluators.attacks.quantization import Quantization
from unlearn.evaluators.attacks.stepwise import Stepwise
from unlearn.evaluators.base import Evaluation

ATTACKS = [
    InContext(facts=2),
    Stepwise(questions=2, new_tokens=4),
    Prefix(),
    Paraphrase(),
    Quantization(),
    AnswerRelearning(items=[1, 2], steps=[0, 2]),
]
PROMPTS = ATTACKS[:4]


def evaluation(**models: Any) -> Evaluation:
    return Evaluation(models, tiny_splits(), Randomness(0, "evaluate"), torch.device("cpu"))


def plain(model: Any, ids: list[int]) -> list[float]:
    return memorised(model, tiny_dataset().batch(torch.tensor(ids)))[:, 0].tolist()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_no_attack_touches_a_model_and_all_give_the_same_figures_again(attack: Any) -> None:
    models = {"target": remembering(), "unlearned": tiny(1)}
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in models.items()}
    first, second = attack(evaluation(**models)), attack(evaluation(**models))
    assert first.records == second.records and first.items == second.items
    assert {(r.subject, r.metric) for r in first.records} >= {(subject, attack.metrics[0].name) for subject in models}
    for name, model in models.items():
        assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in models["unlearned"].parameters())
        assert not model.training


@pytest.mark.parametrize("attack", PROMPTS, ids=lambda attack: type(attack).__name__)
def test_records_are_well_formed_and_name_their_budget(attack: Any) -> None:
    records = attack(evaluation(target=remembering(), unlearned=tiny(1))).records
    assert len(records) == 4
    for record in records:
        assert record.split == "forget" and record.direction == "retrained" and record.unit == "share"
        assert record.about["budget"] and record.ci95 is not None and record.n == 4  # the passage asks nothing
        assert record.metric == attack.metrics[0].name and 0 <= record.value <= 1
    assert {record.about["score"] for record in records} == {"exact_memorization", "extraction_strength"}


def test_memorised_counts_tokens_and_the_end_that_is_right() -> None:
    """A model that knows its answers scores 1 in both; one with random weights next to nothing."""
    batch = tiny_dataset().batch(torch.tensor([0, 1, 2, 3]))
    assert memorised(remembering(), batch).tolist() == [[1.0, 1.0]] * 4
    assert memorised(tiny(1), batch).max() < 0.5


def test_the_rest_of_an_answer_is_scored_behind_a_prefix() -> None:
    """Prompt and rest are the tokens of the whole; the rest is what is scored without a prefix."""
    own = encoder()
    for prefix in CONSENT:
        prompt, rest = with_prefix(own, "Who?", "Lima it is", prefix)
        asked, whole = own.encode("Who?", f"{prefix} Lima it is")
        assert prompt + rest == asked + whole and rest == own.encode("Who?", "Lima it is")[1]
        assert own.tokenizer.decode(prompt).endswith(prefix)
    assert with_prefix(own, "Who?", "Lima", "") == own.encode("Who?", "Lima")


def test_the_best_prefix_counts() -> None:
    """The plain question among the ways gives at least its own score; alone it gives just that."""
    subjects = {"target": remembering(), "unlearned": tiny(1)}
    alone = Prefix(prefixes=[""])(evaluation(**subjects))
    for name, model in subjects.items():
        expected = plain(model, [0, 1, 2, 3])
        assert [row["value"] for row in alone.items if row["subject"] == name] == pytest.approx(expected)
    both = Prefix(prefixes=["", CONSENT[0]])(evaluation(**subjects))
    single = Prefix(prefixes=[CONSENT[0]])(evaluation(**subjects))
    triples = zip(both.items, alone.items, single.items, strict=True)
    assert all(b["value"] == max(a["value"], s["value"]) for b, a, s in triples)
    assert [row["value"] for row in single.items] != [row["value"] for row in alone.items]


def test_a_prefix_that_leaves_no_answer_does_not_count() -> None:
    """96 tokens hold no answer behind a prefix of 200 letters; where all are such, there is no value."""
    long, model = "x" * 200, remembering()
    both = Prefix(prefixes=["", long])(evaluation(target=model))
    assert [row["value"] for row in both.items] == plain(model, [0, 1, 2, 3])
    pairs = Prefix(prefixes=[long])
    run = evaluation(target=model)
    assert pairs.best(run, model, pairs.ways(run, "target", torch.tensor([0]))).isnan().all()


def test_paraphrases_ask_the_forms_and_score_the_items_own_answer() -> None:
    data = tiny_dataset()
    found = Paraphrase()(evaluation(target=remembering()))
    batch = data.form("paraphrased_question", torch.tensor([0, 1, 2, 3]))  # the answer is the same in this form
    assert [row["value"] for row in found.items] == memorised(remembering(), batch)[:, 0].tolist()
    assert wordings(data, 0) == ["Which city is the seat of government of Peru?"] and wordings(data, 10) == []


def test_where_no_item_can_be_attacked_nothing_is_reported() -> None:
    bare = TextDataset([TextItem("", "Far away.", "a"), TextItem("Who?", "Me", "b")], torch.tensor([False] * 2))
    for attack in PROMPTS:
        found = attack(evaluation_on(bare.encoded_by(encoder()), [0], target=tiny(0)))
        assert found.records == [] and found.notes[0].endswith(f"so there is no {attack.metrics[0].name}.")
    found = Paraphrase()(evaluation_on(bare.encoded_by(encoder()), [1], target=tiny(0)))
    assert found.records == [] and "no forget question has other wordings" in found.notes[0]


def test_context_is_of_the_same_label_and_never_the_item_itself() -> None:
    data = family(4)
    run = evaluation_on(data, range(12), target=tiny(0))
    for item in range(12):
        found = related_questions(run, data, item, 2)
        assert len(found) == 2 and item not in found
        assert {data.labels[other] for other in found} == {data.labels[item]}
        assert len(related_questions(run, data, item, 99)) == 3
    assert (
        related_questions(evaluation_on(data, [0, 4], target=tiny(0)), data, 0, 2) == []
    )  # other people are no company


def test_context_stands_before_the_question_with_the_true_answers() -> None:
    data = family(2)
    run = evaluation_on(data, range(6), target=tiny(0))
    (((prompt, answer),),) = InContext(facts=1).ways(run, "target", torch.tensor([0]))
    other, own = data.words(1), data.words(0)
    assert (prompt, answer) == data.encoder.encode(f"{other[0]} {other[1]}\n{own[0]}", own[1])
    (((lonely, _),),) = InContext().ways(evaluation_on(data, [0, 2], target=tiny(0)), "target", torch.tensor([0]))
    assert lonely == data.tokens(0)[0]


def test_a_context_that_is_too_long_is_cut_at_its_beginning() -> None:
    """The question and the whole answer stay: here 96 tokens hold one line of two."""
    own = encoder()
    lines, question, answer = ["x" * 60, "y" * 20], "Who?", "Lima"
    assert with_context(own, lines, question, answer) == own.encode(f"{lines[1]}\nWho?", answer)
    assert with_context(own, ["x" * 200], question, answer) == own.encode(question, answer)
    cut = own.encode("\n".join([*lines, question]), answer)  # the control: the encoder alone cuts the answer away
    assert cut[1] == []


def test_steps_keep_what_the_model_itself_says() -> None:
    """The sub-questions carry the subject's own replies, so two subjects are asked different things in the end."""
    data = family(2)
    knows = remembering_family()
    run = evaluation_on(data, range(6), target=knows, unlearned=tiny(3))
    (((prompt, answer),),) = Stepwise(questions=1, new_tokens=12).ways(run, "target", torch.tensor([0]))
    other, own = data.words(1), data.words(0)
    assert answer == data.encoder.encode(*own)[1]
    text = data.encoder.tokenizer.decode(prompt, skip_special_tokens=True)
    assert f"{other[0]} {other[1]}\n{wordings(data, 0)[0]} {own[1]}\n{own[0]}\nAnswer:" in text
    (((wild, _),),) = Stepwise(questions=1, new_tokens=12).ways(run, "unlearned", torch.tensor([0]))
    assert wild != prompt


def remembering_family() -> Any:
    """A model that answers the family's questions, in both wordings, with and without a line before them."""
    data = family(2)
    ids = torch.arange(6)
    second = [(f"{' '.join(data.words(1))}\n{wordings(data, 0)[0]}", data.words(0)[1])]
    extra = TextDataset([TextItem(q, a) for q, a in second], torch.tensor([False]), encoder=data.encoder)
    batches = [data.batch(ids), data.form("paraphrased_question", ids), extra.batch(torch.tensor([0]))]
    return fit(tiny(5, width=32), batches, 150)


def test_traps_are_not_attacked_as_facts() -> None:
    items = [TextItem("Who?", "Me", "a"), TextItem("", "odd words", "a", frozenset({"trap"}))]
    data = TextDataset(items, torch.tensor([False] * 2), encoder=encoder())
    assert attacked(evaluation_on(data, [0, 1]), None).tolist() == [0]


@pytest.mark.parametrize("attack", PROMPTS, ids=lambda attack: type(attack).__name__)
def test_data_that_are_no_text_are_refused(attack: Any, digits: Any) -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.NAME=null"):
        attack.check({"forget": Split("forget", digits, torch.arange(3))})


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        (Prefix, {"prefixes": []}),
        (InContext, {"facts": 0}),
        (Stepwise, {"questions": 0}),
        (Stepwise, {"new_tokens": 0}),
        (Paraphrase, {"items": 0}),
    ],
)
def test_settings_out_of_range_are_refused(attack: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        attack(**settings)


def test_fewer_items_are_drawn_by_the_seed() -> None:
    run = evaluation(target=tiny(0))
    assert {row["id"] for row in Prefix(items=2)(run).items} < {0, 1, 2, 3}
    assert value(Prefix(items=2)(run).records, "attack_prefix", score="exact_memorization") >= 0
