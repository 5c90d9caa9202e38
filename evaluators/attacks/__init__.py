"""Attacks: what an unlearned model still reveals, compared with a model that never saw the data."""
