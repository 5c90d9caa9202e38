"""Wrappers: a package per family of models, feature extractors, guards, and the scope of what is trained."""

if __name__ == "models":
    raise ImportError("import unlearn.models, not models")
