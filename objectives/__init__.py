"""Forget and retain objectives: one file a published method, and the combination of their gradients."""

if __name__ == "objectives":
    raise ImportError("import unlearn.objectives, not objectives")
