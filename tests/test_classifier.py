import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnsteer.steering import classifier as classifier_module
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize, MapSource

FOUR = ("to the left of", "to the right of", "above", "below")
SMALL = EncoderSize(width=8, layers=2, heads=2, feedforward=12)


def settings(**changes) -> ClassifierSettings:
    base = ClassifierSettings(
        relations=FOUR, channels=5, map_size=4, extractor=SMALL, head=SMALL, head_widths=(10, 6),
        head_timestep_width=4, source=MapSource("user/model", layers=("a", "b"), timesteps=(1, 3)),
    )  # fmt: skip
    return replace(base, **changes)


def build(**changes) -> RelationClassifier:
    torch.manual_seed(0)
    return RelationClassifier(settings(**changes)).eval()


@pytest.mark.parametrize("conditioning", ["index", "log_snr"])
def test_the_noise_level_matters_and_gradient_changes_nothing(conditioning: str):
    classifier, maps = build(conditioning=conditioning), torch.rand(3, 2, 5, 4, 4)
    with torch.no_grad():
        plain = classifier(maps, 1.0)
    assert plain.shape == (3, 4)
    assert torch.equal(plain, classifier(maps.clone().requires_grad_(True), torch.ones(3, 1)))
    assert (plain - classifier(maps, 3.0)).abs().max() > 1e-4
    rows = classifier(maps, torch.tensor([1.0, 3.0, 1.0]))
    torch.testing.assert_close(rows[[0, 2]], plain[[0, 2]])
    torch.testing.assert_close(rows[1], classifier(maps, 3.0)[1])


def test_without_a_noise_level_it_does_not_matter():
    classifier, maps = build(placement="none", head_timestep_width=0), torch.rand(3, 2, 5, 4, 4)
    assert torch.equal(classifier(maps, -7.0), classifier(maps, 3.0))


def test_log_snr_is_smooth_and_takes_infinite_ends():
    classifier, maps = build(), torch.rand(1, 2, 5, 4, 4)
    assert torch.equal(classifier(maps, -torch.inf), classifier(maps, -20.0))
    assert torch.equal(classifier(maps, torch.inf), classifier(maps, 20.0))
    assert (classifier(maps, 1.0) - classifier(maps, 1.001)).abs().max() < 1e-3


@pytest.mark.parametrize("relations", [FOUR, ("near", *FOUR, "above and to the left of", "below and to the right of")])
def test_antisymmetry_is_exact(relations: tuple[str, ...]):
    opposite = {
        "to the left of": "to the right of", "above": "below", "near": "near",
        "above and to the left of": "below and to the right of",
    }  # fmt: skip
    opposite |= {b: a for a, b in opposite.items()}
    classifier, maps = build(relations=relations, antisymmetric=True), torch.rand(3, 2, 5, 4, 4)
    there, back = classifier(maps, 0.0), classifier(maps.flip(1), 0.0)
    for index, relation in enumerate(relations):
        assert torch.equal(there[:, index], back[:, relations.index(opposite[relation])])
    plain = build(relations=relations)
    assert (plain(maps, 0.0) - plain(maps.flip(1), 0.0)).abs().max() > 1e-4


def test_antisymmetry_needs_opposites():
    with pytest.raises(ValueError, match="'above'"):
        build(relations=("above", "near"), antisymmetric=True)


@pytest.mark.parametrize("antisymmetric", [False, True])
def test_gradient_against_finite_differences(antisymmetric: bool):
    classifier = build(antisymmetric=antisymmetric, standardise=True).double()
    classifier.map_std.uniform_(0.5, 2.0)
    maps = torch.rand(1, 2, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: classifier(m, 0.3), (maps,), eps=1e-6, atol=1e-6)


def test_standardises_per_channel():
    classifier, plain = build(standardise=True), build()
    classifier.map_mean.uniform_(-1, 1)
    classifier.map_std.uniform_(0.5, 2)
    plain.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith("map_")})
    maps = torch.rand(2, 2, 5, 4, 4)
    scaled = torch.stack([(maps[:, :, c] - classifier.map_mean[c]) / classifier.map_std[c] for c in range(5)], dim=2)
    torch.testing.assert_close(classifier(maps, 0.0), plain(scaled, 0.0))


