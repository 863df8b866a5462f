"""What a model is measured by, and what is written of it."""
