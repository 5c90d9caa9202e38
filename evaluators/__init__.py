"""Evaluators: one file a metric family."""

if __name__ == "evaluators":
    raise ImportError("import unlearn.evaluators, not evaluators")
