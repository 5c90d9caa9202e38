"""Write the generated parts of the documents: ``python -m unlearn.experiment.make_docs``, for maintainers."""

import re
from pathlib import Path

from unlearn.config import registry
from unlearn.evaluators.metrics_page import markdown_table

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"
TABLE = re.compile(r"(?<=\n\n)\| metric \| formula .*?\n(?=\n)", re.DOTALL)


def with_table(page: str) -> str:
    """Return docs/metrics.md with the table of metrics that the evaluators declare."""
    evaluators = {name: registry.resolve("evaluator", name) for name in registry.names("evaluator")}
    return TABLE.sub(lambda _: markdown_table(evaluators), page)


if __name__ == "__main__":
    METRICS.write_text(with_table(METRICS.read_text(encoding="utf-8")), encoding="utf-8")
