"""Layers of stock models with fewer passes over memory, on a GPU."""
