"""A checkpoint as a sequence of blocks, and back."""
