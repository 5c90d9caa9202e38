"""A run from recipe to report: inputs, unlearning, evaluation, run directory."""
