"""Attacks: what can still be got out of an unlearned model, and out of one that never saw the data."""
