"""One training run of a relation classifier: epochs, best weights, checkpoint and resume, one or several processes."""

import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings
from attnsteer.steering.dataset import MapBatch, MapDataset, read_manifest, single, split_by_source
from attnsteer.steering.metrics import Predictions, evaluate
from attnsteer.steering.symmetry import augment
from attnsteer.steering.train_settings import TrainSettings

CHECKPOINT = "checkpoint.pt"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochReport:
    """What happened in one epoch.

    Attributes:
        epoch: Number, from 1.
        train_loss: Mean cross entropy on augmented samples with dropout (first process's share).
        validation_loss: Mean cross entropy on the held-out samples.
        validation_accuracy: Share of the held-out samples classified rightly.
        learning_rate: Used in this epoch.
        best: Whether the validation loss is the lowest so far.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    best: bool


def condition(classifier: RelationClassifier, batch: MapBatch) -> Float[Tensor, " batch"]:
    """The noise level of a batch in the classifier's measure."""
    level = batch.log_snr if classifier.settings.conditioning == "log_snr" else batch.timestep
    return level.float()


def classify(
    classifier: RelationClassifier, dataset: MapDataset, rows: list[int], device: torch.device, batch_size: int
) -> Float[Tensor, "rows relations"]:
    """Logits of some samples, without augmentation, on the CPU."""
    parts = [torch.zeros(0, len(classifier.relations))]
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = dataset.__getitems__(rows[start : start + batch_size])
            parts.append(classifier(batch.maps.to(device), condition(classifier, batch)).float().cpu())
    return torch.cat(parts)


def predictions_of(dataset: MapDataset, rows: list[int], logits: Float[Tensor, "rows relations"]) -> Predictions:
    """Logits together with the truth of the same samples."""
    numbers = {source: number for number, source in enumerate(dict.fromkeys(dataset.source))}
    picture = torch.tensor([numbers[dataset.source[row]] for row in rows])
    return Predictions(logits, dataset.label[rows], dataset.prompt_relation[rows], dataset.timestep[rows], picture)


def split_rows(dataset: MapDataset, settings: TrainSettings) -> tuple[list[int], list[int]]:
    """Rows for training and for validation: by picture, or by folder where folders are held out."""
    if not settings.held_out:
        return split_by_source(dataset.source, settings.validation, settings.seed)
    end = len(dataset) - sum(row["samples"] for folder in settings.held_out for row in _shards(folder))
    train, held = list(range(end)), list(range(end, len(dataset)))
    if not train or not held:
        raise ValueError(f"no samples to train on, or none in the held-out folders {list(settings.held_out)}")
    shared = {dataset.source[row] for row in train} & {dataset.source[row] for row in held}
    if shared:
        logger.warning("%d pictures are in training and in validation, as in published splits", len(shared))
    return train, held


def _shards(folder: str) -> list[Mapping[str, Any]]:
    return list(read_manifest(folder).shards.values())


