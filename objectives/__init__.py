"""Forget and retain objectives, one file per published method, and the combination of their gradients (``surgery``).

``edits`` holds closed-form methods, which are no objectives: they extend ``Edit`` and take no gradient steps.
"""

if __name__ == "objectives":
    raise ImportError("import unlearn.objectives, not objectives")
