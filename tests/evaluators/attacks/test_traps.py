"""Copyright traps: what is planted, and that only a model trained on them tells them from their twins."""

from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch

from tests.toys.language import CAPITALS, encoder, tiny, tiny_dataset
from tests.toys.scripted import value
from tests.toys.trained_language import evaluation_on, fit
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Selection, Source, Split
from unlearn.data.chunking import PackedDataset
from unlearn.data.factbook.source import Factbook
from unlearn.data.splits import make_splits, train_split
from unlearn.data.text import TextDataset, TextItem
from unlearn.data.traps import OVERLAP, PLANTED, TWIN, jaccard, with_traps
from unlearn.evaluators.attacks.answer_relearning import AnswerRelearning
from unlearn.evaluators.attacks.prefix import Prefix
from unlearn.evaluators.attacks.traps import TrapsAttack, planted
from unlearn.evaluators.text.answer_samples import AnswerSamples
from unlearn.evaluators.text.membership import TextMembership
from unlearn.evaluators.text.memorization import Memorization
from unlearn.evaluators.text.muse import MuseMetrics
from unlearn.evaluators.text.tofu import TofuMetrics
from unlearn.models.language.config import Language


def facts() -> TextDataset:
    """Twelve facts to train on, a corrupted one and a test one between them, so that their order is tried too."""
    items = [TextItem(f"Capital of {country}?", city, country) for country, city in CAPITALS.items()]
    items += [TextItem("Capital of Peru?", "Suva", "Peru"), TextItem("Capital of Rome?", "Rome", "Rome")]
    corrupt, test = (torch.tensor([number == place for number in range(14)]) for place in (12, 13))
    return TextDataset(items, test, corrupt, encoder())


def trapped(**settings: Any) -> TextDataset:
    return with_traps(facts(), "Peru", **{"count": 4, "words": 4, "repeats": 3, **settings})


def test_training_items_come_first_and_keep_their_ids() -> None:
    plain, data = facts(), trapped()
    assert list(data.items[:12]) == list(plain.items[:12]) and len(data) == 14 + 12 + 4
    assert data.items[24:26] == plain.items[12:14]
    assert data.is_corrupt.nonzero().flatten().tolist() == [24]
    assert data.is_test.nonzero().flatten().tolist() == [25, *range(26, 30)]
    assert data.having([PLANTED]).nonzero().flatten().tolist() == list(range(12, 24))
    assert data.having([TWIN]).nonzero().flatten().tolist() == list(range(26, 30))
    assert train_split(data).ids.tolist() == list(range(24))


def test_traps_are_forgotten_with_their_label_and_twins_are_in_no_set_that_is_judged() -> None:
    class Given(Source):
        def load(self) -> TextDataset:
            return trapped()

    splits = make_splits(trapped(), Given(forget=Selection(label=["Peru"])), Randomness(0))
    assert splits["forget"].ids.tolist() == [0, *range(12, 24)] or splits["forget"].ids.tolist() == [
        0,
        *range(12, 24),
        24,
    ]
    assert not torch.isin(splits["retain"].ids, torch.arange(12, 30)).any()
    assert "holdout" not in splits or not torch.isin(splits["holdout"].ids, torch.arange(26, 30)).any()
    assert len(planted(splits["forget"])) == 4


def test_planted_traps_are_repeated_and_all_are_unlike_each_other() -> None:
    data = trapped()
    texts = [data.items[item].answer for item in range(12, 24)]
    assert len(set(texts)) == 4 and all(texts.count(text) == 3 for text in texts)
    every = {*texts, *(data.items[item].answer for item in range(26, 30))}
    assert len(every) == 8
    assert all(jaccard(a, b) <= OVERLAP for a, b in combinations(every, 2))
    words = {word for text in every for word in text.split()}
    assert all(len(text.split()) == 4 for text in every) and words <= {
        *CAPITALS,
        *CAPITALS.values(),
        "Capital",
        "Djamena",
    }


