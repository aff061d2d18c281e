"""Layers: a cell over whole sequences, with the interface of torch.nn where there is one."""
