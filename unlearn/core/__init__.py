"""The ground floor: errors, randomness, files, records; what everything else may import."""
