"""What a diagnosis measures: one quantity a file."""
