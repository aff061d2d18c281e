"""RNN, LSTM and GRU as torch.nn has them, and the way from torch.nn and back."""
