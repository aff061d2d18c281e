"""Time of one step of a stream beside torch.nn and onnxruntime: `run.py` says how."""
