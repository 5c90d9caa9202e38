"""Bases of the attacks."""
