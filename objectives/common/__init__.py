"""Objectives for every family."""
