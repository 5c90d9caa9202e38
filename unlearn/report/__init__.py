"""What a person looks at after a run: the report, the model card, the table in the terminal."""

from unlearn.report.card import write_model_card
from unlearn.report.page import build_report
from unlearn.report.table import metrics_table

__all__ = ["build_report", "metrics_table", "write_model_card"]
