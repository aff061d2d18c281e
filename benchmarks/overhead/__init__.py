"""What a call costs before it computes: small layers and single steps beside torch.nn."""
