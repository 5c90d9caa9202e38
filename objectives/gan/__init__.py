"""Objectives for GANs."""