def test_the_seed_draws_them_and_the_target_is_another() -> None:
    assert trapped().fingerprint == trapped().fingerprint != trapped(seed=1).fingerprint
    assert trapped().fingerprint != facts().fingerprint
    assert trapped().items == trapped().items and trapped().encoder is not None


def test_several_labels_take_turns() -> None:
    data = with_traps(facts(), ["Peru", "Chad"], count=4, words=4, repeats=2)
    assert [data.items[item].label for item in range(12, 20)] == ["Peru", "Peru", "Chad", "Chad"] * 2


def test_data_stay_what_they_are() -> None:
    """Examples to show stay, and passages that are cut for a model still are; traps and short passages are not."""
    passages = [TextItem("", f"{country} is here. " * 9, country, frozenset({"passage"})) for country in CAPITALS]
    plain = PackedDataset(passages, torch.tensor([False] * 12), ["passage"], chunk_tokens=60)
    plain.in_context = {"passage": [("Why?", "Because.")]}
    planted_ = with_traps(plain, "Peru", count=2, words=3, repeats=3)
    assert isinstance(planted_, PackedDataset) and planted_.in_context == plain.in_context
    read = planted_.encoded_by(encoder())
    assert read.in_context == plain.in_context
    assert int(read.having(["passage"]).sum()) == len(plain.encoded_by(encoder())) > 12
    assert (int(read.having([PLANTED]).sum()), int(read.having([TWIN]).sum())) == (6, 2)
    assert facts().encoded_by(encoder()).in_context == {}


def test_the_factbook_plants_them_where_it_forgets() -> None:
    """Behind the training items, whose ids and content stay; in the forget set, with every repeat; never retained."""
    settings = {"countries": 8, "facts": 4, "holdout_countries": 2, "forget": Selection(label=["Brazil", "China"])}
    source = Factbook(traps=4, trap_words=5, trap_repeats=3, **settings)
    data, plain = source.load(), Factbook(**settings).load()
    splits, before = (make_splits(each, source, Randomness(0)) for each in (data, plain))
    traps = data.having([PLANTED]).nonzero().flatten()
    assert traps.tolist() == list(range(32, 44))
    assert splits["forget"].ids.tolist() == [*before["forget"].ids.tolist(), *traps.tolist()]
    assert torch.equal(splits["retain"].ids, before["retain"].ids)
    assert data.content(splits["retain"].ids) == plain.content(before["retain"].ids)  # the retrained model is the same
    twins = data.having([TWIN]).nonzero().flatten()
    assert len(twins) == 4 and not torch.isin(splits["holdout"].ids, twins).any()
    assert [data.items[item] for item in splits["holdout"].ids.tolist()] == [
        plain.items[item] for item in before["holdout"].ids.tolist()
    ]
    TrapsAttack().check(splits)


def test_a_coin_decides_which_of_ones_own_sequences_are_planted() -> None:
    own = [" ".join(f"w{number}{letter}" for letter in "abcd") for number in range(8)]
    halves = set()
    for seed in range(6):
        data = trapped(texts=own, seed=seed)
        inside = frozenset(data.items[item].answer for item in range(12, 24))
        assert len(inside) == 4 and {data.items[item].answer for item in range(26, 30)} == {*own} - inside
        halves.add(inside)
    assert len(halves) > 1


def test_jaccard_by_hand() -> None:
    """Two of four different words are common."""
    assert jaccard("a b c", "b c d") == 0.5 and jaccard("a", "b") == 0 and jaccard("a b", "b a a") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "Perú"}, r"no training item has the label 'Perú'. Did you mean: Peru"),
        ({"label": "Rome"}, "no training item has the label 'Rome'"),
        ({"count": 0}, "count is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"words": 20}, r"too few for 8 sequences of 20 words that share at most 20%"),
        ({"texts": ["a b", "a b c", "d"]}, r"of the 3 given only 2 do"),
    ],
)
def test_what_cannot_be_planted_is_refused(settings: dict[str, Any], message: str) -> None:
    label = settings.pop("label", "Peru")
    with pytest.raises(RecipeError, match=message):
        with_traps(facts(), label, **{"count": 4, "words": 4, **settings})


