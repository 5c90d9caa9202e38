"""Backend wrappers: one file a family, plus the scope of what may move."""

if __name__ == "models":
    raise ImportError("import unlearn.models, not models")
