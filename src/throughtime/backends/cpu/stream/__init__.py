"""One time step of a whole stack: one call of machine code."""
