"""Enlarging small pictures without blurring them, and putting several into a grid."""

from collections.abc import Sequence

from PIL import Image

from attnsteer.pictures.palette import PAPER


def enlarge(image: Image.Image, width: int, height: int | None = None) -> Image.Image:
    """Fit a picture into a box; a small one keeps hard pixels, a large one is resampled smoothly.

    A picture that is to grow by a factor of two or more is first enlarged by the largest whole factor with nearest
    neighbour, so that a 32 px picture is seen as it is; only the remaining fraction is interpolated.

    Args:
        image: Any mode; converted to RGB.
        width: Box width in pixels, >= 1.
        height: Box height in pixels; by default whatever the aspect ratio gives.

    Returns: RGB picture that touches the box on at least one axis and exceeds it on none.

    Raises: ValueError if the box is empty.
    """
    if width < 1 or (height is not None and height < 1):
        raise ValueError(f"the box must be at least 1x1 pixel, got {width}x{height}")
    picture = image.convert("RGB")
    factor = width / picture.width
    if height is not None:
        factor = min(factor, height / picture.height)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    if factor >= 2:
        whole = int(factor + 1e-9)
        picture = picture.resize((picture.width * whole, picture.height * whole), Image.Resampling.NEAREST)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def grid(images: Sequence[Image.Image], columns: int | None = None, *, gap: int = 8, cell: int = 0) -> Image.Image:
    """Put pictures into rows of equal cells on white paper.

    Args:
        images: At least one picture; sizes may differ, each is centred in its cell.
        columns: Pictures per row; by default the smallest square that holds all.
        gap: Pixels between cells and around the grid.
        cell: Enlarge every picture to a cell of this many pixels on its longer side; 0 keeps the sizes.

    Raises: ValueError if there is no picture, or if `columns` is less than one.
    """
    if not images:
        raise ValueError("a grid needs at least one picture")
    if columns is None:
        columns = next(n for n in range(1, len(images) + 1) if n * n >= len(images))
    if columns < 1:
        raise ValueError(f"columns must be >= 1, got {columns}")
    tiles = [enlarge(image, cell, cell) if cell else image.convert("RGB") for image in images]
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    paper = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + gap)), PAPER)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = gap + column * (width + gap), gap + row * (height + gap)
        paper.paste(tile, (x + (width - tile.width) // 2, y + (height - tile.height) // 2))
    return paper
