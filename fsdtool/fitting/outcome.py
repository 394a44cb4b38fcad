"""What a run of `summarize` tells people: its report, and remarks on what it found."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from fsdtool.network.traced import FULL, Network
from fsdtool.statistics.component_laws import Statistics
from fsdtool.statistics.distance_error import DistanceCalibration
from fsdtool.summary.catalogue import InfluenceCalibration

log = logging.getLogger("fsdtool")

MEGABYTE = 10**6
BIG_FILE = 20 * MEGABYTE  # from which on the weights' part is said


@dataclass(frozen=True)
class Report:
    """What `summarize` did, for people."""

    output: Path
    examples: int
    network: str
    layers: int
    components: str
    statistics_bytes: int
    curvature: str
    record_bytes: int
    influence: InfluenceCalibration | None
    distance: DistanceCalibration
    file_bytes: int
    seconds: float
    fit: str

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each line."""
        return [
            ("examples", f"{self.examples:,}"),
            ("fit", self.fit),
            ("network", self.network),
            ("activation layers", str(self.layers)),
            ("components", self.components),
            ("statistics", f"{self.statistics_bytes:,} bytes"),
            ("curvature", self.curvature),
            ("gradient records", f"{self.record_bytes:,} bytes per example" if self.record_bytes else "none"),
            *([] if self.influence is None else [("influence", f"values from records: {self.influence}")]),
            ("distance", str(self.distance)),
            ("file", f"{self.file_bytes:,} bytes"),
            ("seconds", f"{self.seconds:.1f}"),
        ]


def coverage(network: Network) -> str:
    """How much of the model the network covers."""
    if network.mode == FULL:
        return f"traced in full ({len(network.graph.steps)} steps)"
    return f"last layer '{network.head}' only"


def say_weights(network: Network, size: int) -> None:
    """Tell what the weights cost where they are most of a big file of `size` bytes."""
    weights = sum(value.numel() * value.element_size() for value in network.parameters.values())
    if size >= BIG_FILE and weights > size / 2:
        log.info(
            f"the weights take {weights / MEGABYTE:,.0f} of the file's {size / MEGABYTE:,.0f} MB; "
            "`keep_weights=False` leaves them out: find-mislabeled does not need them, fsd and influence do"
        )


def say_small_components(statistics: Statistics) -> None:
    """Warn of classes with a single example."""
    if statistics.kind != "class":
        return
    single = [name for name, n in zip(statistics.names, statistics.count.tolist(), strict=True) if n == 1]
    if single:
        count = "1 class has" if len(single) == 1 else f"{len(single)} classes have"
        log.warning(
            f"{count} a single example ({', '.join(single[:5])}): "
            "the statistics are that example's, and its label cannot be judged"
        )
