"""Settings of other tools: each tool's own equation against what is converted."""

import pytest
import torch

from attnsteer import NAG
from attnsteer.negative.conventions import CONVENTIONS

CODE = ("official", "official-flux", "diffusers", "comfyui", "comfyui-core", "swarmui", "kijai", "wan2gp")
PAPER = ("paper", "sd-perturbed-attention")


def features():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(7, 24, generator=draw, dtype=torch.float64) for _ in range(2)]


def bounded(positive, extrapolated, tau, alpha, norm=1):
    ratio = extrapolated.norm(p=norm, dim=-1) / positive.norm(p=norm, dim=-1)
    return alpha * extrapolated * (ratio.clamp(max=tau) / ratio)[:, None] + (1 - alpha) * positive


def test_every_tool_is_tested():
    assert sorted(CONVENTIONS) == sorted(CODE + PAPER)


@pytest.mark.parametrize("tool", CODE)
def test_tools_that_write_s(tool):
    positive, negative = features()
    expected = bounded(positive, positive * 4.0 - negative * 3.0, 1.7, 0.4, 2 if tool == "official-flux" else 1)
    torch.testing.assert_close(NAG.from_convention(tool, 4.0, 1.7, 0.4).combine(positive, negative), expected)


@pytest.mark.parametrize("tool", PAPER)
def test_tools_that_write_phi(tool):
    positive, negative = features()
    expected = bounded(positive, positive + 4.0 * (positive - negative), 1.7, 0.4)
    torch.testing.assert_close(NAG.from_convention(tool, 4.0, 1.7, 0.4).combine(positive, negative), expected)


def test_the_author_says_that_2_in_the_paper_is_3_in_the_code():
    assert NAG.from_convention("paper", 2.0).scale == NAG.from_convention("official", 3.0).scale == 3.0


@pytest.mark.parametrize(
    ("tool", "off"), [("paper", 0.0), ("official", 1.0), ("comfyui", 1.0), ("kijai", 0.0), ("swarmui", 0.0)]
)
def test_off_stays_off(tool, off):
    assert NAG.from_convention(tool, off).identity
    assert NAG(1.0, 2.5, 0.25).to_convention(tool if tool != "official-flux" else "official")["scale"] == off


@pytest.mark.parametrize("tool", CONVENTIONS)
def test_there_and_back(tool):
    norm = 2 if tool == "official-flux" else 1
    rule = NAG(4.5, 2.0, 0.3, norm=norm)
    spelled = rule.to_convention(tool)
    assert NAG.from_convention(tool, **spelled) == rule
    assert spelled["scale"] == (3.5 if tool in PAPER else 4.5)


def test_what_is_left_out_is_the_tools_default():
    assert NAG.from_convention("comfyui-core") == NAG(5.0, 1.5, 0.5)
    assert NAG.from_convention("kijai", end=0.5) == NAG(11.0, 2.5, 0.25, end=0.5)
    assert NAG.from_convention("comfyui", 9.0, sigma_end=0.75) == NAG(9.0, 2.5, 0.25, sigma_end=0.75)
    assert NAG.from_convention("wan2gp").scale is None  # the model's preset


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="known are paper, official"):
        NAG.from_convention("automatic1111")
    with pytest.raises(ValueError, match=r"'paper' \(0 = off\), got -0.5"):
        NAG.from_convention("paper", -0.5)
    with pytest.raises(ValueError, match=r"'kijai' \(0 = off\), got 0.5"):
        NAG.from_convention("kijai", 0.5)
    with pytest.raises(ValueError, match="norm of order 1, these settings that of order 2"):
        NAG(5.0, 2.5, 0.25, norm=2).to_convention("paper")
    with pytest.raises(ValueError, match="no values for tau, alpha"):
        NAG(5.0).to_convention("paper")
