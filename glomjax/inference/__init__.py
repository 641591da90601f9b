"""A trained network at work: what it carries besides its weights, and how it predicts."""
