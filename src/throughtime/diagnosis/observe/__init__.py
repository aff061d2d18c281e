"""A model under examination: what its recurrent modules are given, give, and are sent back."""
