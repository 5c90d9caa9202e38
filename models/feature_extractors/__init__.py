"""Frozen networks that look at images: classifiers, embedders, face nets, CLIP."""
