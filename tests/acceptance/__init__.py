"""Long checks with their figures; `make accept` runs them."""
