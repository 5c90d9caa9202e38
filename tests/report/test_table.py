"""Rows, words and the table in the terminal."""

import math
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from unlearn.core.records import Record
from unlearn.report.formatting import duration, figure, interval, listed, number
from unlearn.report.labels import forgotten, metric_label
from unlearn.report.table import cell, difference_text, measurements, metrics_table


def printed(records: list[Record], width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(metrics_table(records))
    return console.file.getvalue()


def record(metric: str, subject: str, value: float, **more) -> Record:
    return Record(evaluator="e", metric=metric, subject=subject, value=value, **more)


def test_differences_stand_with_the_figures_that_they_belong_to():
    """They get no rows of their own; a metric that only ends like one does."""
    found = measurements(
        [
            record("a", "unlearned", 0.2, unit="share", split="forget"),
            record("a_difference", "unlearned", -0.05, unit="share", split="forget", ci95=(-0.1, 0.01)),
            record("mean_difference", "unlearned", 1),
            record("a_difference", "unlearned", 3, split="retain"),
        ]
    )
    assert [(row.metric, row.split) for row in found] == [
        ("a", "forget"), ("a_difference", "retain"), ("mean_difference", "")
    ]  # fmt: skip
    assert difference_text(found[0], "unlearned") == "−5.0 % [−10.0 to 1.0 %]"
    assert cell(found[0], "unlearned")["difference"] == "−5.0 % [−10.0 to 1.0 %]"
    assert difference_text(found[0], "target") == difference_text(found[2], "unlearned") == ""


def test_subjects_stand_side_by_side():
    found = measurements(
        [
            record("a", "retrained", 1),
            record("b", "target", 2),
            record("a", "target", 3),
            record("a", "target", 4, split="test"),
        ]
    )
    assert [(row.metric, row.split, {s: c.value for s, c in row.cells.items()}) for row in found] == [
        ("a", "", {"retrained": 1, "target": 3}),
        ("a", "test", {"target": 4}),
        ("b", "", {"target": 2}),
    ]


def test_two_entries_of_one_evaluator_are_two_figures():
    """Both are named by their key; a metric that one entry alone measures is not."""
    found = [record("bits", "unlearned", 1.0), record("bits", "unlearned", 2.0), record("share", "unlearned", 3.0)]
    found[1] = replace(found[1], evaluator="more_draws")
    assert [(row.label, row.value("unlearned")) for row in measurements(found)] == [
        ("bits (e)", 1.0),
        ("bits (more_draws)", 2.0),
        ("share", 3.0),
    ]
    assert "bits (more_draws)" in printed(found)


@pytest.mark.parametrize(
    ("direction", "gap"), [("lower", -0.2), ("higher", 0.2), ("zero", 0.2), ("retrained", 0.5), ("none", math.nan)]
)
def test_gap_to_the_best_value(direction, gap):
    row = measurements([record("a", "unlearned", -0.2, direction=direction), record("a", "retrained", 0.3)])[0]
    assert row.gap() == pytest.approx(gap, nan_ok=True)


def test_table_fits_a_terminal_and_shows_the_figures():
    records = [
        record(
            "share",
            subject,
            value,
            split="forget" if digit == "3" else "retain",
            about={"category": digit},
            unit="share",
            direction="lower",
        )
        for digit in "0123456789"
        for subject, value in (("target", 0.1), ("unlearned", 0.009), ("retrained", 0.004))
    ]
    text = printed([*records, record("[bold]odd", "unlearned", math.nan), record("accuracy", "target", 0.99)])
    assert max(map(len, text.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "share forget · 3 10.0 % 0.9 % 0.4 % ↓" in lines and "+ 9 more" in lines
    assert "[bold]odd – undefined –" in lines  # no markup, no number where there is none
    assert "accuracy" not in text  # says nothing about the unlearned model


def test_table_of_nothing():
    assert "metric" in printed([])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (300.0, "300"),
        (2.0, "2.000"),
        (-1.25, "−1.250"),
        (123.456, "123.5"),
        (12345.6, "12,346"),
        (3.33e-6, "3.33e−6"),
        (1.5e9, "1.5e9"),
        (math.nan, "undefined"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "metric", "text"),
    [
        (0.098, "share", "", "9.8 %"),
        (0.0004, "share", "", "0.04 %"),
        (0.0, "share", "", "0.0 %"),
        (0.42, "s", "", "0.42 s"),
        (125.0, "s", "", "2 min 5 s"),
        (6.1e8, "bytes", "", "610 MB"),
        (2.0271, "bits/dim", "", "2.027"),
        (1.0, "", "reached", "yes"),
        (0.0, "", "reached", "no"),
        (0.5, "", "reached", "0.500"),
    ],
)
def test_figures(value, unit, metric, text):
    assert figure(value, unit, metric) == text


def test_intervals():
    assert interval(record("a", "x", 0.5, ci95=(0.4, 0.61), unit="share")) == "40.0 to 61.0 %"
    assert interval(record("a", "x", 0.5)) == "" == interval(record("a", "x", 0.5, ci95=(math.nan, 1.0)))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "0.1 s"), (59.4, "59 s"), (60, "1 min"), (3599.6, "1 h"), (7260, "2 h 1 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_names_of_metrics():
    """As the evaluator declares them, else as they are written."""
    assert (
        metric_label(record("frechet_net", "target", 1.0, label="Fréchet distance (net)")) == "Fréchet distance (net)"
    )
    assert metric_label(record("truth_ratio", "target", 1.0)) == "truth ratio"


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        ({"label": ["3"], "ids": None, "without": []}, "items labelled ‘3’"),
        ({"label": ["3", "5", "7"], "count": 1}, "items labelled ‘3’, ‘5’ or ‘7’, 1 item in all"),
        ({"all_of": ["male", "blond"]}, "items that are ‘male’ and ‘blond’"),
        ({"without": ["even"]}, "items that are not ‘even’"),
        ({"ids": [4], "count": 2}, "1 item by id (4), 2 items in all"),
        ({"likelihood_quantile": [0.41, 0.59]}, "with a likelihood quantile from 0.41 to 0.59"),
        ({"concept": "Van Gogh", "prompt_file": "a.txt"}, "concept: Van Gogh, prompt file: a.txt"),
        ({}, ""),
    ],
)
def test_what_is_forgotten_in_words(selection, text):
    assert forgotten(selection) == text


def test_long_lists_are_cut():
    assert listed(list("abcd"), most=2) == "‘a’, ‘b’ and 2 more"
