from .page import make_report as make_report
from .page import report_files as report_files
from .review import Review as Review
from .review import write_review as write_review

FOLDER: str
PAGE: str
METRICS: str
REPORTS: tuple[str, ...]
