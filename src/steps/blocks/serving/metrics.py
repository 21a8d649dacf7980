"""What a service counts, in a registry of its own (prometheus_client)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
UNITS_IN_A_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

disable_created_metrics()  # else each counter has a twin, the time of its creation


def total(counter: Counter, **labels: str) -> float:
    """The sum over all combinations of labels that these are a part of."""
    samples = (sample for family in counter.collect() for sample in family.samples)
    return sum(each.value for each in samples if labels.items() <= each.labels.items())


def write_page(registry: CollectorRegistry) -> bytes:
    """Everything that is counted, as Prometheus reads it."""
    return bytes(generate_latest(registry))
