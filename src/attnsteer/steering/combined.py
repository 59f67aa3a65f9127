"""Several objectives as one: each relation is judged by the first that knows it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attnsteer.steering.objectives import Objective, Verdict, relation_rows


@dataclass(frozen=True)
class Combined:
    """Judges each row by the first objective that knows its relation.

    A spatial classifier and one of attributes steer together so; or a hand-made loss helps out where the classifier
    has no such relation. All read the same maps. Their losses add up as they are.

    Attributes:
        objectives: At least one; those that know a noise level must measure it alike.

    Raises: ValueError if the noise level is measured in two ways.
    """

    objectives: tuple[Objective, ...]

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ValueError("Combined needs at least one objective")
        if len(self._measures()) > 1:
            raise ValueError(
                f"the objectives measure the noise level in {' and '.join(self._measures())}: combine classifiers "
                "that were trained with the same conditioning"
            )

    @property
    def relations(self) -> tuple[str, ...]:
        """What any of them knows."""
        return tuple(dict.fromkeys(name for objective in self.objectives for name in objective.relations))

    @property
    def conditioning(self) -> str:
        """How the noise level is measured."""
        return next(iter(self._measures()), "none")

    @property
    def num_steps(self) -> int | None:
        """Steps that an index counts in; None is any."""
        counts = [getattr(objective, "num_steps", None) for objective in self.objectives]
        return next((count for count in counts if count is not None), None)

    def __call__(
        self,
        maps: Float[Tensor, "batch 2 channels height width"],
        timestep: Float[Tensor, "..."] | float,
        relations: Sequence[str],
    ) -> Verdict:
        """Judge each row; see `Objective`."""
        names = list(relations) * (len(maps) if len(relations) == 1 else 1)
        relation_rows(names, self.relations, len(maps))
        judges = [self._judge_of(name) for name in names]
        loss, probability = maps.new_zeros(len(maps), dtype=torch.float32), maps.new_zeros(len(maps))
        levels = torch.as_tensor(timestep, dtype=torch.float32).flatten()
        for number, objective in enumerate(self.objectives):
            rows = [row for row, judge in enumerate(judges) if judge == number]
            if rows:
                level = levels if len(levels) == 1 else levels[rows]
                verdict = objective(maps[rows], level, [names[row] for row in rows])
                place = torch.tensor(rows, device=maps.device)
                loss = loss.index_put((place,), verdict.loss.to(loss))
                probability = probability.index_put((place,), verdict.probability.to(probability))
        return Verdict(loss, probability)

    def _judge_of(self, relation: str) -> int:
        for number, objective in enumerate(self.objectives):
            try:
                relation_rows([relation], objective.relations, 1)
            except ValueError:
                continue
            return number
        raise ValueError(f"cannot steer towards {relation!r}; these objectives know {', '.join(self.relations)}")

    def _measures(self) -> list[str]:
        own = (getattr(objective, "conditioning", "log_snr") for objective in self.objectives)
        return list(dict.fromkeys(measure for measure in own if measure != "none"))
