"""Data sources and the splits drawn from them."""
