"""The relation classifier: where does the first object stand relative to the second, read from attention maps."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attnsteer.steering.classifier_settings import ClassifierSettings
from attnsteer.steering.extractor import ObjectExtractor, RelationHead
from attnsteer.steering.model_card import model_card
from attnsteer.steering.published import read_published
from attnsteer.steering.symmetry import relation_permutation

CONFIG, WEIGHTS, CARD, METRICS = "config.json", "model.safetensors", "README.md", "metrics.json"


class RelationClassifier(nn.Module):  # type: ignore[misc]
    """Logits of the spatial relations from the attention maps of two objects.

    Each object's maps, one token per (layer, head), are condensed to one map by a shared extractor; a head reads the
    two condensed maps. Both know the noise level. Differentiable with respect to the maps.

    `metrics` is what `attnsteer.steering.metrics.evaluate` measured, or None; it is saved and loaded with the weights.

    Source: Learn-to-Steer, arXiv:2509.02295. Conditioning on log-SNR, antisymmetry and standardised maps are ours.
    """

    def __init__(self, settings: ClassifierSettings) -> None:
        super().__init__()
        self.settings = settings
        self.metrics: dict[str, Any] | None = None
        self.object_extractor = ObjectExtractor(settings)
        self.relation_classifier = RelationHead(settings)
        if settings.standardise:
            self.register_buffer("map_mean", torch.zeros(settings.channels))
            self.register_buffer("map_std", torch.ones(settings.channels))
        if settings.antisymmetric:
            swapped = relation_permutation(settings.relations, "swap")
            if -1 in swapped:
                lacking = [r for r, i in zip(settings.relations, swapped, strict=True) if i < 0]
                raise ValueError(
                    f"antisymmetric=True needs the opposite of every relation; there is none of {lacking}"
                )
            self.register_buffer("swapped", torch.tensor(swapped), persistent=False)

    @property
    def relations(self) -> tuple[str, ...]:
        """Relation names in the order of the logits."""
        return self.settings.relations

    def forward(
        self, maps: Float[Tensor, "batch 2 channels height width"], timestep: Float[Tensor, "..."] | float
    ) -> Float[Tensor, "batch relations"]:
        """Classify the relation of the first object to the second.

        Computed in the parameters' dtype (float32), under autocast too.

        Args:
            maps: Attention maps of subject and object, side `settings.map_size`, recorded as `settings.source` says.
            timestep: Noise level of each row, or one for all: a step index in [0, num_timesteps) or, with
                conditioning "log_snr", the log signal-to-noise ratio in nats.

        Raises:
            ValueError: if a shape or a step index does not fit the settings.
        """
        self._check(maps)
        weight = self.object_extractor.query_vector
        timestep = self._timestep_rows(timestep, len(maps)).to(weight.device)
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.to(weight.dtype)
            if self.settings.standardise:
                maps = (maps - self.map_mean[:, None, None]) / self.map_std[:, None, None]
            both = self.object_extractor(maps.flatten(3).flatten(0, 1), timestep.repeat_interleave(2))
            objects = both.unflatten(0, (-1, 2))
            logits = self.relation_classifier(objects, timestep)
            if self.settings.antisymmetric:
                exchanged = self.relation_classifier(objects.flip(1), timestep)
                logits = (logits + exchanged[:, self.swapped]) / 2
        return logits

    def _check(self, maps: Tensor) -> None:
        settings = self.settings
        side = settings.map_size
        if maps.ndim != 5 or maps.shape[1] != 2 or maps.shape[3:] != (side, side):
            raise ValueError(
                f"maps must have shape (batch, 2, channels, {side}, {side}), got {tuple(maps.shape)}; record them "
                f"with size={side} and stack the two objects in dimension 1"
            )
        channels = maps.shape[2]
        if channels > settings.channels or (channels < settings.channels and not settings.fewer_channels):
            layers = "all layers" if settings.source.layers is None else f"layers {list(settings.source.layers)}"
            raise ValueError(
                f"this classifier reads {settings.channels} map channels, got {channels}; record {layers} of "
                f"{settings.source.model_id or 'the model it was trained on'}"
            )

    def _timestep_rows(self, timestep: Tensor | float, batch: int) -> Tensor:
        rows = torch.as_tensor(timestep, dtype=torch.float32).flatten()
        if len(rows) not in (1, batch):
            raise ValueError(f"timestep must be one value or one per row ({batch}), got {len(rows)}")
        if self.settings.conditioning == "index" and rows.device.type == "cpu":
            last = self.settings.num_timesteps - 1
            if not bool(((rows >= 0) & (rows <= last)).all()):
                raise ValueError(f"timestep must be a step index in [0, {last}], got {rows.tolist()}")
        return rows.expand(batch)

    @classmethod
    def from_published(cls, path: str | Path) -> "RelationClassifier":
        """Read a checkpoint of the published Learn-to-Steer release (`flux_schnell.pth`, `sd2.pth`, ...).

        The result computes what the published network computes. It is in evaluation mode.

        Raises:
            ValueError: if the file is not such a checkpoint or cannot be read safely.
        """
        settings, state = read_published(path)
        return cls.from_state(settings, state, path)

    @classmethod
    def from_pretrained(
        cls, folder_or_repo: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> "RelationClassifier":
        """Load a classifier from a folder written by `save_pretrained`, or from the Hub; in evaluation mode.

        Raises:
            FileNotFoundError: if a local folder lacks config.json or model.safetensors.
            ValueError: if the files do not belong together, or one is damaged.
        """
        folder = Path(folder_or_repo)
        if folder.suffix == ".pth":
            raise ValueError(f"{folder} is a published checkpoint: use RelationClassifier.from_published")
        if not folder.is_dir():
            if folder.is_absolute() or str(folder_or_repo).startswith("."):
                raise FileNotFoundError(f"there is no folder {folder}")
            files = [CONFIG, WEIGHTS, METRICS]
            folder = Path(snapshot_download(str(folder_or_repo), revision=revision, token=token, allow_patterns=files))
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no relation classifier: {name} is missing")
        settings = ClassifierSettings.from_json(_read_json(folder / CONFIG))
        try:
            state = load_file(folder / WEIGHTS)
        except SafetensorError as problem:
            raise ValueError(f"{folder / WEIGHTS} is damaged ({problem}): download or train it again") from problem
        classifier = cls.from_state(settings, state, folder)
        classifier.metrics = _read_json(folder / METRICS) if (folder / METRICS).is_file() else None
        return classifier

    @classmethod
    def from_state(
        cls, settings: ClassifierSettings, state: dict[str, Tensor], origin: str | Path = "memory"
    ) -> "RelationClassifier":
        """A classifier with given weights, in evaluation mode; the global random state is left alone.

        Raises:
            ValueError: if the weights do not fit the settings; the message names `origin`.
        """
        with torch.random.fork_rng(devices=[]):
            classifier = cls(settings)
        try:
            classifier.load_state_dict(state)
        except RuntimeError as problem:
            raise ValueError(f"the weights in {origin} do not fit its config: {problem}") from problem
        classifier.eval()
        return classifier

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json, model.safetensors and a model card, and metrics.json if `metrics` is set.

        The folder is made if needed; files of the same names are replaced.

        Args:
            folder: Where to.
            dtype: Floating type of the stored weights; None keeps theirs. They are loaded as float32 all the same.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        if dtype is not None:
            state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(self.settings.to_json(), indent=2) + "\n", "utf-8")
        if self.metrics is not None:
            (folder / METRICS).write_text(json.dumps(self.metrics, indent=2) + "\n", "utf-8")
        (folder / CARD).write_text(model_card(self.settings, self.metrics), "utf-8")

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the classifier with its card and metrics.

        Args:
            repo_id: "user/name"; the repository is made if needed.
            private: Visibility of a new repository.
            token: Hub token; None uses the one of `hf auth login`.

        Returns:
            Address of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder).commit_url)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as problem:
        raise ValueError(f"{path} is damaged ({problem}): download or train it again") from problem
