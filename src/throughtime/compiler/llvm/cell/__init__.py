"""A cell's own functions: its pointwise part, forward and backward."""
