"""Metrics of the likelihood of items."""
