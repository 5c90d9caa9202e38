"""Recipes: from a name or file to checked and built components."""