class TrainingRun:
    """Everything that a run carries from epoch to epoch."""

    def __init__(
        self, dataset: MapDataset, architecture: ClassifierSettings, settings: TrainSettings, output: Path
    ) -> None:
        self.dataset, self.settings, self.output = dataset, settings, output
        # without cpu=True Accelerate ignores torchrun on machines that have no accelerator
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        if self.accelerator.is_main_process:
            _check_writable(output)
            dataset.verify()
        self.train_rows, self.held_rows = split_rows(dataset, settings)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            model = RelationClassifier(architecture)
        if architecture.standardise:
            _measure_scale(model, dataset, self.train_rows, settings)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
            min_lr=settings.min_learning_rate,
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_loss = 0, math.inf

    @property
    def network(self) -> RelationClassifier:
        """The classifier without the wrapper of data-parallel training."""
        network: RelationClassifier = self.accelerator.unwrap_model(self.model)
        return network

    def finished(self) -> bool:
        """Whether all epochs are done or the validation loss has stopped falling."""
        done = len(self.history)
        return done >= self.settings.epochs or done - self.best_epoch >= self.settings.stop_patience

    def epoch(self) -> EpochReport:
        """Train for one epoch, validate, keep the best weights, write the checkpoint."""
        number = len(self.history) + 1
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.settings.seed + 1_000_003 * number + self.accelerator.process_index)
            train_loss = self._train(number)
        measured = self._validate()
        better = measured["loss"] < self.best_loss
        if better:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
            self.best_epoch, self.best_loss = number, measured["loss"]
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.scheduler.step(measured["loss"])
        report = EpochReport(number, train_loss, measured["loss"], measured["accuracy"], rate, better)
        self.history.append(asdict(report))
        self._write_checkpoint()
        return report

    def resume(self) -> None:
        """Continue from the checkpoint in the output folder, if there is one.

        Raises:
            ValueError: if that run had other settings or other maps.
        """
        path = self.output / CHECKPOINT
        if not path.is_file():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["signature"] != self._signature():
            raise ValueError(
                f"{path} belongs to a run with other settings or maps; choose another output folder or delete it"
            )
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history, self.best = state["history"], state["best"]
        self.best_epoch, self.best_loss = state["best_epoch"], state["best_loss"]

    def result(self) -> RelationClassifier:
        """The best classifier, with its metrics, saved in the output folder."""
        self.network.load_state_dict(self.best)
        classifier = RelationClassifier.from_state(self.network.settings, self.best)
        classifier.metrics = {**self._validate(), "best_epoch": self.best_epoch, "history": self.history}
        if self.accelerator.is_main_process:
            classifier.save_pretrained(self.output)
        self.accelerator.wait_for_everyone()
        return classifier

    def _train(self, number: int) -> float:
        generator = torch.Generator().manual_seed(self.settings.seed + 7_919 * number)
        order = [self.train_rows[i] for i in torch.randperm(len(self.train_rows), generator=generator).tolist()]
        generator.manual_seed(self.settings.seed + 7_919 * number + 104_729 * (1 + self.accelerator.process_index))
        relations, device = self.network.relations, self.accelerator.device
        self.model.train()
        total, count = 0.0, 0
        for batch in self._batches(order):
            maps, label = augment(batch.maps, batch.label, relations, self.settings.symmetries, generator)
            loss = F.cross_entropy(self.model(maps.to(device), condition(self.network, batch)), label.to(device))
            self.optimizer.zero_grad()
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            self.optimizer.step()
            total, count = total + loss.item() * len(batch), count + len(batch)
        return total / count

    def _batches(self, rows: list[int]) -> DataLoader[MapBatch]:
        """This process's share of each batch; every process gets the same number of batches."""
        size, rank, world = self.settings.batch_size, self.accelerator.process_index, self.accelerator.num_processes
        whole = [rows[start : start + size] for start in range(0, len(rows), size)]
        mine = [batch[rank::world] for batch in whole if len(batch) >= world]
        if not mine:
            raise ValueError(f"{len(rows)} training samples are too few for {world} processes; collect more maps")
        return DataLoader(self.dataset, batch_sampler=mine, collate_fn=single, num_workers=self.settings.workers)

    def _validate(self) -> dict[str, Any]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        rows = self.held_rows[rank::world]
        network = self.network.eval()
        logits = classify(network, self.dataset, rows, self.accelerator.device, self.settings.batch_size)
        shares = gather_object([(rows, logits)])
        everywhere = [row for share, _ in shares for row in share]
        joined = torch.cat([logits for _, logits in shares])
        return evaluate(predictions_of(self.dataset, everywhere, joined), network.relations)

    def _signature(self) -> str:
        network = self.network.settings.to_json()
        parts = {"classifier": network, "settings": asdict(self.settings), "samples": len(self.dataset)}
        return json.dumps(parts, sort_keys=True)

    def _write_checkpoint(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "signature": self._signature(),
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
        }
        self.output.mkdir(parents=True, exist_ok=True)
        temporary = self.output / f".{CHECKPOINT}.{os.getpid()}.tmp"
        torch.save(state, temporary)
        temporary.replace(self.output / CHECKPOINT)


def _check_writable(folder: Path) -> None:
    """Make the folder; better now than after the first epoch.

    Raises: ValueError if files cannot be made in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise ValueError(f"cannot write into the folder {folder} ({problem}): choose another output") from problem


def _measure_scale(model: RelationClassifier, dataset: MapDataset, rows: list[int], settings: TrainSettings) -> None:
    """Mean and deviation of each map channel, from up to 2,000 training samples, into the classifier's buffers."""
    generator = torch.Generator().manual_seed(settings.seed)
    chosen = [rows[i] for i in torch.randperm(len(rows), generator=generator)[:2000].tolist()]
    maps = dataset.__getitems__(chosen).maps.float().transpose(1, 2).flatten(2).transpose(0, 1).flatten(1)
    model.map_mean.copy_(maps.mean(dim=1))
    deviation = maps.std(dim=1)
    model.map_std.copy_(deviation.clamp_min(max(float(deviation.max()) * 1e-3, 1e-8)))
