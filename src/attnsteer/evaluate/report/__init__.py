"""Reports: figures from finished runs, as one HTML page, Markdown, CSV and LaTeX. No torch."""

from attnsteer.evaluate.report.figures import RunFigures, read_run
from attnsteer.evaluate.report.write import write_report

__all__ = ["RunFigures", "read_run", "write_report"]
