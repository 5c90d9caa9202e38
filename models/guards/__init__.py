"""Guards: what stands around a model when it is used."""
