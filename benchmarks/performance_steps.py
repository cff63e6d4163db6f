"""The cost of a training step, relative to the student's step and the whole pass of the teacher."""

import statistics
from collections.abc import Iterator

from performance_rows import Row
from step_cost import TAIL, arguments, enter, measure

LIMITS = {"frs": 0.99, "hint": 0.9, "pkd": 0.9, "cwd": 0.9, "mgd": 0.9, "rank_mimicking": 1.0, "pfi": 1.0}
MEMORY = 1.1


def rows() -> Iterator[Row]:
    """Measure RetinaNet-R50 to R18 on two images of 256 pixels."""
    options = arguments(["--device", "cpu", "--rounds", "9", "--methods", *LIMITS, "dist2"])
    contestants = enter(options)
    floor = measure(contestants, options.rounds)["retinanet"]
    named = {each.name: each for each in contestants}
    for name, limit in LIMITS.items():
        ratios = [own / other for own, other in zip(named[name].seconds, named[name].beside, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        yield Row(f"{name}, step over the floor", middle, limit, note=f"quartiles {low:.3f} to {high:.3f}")
    ratios = [own / other for own, other in zip(named["dist2"].seconds, named[TAIL].seconds, strict=True)]
    yield Row("dist2 (All2All), step over the floor and its own passes", statistics.median(ratios), 1.05)
    for name in LIMITS:
        yield Row(f"{name}, peak memory over the floor's", named[name].memory / floor.memory, MEMORY)
