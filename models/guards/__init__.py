"""Guards: inference-time changes around a model."""
