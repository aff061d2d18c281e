"""Programs as machine code of many processors."""
