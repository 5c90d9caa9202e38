"""Objectives for normalizing flows."""
