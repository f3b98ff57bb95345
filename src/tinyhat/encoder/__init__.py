"""The giant robot: loading stock encoders, running them packed where that is proven, padded otherwise."""
