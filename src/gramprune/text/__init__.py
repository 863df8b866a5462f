"""Where texts come from, and what is cut out of them."""