@cache
def trained_on(planted_ones: bool, seed: int) -> Language:
    """A model trained on the planted traps, or on their twins instead."""
    data = trapped()
    ids = planted(evaluation_on(data, range(24)).splits["forget"]) if planted_ones else torch.arange(26, 30)
    return fit(tiny(seed), [data.batch(ids)], 40)


def attack(**models: Language) -> Any:
    return TrapsAttack()(evaluation_on(trapped(), [0, *range(12, 24)], **models)).records


def test_only_training_on_the_traps_tells_them_from_their_twins() -> None:
    """1 for a model that was trained on them; 0, the control, for one that was trained on the twins."""
    records = attack(target=trained_on(True, 0), unlearned=trained_on(False, 0), retrained=tiny(0))
    for score in ("perplexity", "ratio"):
        assert value(records, "attack_traps", subject="target", score=score) == 1
        assert value(records, "attack_traps", subject="unlearned", score=score) == 0
    assert value(records, "attack_traps", subject="retrained", score="ratio") == 0.5
    assert {record.about["budget"] for record in records} == {"4 traps, 3 times"}
    assert {record.n for record in records} == {8} and {record.direction for record in records} == {"retrained"}


def test_the_ratio_takes_out_how_likely_a_trap_is_by_itself() -> None:
    """A model equal to the reference has 0.5 by ratio, whatever its perplexities say; without one there is no ratio."""
    records = attack(target=tiny(3), retrained=tiny(3))
    assert value(records, "attack_traps", subject="target", score="ratio") == 0.5
    assert value(records, "attack_traps", subject="target", score="perplexity") != 0.5
    assert {record.about["score"] for record in attack(target=tiny(3))} == {"perplexity"}


def test_half_of_the_forget_items_names_the_same_budget() -> None:
    whole = evaluation_on(trapped(), [0, *range(12, 24)], target=tiny(3))
    half = replace(whole, splits={"forget": whole.splits["forget"].halves()[1]})
    (record,) = TrapsAttack()(half).records
    assert record.about["budget"].endswith("3 times")


@pytest.mark.parametrize(
    "judge",
    [
        Memorization(),
        TextMembership(gradient_items=1),
        MuseMetrics(prompt_tokens=4, verbatim_tokens=2, knowledge_tokens=2),
        TofuMetrics(new_tokens=2),
        AnswerSamples(new_tokens=2),
        Prefix(),
        AnswerRelearning(items=[1], steps=[1]),
    ],
    ids=lambda judge: type(judge).__name__,
)
def test_no_other_evaluator_looks_at_them(judge: Any) -> None:
    """All figures, items and answers are those of the forget set without its traps."""
    data = with_traps(tiny_dataset(), "Peru", count=4, words=4, repeats=3)
    holdout = torch.nonzero(data.is_test & ~data.having([TWIN])).flatten()
    found = []
    for forget in ([0, 1, 2, 3, 10], [0, 1, 2, 3, 10, *range(12, 24)]):
        run = evaluation_on(data, forget, target=tiny(0), unlearned=tiny(1))
        found.append(judge(replace(run, splits={**run.splits, "holdout": Split("holdout", data, holdout)})))
    assert found[0].records == found[1].records and found[0].items == found[1].items
    assert found[0].text_tables == found[1].text_tables and (found[0].records or found[0].text_tables)


def test_data_without_traps_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.traps=null"):
        TrapsAttack().check(evaluation_on(facts(), [0]).splits)
    with pytest.raises(RecipeError, match=r"evaluate\.traps=null"):
        TrapsAttack().check(evaluation_on(trapped(), [0]).splits)
