"""Models as ONNX, written by hand: whole sequences, any number of steps and rows."""
