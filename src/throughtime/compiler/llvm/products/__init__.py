"""Products in register tiles, and weights packed for them."""
