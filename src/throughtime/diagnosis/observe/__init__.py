"""A model under examination: inputs, outputs and incoming gradients of its recurrent modules."""
