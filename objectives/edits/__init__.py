"""Edits compute the unlearned model in closed form.

They are a kind of their own next to the objectives: they extend ``Edit``, a recipe names them under ``edit`` in place
of ``forget`` and ``retain``, and the registry lists them as such.
"""
