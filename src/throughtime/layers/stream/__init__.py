"""One time step at a time with carried state, for a layer or a whole model."""
