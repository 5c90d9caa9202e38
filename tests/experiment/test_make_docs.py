"""The generated parts of the documents are current."""

from unlearn.experiment.make_docs import METRICS, TABLE, with_table


def test_the_table_of_metrics_is_that_of_the_declarations() -> None:
    """To write it anew, type: python -m unlearn.experiment.make_docs."""
    page = METRICS.read_text(encoding="utf-8")
    assert len(TABLE.findall(page)) == 1
    assert with_table(page) == page
