"""What happens to what users bring: each module has the cases of one area."""
