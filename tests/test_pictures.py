"""Sheets, heat maps, grids, and settings inside PNG files; no model involved."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnsteer.pictures import (
    Badge,
    Heat,
    Highlight,
    MapTable,
    Panel,
    Sheet,
    colour_ramp,
    enlarge,
    grid,
    overlay,
    read_settings,
    render_map_table,
    render_sheet,
    write_png,
)
from attnsteer.pictures.frame import marked_prompt
from attnsteer.pictures.palette import RELATION, object_colour
from attnsteer.pictures.text import Run, lay_out


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# --- enlarging and grids ---


def test_small_pictures_keep_hard_pixels():
    small = noise(24, 24)
    large = np.asarray(enlarge(small, 240))
    expected = np.asarray(small).repeat(10, axis=0).repeat(10, axis=1)
    assert np.array_equal(large, expected)


@pytest.mark.parametrize(("size", "box"), [((24, 24), (250, None)), ((640, 480), (100, 100)), ((10, 90), (64, 64))])
def test_enlarge_keeps_the_aspect_ratio_and_the_box(size, box):
    result = enlarge(noise(*size), *box)
    assert result.width <= box[0] and (box[1] is None or result.height <= box[1])
    assert result.width == box[0] or result.height == box[1]
    assert abs(result.width / result.height - size[0] / size[1]) < 0.05 * size[0] / size[1] + 1 / result.height


def test_an_empty_box_is_refused():
    with pytest.raises(ValueError, match="at least 1x1"):
        enlarge(noise(4, 4), 0)


def test_grid_places_every_picture():
    colours = ["red", "lime", "blue", "black", "yellow"]
    sheet = grid([Image.new("RGB", (10, 10), colour) for colour in colours], columns=2, gap=2)
    assert sheet.size == (2 + 2 * 12, 2 + 3 * 12)
    expected = [(7, 7), (19, 7), (7, 19), (19, 19), (7, 31)]
    for colour, place in zip(colours, expected, strict=True):
        assert sheet.getpixel(place) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    assert sheet.getpixel((19, 31)) == (255, 255, 255)


@pytest.mark.parametrize(("images", "columns"), [([], None), ([noise(3, 3)], 0)])
def test_impossible_grids_are_refused(images, columns):
    with pytest.raises(ValueError):
        grid(images, columns)


# --- heat maps ---


def test_the_ramp_gets_lighter_all_the_way():
    ramp = colour_ramp(np.linspace(0, 1, 101)).astype(float)
    lightness = ramp @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()
    assert np.array_equal(colour_ramp([-1.0, float("nan"), 2.0]), colour_ramp([0.0, 0.0, 1.0]))


def test_overlay_is_brightest_where_attention_is():
    attention = np.zeros((8, 8))
    attention[1, 6] = 0.02
    result = np.asarray(overlay(Image.new("RGB", (64, 64), "grey"), attention).convert("L"), dtype=float)
    y, x = np.unravel_index(result.argmax(), result.shape)
    assert 8 <= y < 16 and 48 <= x < 56


def test_overlay_of_strength_zero_is_the_grey_picture():
    picture = noise(16, 16)
    plain = np.asarray(overlay(picture, np.eye(4), strength=0.0))
    assert np.array_equal(plain, np.asarray(picture.convert("L").convert("RGB")))


def test_common_limits_show_a_weak_map_as_weak():
    weak, strong = np.full((4, 4), 0.1), np.full((4, 4), 0.9)
    weak[0, 0] = 0.2
    picture = Image.new("RGB", (16, 16), "white")
    shown = [np.asarray(overlay(picture, m, limits=(0.0, 1.0)).convert("L"), float).mean() for m in (weak, strong)]
    assert shown[0] < shown[1]


@pytest.mark.parametrize("bad", [np.zeros(4), np.zeros((0, 4)), np.full((2, 2), np.nan)])
def test_bad_maps_are_refused(bad):
    with pytest.raises(ValueError, match="attention map"):
        overlay(noise(8, 8), bad)


def test_constant_maps_do_not_divide_by_zero():
    assert overlay(noise(8, 8), np.full((2, 2), 0.3)).size == (8, 8)


# --- settings in PNG files ---


def test_settings_come_back_and_the_picture_is_unchanged(tmp_path):
    settings = {"prompt": "un café « à gauche » of 猫", "seed": 7, "scale": 5.5, "extra": {"a": [1, None]}}
    path = write_png(noise(9, 7), tmp_path / "new" / "a.png", settings, parameters="prompt\nSteps: 20")
    assert read_settings(path) == settings
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(noise(9, 7)))
        assert image.text["parameters"] == "prompt\nSteps: 20"
        assert json.loads(image.text["attnsteer"]) == settings


def test_files_are_not_replaced_unasked(tmp_path):
    path = write_png(noise(4, 4), tmp_path / "a.png", {"n": 1})
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_png(noise(4, 4), path, {"n": 2})
    assert read_settings(path) == {"n": 1}
    write_png(noise(4, 4), path, {"n": 2}, overwrite=True)
    assert read_settings(path) == {"n": 2}


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    class Broken(Image.Image):
        def save(self, *_, **__):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_png(Broken(), tmp_path / "a.png", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.txt"])
def test_only_png_can_hold_settings(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.png"):
        write_png(noise(4, 4), tmp_path / name, {})


def test_folders_are_refused_as_targets(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ValueError, match="folder"):
        write_png(noise(4, 4), tmp_path / "a.png", {}, overwrite=True)


def test_unreadable_settings_say_why(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_settings(tmp_path / "none.png")
    noise(4, 4).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="no attnsteer settings"):
        read_settings(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="not a readable PNG"):
        read_settings(tmp_path / "text.png")
    path = write_png(noise(4, 4), tmp_path / "list.png", {})
    cut = path.read_bytes()[:60]
    (tmp_path / "cut.png").write_bytes(cut)
    with pytest.raises(ValueError):
        read_settings(tmp_path / "cut.png")


# --- text ---


def test_prompts_are_split_without_loss():
    prompt = "a red circle to the left of a blue square, studio"
    marks = [Highlight(2, 12, 0), Highlight(13, 27), Highlight(30, 41, 1), Highlight(5, 15, 3), Highlight(40, 999)]
    runs = marked_prompt(prompt, marks)
    assert "".join(run.text for run in runs) == prompt
    assert [(run.text, run.colour) for run in runs if run.marked] == [
        ("red circle", object_colour(0)),
        ("to the left of", RELATION),
        ("blue square", object_colour(1)),
    ]


def test_lines_break_within_the_width():
    words = "a very long prompt about many things " * 4
    narrow = lay_out(words, 20, 200)
    assert narrow.width <= 200 and len(narrow.lines) > 3
    assert " ".join(word.text for line in narrow.lines for word in line) == words.strip()
    cut = lay_out(words, 20, 200, max_lines=2)
    assert len(cut.lines) == 2 and cut.lines[-1][-1].text == "..."


def test_punctuation_stays_with_its_word():
    paragraph = lay_out([Run("a "), Run("dog", marked=True), Run(", a cat")], 20)
    line = paragraph.lines[0]
    assert [word.text for word in line] == ["a", "dog", ",", "a", "cat"]
    assert line[2].x == pytest.approx(line[1].x + line[1].width)


def test_empty_text_has_one_empty_line():
    assert lay_out("", 12).width == 0


# --- sheets ---


def panel(title: str, heats: int = 2, size: tuple[int, int] = (24, 24)) -> Panel:
    maps = tuple(Heat(f"object {i}", np.eye(8) + i, i) for i in range(heats))
    return Panel(title, "scale 5", noise(*size), maps, (Badge("left of", True), Badge("odd")))


@pytest.mark.parametrize("panels", [1, 2, 4])
@pytest.mark.parametrize("heats", [0, 1, 2, 3, 5])
def test_sheets_of_any_shape_show_their_pictures(panels, heats):
    sheet = Sheet("a dog left of a cat", tuple(panel(f"P{i}", heats) for i in range(panels)), negative="blurry")
    picture = render_sheet(sheet, cell=120, scale=1)
    assert picture.width >= panels * 120
    pixels = np.asarray(picture)
    wanted = np.asarray(enlarge(noise(24, 24), 120))
    corner = [(y, x) for y, x in zip(*np.where((pixels == wanted[0, 0]).all(-1)), strict=True)]
    hits = sum(np.array_equal(pixels[y : y + 120, x : x + 120], wanted) for y, x in corner)
    assert hits == panels


def test_scale_doubles_every_length():
    sheet = Sheet("a dog", (panel("Off"), panel("NAG", size=(48, 24))))
    one, two = render_sheet(sheet, scale=1), render_sheet(sheet, scale=2)
    assert two.width == 2 * one.width and abs(two.height - 2 * one.height) < 0.02 * two.height


def test_rows_are_added_below():
    first = (panel("Off"), panel("NAG"))
    one = render_sheet(Sheet("a dog", first), scale=1)
    two = render_sheet(Sheet("a dog", first, rows=(first,)), scale=1)
    assert two.width == one.width and two.height > 1.5 * one.height


@pytest.mark.parametrize(("sheet", "options"), [
    (Sheet("a dog", ()), {}),
    (Sheet("a dog", (panel("Off"),)), {"cell": 10}),
    (Sheet("a dog", (panel("Off"),)), {"scale": 0}),
])  # fmt: skip
def test_impossible_sheets_are_refused(sheet, options):
    with pytest.raises(ValueError):
        render_sheet(sheet, **options)


def test_long_prompts_and_foreign_letters_do_not_break_the_sheet():
    prompt = "ein Hündchen links von einem 猫 " * 30
    picture = render_sheet(Sheet(prompt, (panel("Off"),), footer="x" * 900), scale=1)
    assert picture.width < 800


def test_map_tables_need_one_map_per_cell():
    good = MapTable("a dog", noise(24, 24), ("dog",), ("step 1", "step 2"), ((np.eye(4), np.eye(4)),))
    assert render_map_table(good, cell=60, scale=1).width >= 3 * 60
    bad = MapTable("a dog", noise(24, 24), ("dog", "cat"), ("step 1",), ((np.eye(4),),))
    with pytest.raises(ValueError, match="2 words x 1 columns"):
        render_map_table(bad)


def test_common_scale_is_per_row():
    weak, strong = np.full((4, 4), 0.0), np.full((4, 4), 0.0)
    weak[0, 0], strong[0, 0] = 0.1, 1.0

    def brightness(common: bool) -> float:
        table = MapTable("a", noise(24, 24), ("w",), ("1", "2"), ((weak, strong),), common_scale=common)
        return float(np.asarray(render_map_table(table, cell=60, scale=1), float).mean())

    assert brightness(True) < brightness(False)


def test_sheets_are_the_same_every_time(tmp_path: Path):
    sheet = Sheet("a dog left of a cat", (panel("Off"), panel("NAG")), (Highlight(2, 5, 0),), "blurry", "seed 7")
    first, second = render_sheet(sheet, scale=1), render_sheet(sheet, scale=1)
    assert first.tobytes() == second.tobytes()
