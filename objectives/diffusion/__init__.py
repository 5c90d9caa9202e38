"""Objectives for diffusion models."""
