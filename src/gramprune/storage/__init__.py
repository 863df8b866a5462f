"""Files that are only ever whole, and know what they were made from."""
