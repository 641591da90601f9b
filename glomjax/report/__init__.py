"""What a result's folder holds, as pages and tables that are read."""

FOLDER, PAGE, METRICS = "report", "report.html", "metrics.json"
# With the saliency of patches, which takes a compilation; without it; no pages at all.
REPORTS = ("full", "plain", "none")
