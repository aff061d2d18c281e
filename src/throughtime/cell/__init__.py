"""What a cell is: its contract, its layout, and where a living one is found."""
