"""Weights of other libraries' files: Keras, Flax, safetensors. Nothing in a file is executed."""
