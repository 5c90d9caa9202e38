"""Metrics from the likelihood of items."""
