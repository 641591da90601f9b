"""What a result's folder holds, as pages and tables that are read.

Examples:
  The page of a run, an evaluation or a cross-validation is made again from what its folder holds:

  >>> from glomjax.report import make_report
  >>> make_report("runs/davit").name
  'report.html'
"""

import lazy_loader

FOLDER, PAGE, METRICS = "report", "report.html", "metrics.json"
# With the saliency of patches, which takes a compilation; without it; no pages at all.
REPORTS = ("full", "plain", "none")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
