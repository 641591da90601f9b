"""What a result's folder holds, as pages and tables that are read."""

# With the saliency of patches, which takes a compilation; without it; no pages at all.
REPORTS = ("full", "plain", "none")
