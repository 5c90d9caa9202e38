"""Frozen networks that judge: classifiers, embedders, face nets, CLIP."""
