"""The numbers: Gram matrices, patterns, masks, refinements, updates. Knows tensors, and nothing of models or files."""