def test_half_precision_maps_and_autocast_are_computed_in_float32():
    classifier, maps = build(), torch.rand(2, 2, 5, 4, 4).half()
    expected = classifier(maps.float(), 0.0)
    assert torch.equal(classifier(maps, 0.0), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(classifier(maps, 0.0), expected)


def test_dropout_only_in_training():
    classifier, maps = build(), torch.rand(2, 2, 5, 4, 4)
    assert torch.equal(classifier(maps, 0.0), classifier(maps, 0.0))
    classifier.train()
    assert not torch.equal(classifier(maps, 0.0), classifier(maps, 0.0))


def test_errors_name_the_remedy():
    classifier = build(conditioning="index")
    with pytest.raises(ValueError, match="size=4 and stack the two objects"):
        classifier(torch.rand(1, 5, 4, 4), 1)
    with pytest.raises(ValueError, match=r"reads 5 map channels, got 6; record layers \['a', 'b'\] of user/model"):
        classifier(torch.rand(1, 2, 6, 4, 4), 1)
    with pytest.raises(ValueError, match="got 4"):
        classifier(torch.rand(1, 2, 4, 4, 4), 1)
    with pytest.raises(ValueError, match=r"step index in \[0, 49\]"):
        classifier(torch.rand(1, 2, 5, 4, 4), 50)
    with pytest.raises(ValueError, match="one per row"):
        classifier(torch.rand(1, 2, 5, 4, 4), torch.zeros(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relations": ("above", "above")}, "distinct"),
        ({"dropout": 1.0}, "published value is 0.3"),
        ({"pooling_heads": 3}, "multiple of pooling_heads"),
        ({"placement": "mid"}, "placement must be one of"),
        ({"conditioning": "sigma"}, "conditioning must be one of"),
        ({"channels": 0}, "channels must be >= 1"),
    ],
)
def test_settings_are_checked(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_round_trip(tmp_path: Path):
    classifier = build(antisymmetric=True, standardise=True)
    classifier.map_mean.uniform_()
    classifier.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = RelationClassifier.from_pretrained(tmp_path)
    assert again.settings == classifier.settings and not again.training and again.metrics is None
    maps = torch.rand(2, 2, 5, 4, 4)
    assert torch.equal(again(maps, 0.5), classifier(maps, 0.5))
    card = (tmp_path / "README.md").read_text()
    assert "base_model: user/model" in card and "Intended use" in card and "Not measured here" in card


def test_loading_is_strict(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        RelationClassifier.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        RelationClassifier.from_pretrained(tmp_path / "absent")
    with pytest.raises(ValueError, match="from_published"):
        RelationClassifier.from_pretrained("flux_dev.pth")
    build().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "novelty": 1}))
    with pytest.raises(ValueError, match="newer version"):
        RelationClassifier.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "channels": 6}))
    with pytest.raises(ValueError, match="do not fit"):
        RelationClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.json"])
def test_damaged_files_are_named(tmp_path: Path, name: str):
    classifier = build()
    classifier.metrics = None
    classifier.save_pretrained(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    RelationClassifier.from_pretrained(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        RelationClassifier.from_pretrained(tmp_path)


def test_push_uploads_all_files(monkeypatch: pytest.MonkeyPatch):
    uploaded = {}

    class Hub:
        def __init__(self, token: str | None):
            uploaded["token"] = token

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id: str, folder_path: str):
            uploaded["files"] = sorted(p.name for p in Path(folder_path).iterdir())
            return type("Commit", (), {"commit_url": f"https://hub/{repo_id}"})

    monkeypatch.setattr(classifier_module, "HfApi", Hub)
    assert build().push_to_hub("user/relations", token="t") == "https://hub/user/relations"
    assert uploaded == {"token": "t", "files": ["README.md", "config.json", "model.safetensors"]}
