"""Objectives for language models."""
