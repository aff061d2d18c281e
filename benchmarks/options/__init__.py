"""What options cost: ragged batches, resets, masks, layer norm, records, checkpoints, one row."""
