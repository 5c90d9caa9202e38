"""MUSE's criteria for models of images; those of language models are in ``evaluators/text``."""
