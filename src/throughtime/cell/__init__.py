"""What a cell is: its contract, its layout, and the registry of living cells."""
