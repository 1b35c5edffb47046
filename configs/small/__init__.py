"""Whole systems at a size that trains on one device, on the embedded data."""
