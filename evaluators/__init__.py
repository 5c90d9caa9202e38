"""Evaluators: one file per metric family."""

if __name__ == "evaluators":
    raise ImportError("import unlearn.evaluators, not evaluators")
