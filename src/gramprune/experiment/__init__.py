"""What the user asked for, what it takes, and how far it is."""
