"""Vector maths: torch's pointwise operations with stated error bounds."""
