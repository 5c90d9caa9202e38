"""The verdict is computed from the records, and says so when a goal was missed."""

import math
from dataclasses import replace

import pytest

from unlearn.config.schema import Gate
from unlearn.core.records import Record
from unlearn.report.read_run import read_run
from unlearn.report.verdict import check_gates, judge, method_goals


def record(metric: str, subject: str, value: float, split: str = "forget", **more) -> Record:
    return Record(evaluator="e", metric=metric, subject=subject, value=value, split=split, **more)


GATED = [
    record("bits", "target", 2.0, "retain"),
    record("bits", "unlearned", 2.5, "retain"),
    record("share", "unlearned", 0.3, about={"category": "3"}),
    record("share", "unlearned", 0.1, about={"category": "5"}),
    record("odd", "unlearned", math.nan),
]


@pytest.mark.parametrize(
    ("gate", "met"),
    [
        (Gate("bits", max=2.5), True),
        (Gate("bits", max=2.4999), False),
        (Gate("bits", min=2.5, max=2.5), True),
        (Gate("bits", min=2.6), False),
        (Gate("bits", "retain", max=0.5, minus="target"), True),
        (Gate("bits", "retain", max=0.4, minus="target"), False),
        (Gate("bits", "retain", max=9.0, minus="retrained"), None),
        (Gate("bits", "test", max=9.0), None),
        (Gate("bits", subject="target", max=2.1), True),
        (Gate("share", about={"category": "5"}, max=0.2), True),
        (Gate("share", about={"category": "3"}, max=0.2), False),
        (Gate("odd", max=9.0), False),
        (Gate("odd", min=-9.0), False),
    ],
)
def test_gates(gate, met):
    assert [goal.met for goal in check_gates({"name": gate}, GATED)] == [met]


def test_gate_names_the_entry_it_means():
    records = [record("bits", "unlearned", 2.0), replace(record("bits", "unlearned", 9.0), evaluator="second")]
    first, second, lost = check_gates(
        {name: Gate("bits", max=3.0, evaluator=name) for name in ("e", "second", "third")}, records
    )
    assert (first.met, second.met, lost.met) == (True, False, None)
    assert second.text == "bits on the forget data (second): at most 3.000"


def test_gate_reads_as_a_sentence():
    goal = check_gates({"kept": Gate("bits", "retain", max=0.4, minus="target")}, GATED)[0]
    assert (goal.name, goal.text, goal.found) == (
        "kept",
        "bits on the retain data, less the target model’s: at most 0.400",
        "0.500",
    )


@pytest.mark.parametrize(("value", "met", "found"), [(1.0, True, "yes"), (0.0, False, "no"), (2 / 3, False, "in part")])
def test_stop_rule_of_the_method_is_a_goal(value, met, found):
    goals = method_goals([record("reached", "unlearned", value, about={"score": "taming"})])
    assert [(goal.text, goal.met, goal.found) for goal in goals] == [("goal of taming reached", met, found)]


def share(values: dict[str, float], half: float = 0.01, direction: str = "lower") -> list[Record]:
    return [
        record(
            "sample_share",
            subject,
            value,
            about={"category": "3"},
            ci95=(value - half, value + half),
            direction=direction,
            unit="share",
        )
        for subject, value in values.items()
    ]


DOUBT = " The two 95 % intervals overlap, so this may be chance."


@pytest.mark.parametrize(
    ("values", "rest"),
    [
        (
            {"target": 0.098, "unlearned": 0.009, "retrained": 0.004},
            "fell from 9.8 % to 0.9 % (retrained without it: 0.4 %).",
        ),
        ({"target": 0.098, "unlearned": 0.009}, "fell from 9.8 % to 0.9 %."),
        ({"target": 0.09, "unlearned": 0.2}, "rose from 9.0 % to 20.0 %. That is the wrong way."),
        ({"target": 0.09, "unlearned": 0.08}, f"fell from 9.0 % to 8.0 %.{DOUBT}"),
        ({"target": 0.09, "unlearned": 0.09}, "stayed at 9.0 %."),
        ({"unlearned": 0.009}, "is 0.9 %."),
        ({"target": math.nan, "unlearned": 0.009}, "is 0.9 %."),
    ],
)
def test_first_sentence(make_run, values, rest):
    found = judge(read_run(make_run(records=share(values), recipe_gate={}))).sentences[0]
    assert found == f"Share of ‘3’ in the samples {rest}"


@pytest.mark.parametrize("records", [[], share({"target": 0.09, "unlearned": math.nan}), share({"target": 0.09})])
def test_no_figure_no_claim(make_run, records):
    assert (
        judge(read_run(make_run(records=records, recipe_gate={}))).sentences[0]
        == "No figure on the forget data was recorded."
    )


def test_headline_follows_the_gate(make_run):
    """Without a gate the share leads; a gate on another forget figure takes the lead."""
    other = [record("leak", name, value, direction="lower") for name, value in (("target", 3.0), ("unlearned", 1.0))]
    records = [*other, *share({"target": 0.1, "unlearned": 0.0})]
    free = judge(read_run(make_run("free", records=records, recipe_gate={})))
    bound = judge(read_run(make_run("bound", records=records, recipe_gate={"leak": {"metric": "leak", "max": 2.0}})))
    assert free.sentences[0].startswith("Share of ‘3’") and bound.sentences[0].startswith(
        "Leak on the forget data fell"
    )
    assert (free.level, bound.level) == ("open", "met")


def test_cost_and_utility_are_named(make_run):
    sentences = judge(read_run(make_run())).sentences
    assert (
        sentences[1]
        == "Bits per dimension on the retain data rose from 2.001 to 2.027 bits/dim (retrained without it: 1.994)."
    )
    assert sentences[2] == "Unlearning took 41 s, 42.0 % of the target’s training time."
