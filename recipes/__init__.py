"""Recipes: YAML that can be read from top to bottom."""

if __name__ == "recipes":
    raise ImportError("import unlearn.recipes, not recipes")
