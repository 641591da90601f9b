"""What stored pixels go through until a network sees them."""
