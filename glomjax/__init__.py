"""Kidney-histology patch classifiers in JAX: does this patch show a glomerulus?"""
