"""Pictures for people: comparison sheets, attention heat maps, settings inside PNG files.

Needs Pillow and numpy only.
"""

from attnsteer.pictures.encode import as_image, encoded
from attnsteer.pictures.frame import Highlight
from attnsteer.pictures.grid import enlarge, grid
from attnsteer.pictures.heatmap import colour_ramp, overlay
from attnsteer.pictures.metadata import read_settings, write_png
from attnsteer.pictures.sheet import Badge, Heat, Panel, Sheet, render_sheet
from attnsteer.pictures.table import MapTable, render_map_table

__all__ = [
    "Badge",
    "Heat",
    "Highlight",
    "MapTable",
    "Panel",
    "Sheet",
    "as_image",
    "colour_ramp",
    "encoded",
    "enlarge",
    "grid",
    "overlay",
    "read_settings",
    "render_map_table",
    "render_sheet",
    "write_png",
]
