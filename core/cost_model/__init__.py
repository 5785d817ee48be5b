"""What a training run will cost, predicted from counts, measured rows and device constants."""
