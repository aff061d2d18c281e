"""Steps written at the sizes of a layer: tensors of more than one width, as heads."""
