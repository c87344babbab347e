"""Self-contained HTML reports of evaluations and prediction runs: one file that opens offline."""

from .contents import Report, ReportRow
from .pictures import Pictures, draw_pictures
from .predictions import report_from_predictions
from .render import check_report_path, write_report

__all__ = ["Pictures", "Report", "ReportRow", "check_report_path", "draw_pictures", "report_from_predictions", "write_report"]
