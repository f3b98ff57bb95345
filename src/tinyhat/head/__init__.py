"""The tiny hat: losses, the start of the output layer, and the torch predictor."""
