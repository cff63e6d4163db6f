"""Are the intervals of a study honest? Comparisons of runs that differ by seed alone, resampled from stored runs.

    understudy study FOLDER ... --row none --no-longer --seeds 0,1,...,23
    python benchmarks/study_coverage.py FOLDER

Each comparison draws two groups of different seeds from one row, pairs them, and computes the intervals as a study
does. The truth is a difference of zero, so 95 % of the intervals over seeds should hold it; a comparison is told from
noise, wrongly, if both intervals exclude it. The table (Markdown) is printed.
"""

import argparse
import random
from pathlib import Path

import numpy as np

from understudy.compare.intervals import interval
from understudy.evaluation.resampling import image_interval, resampled_aps
from understudy.reading import read_json, read_rows
from understudy.studies.folder import StudyFolder


def main() -> None:
    """Print the share of the intervals that hold zero."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--row", default="none")
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=500, help="bootstrap samples of the images")
    options = parser.parse_args()
    folder = StudyFolder(options.study)
    names = [Path(row["folder"]).name for row in read_rows(folder.runs_table) if row["row"] == options.row]
    aps = np.array([read_json(folder.run(name).result)["coco"]["AP"] for name in names])
    matches = [found for name in names if (found := folder.read_matches(name))]
    resampled = resampled_aps(matches, options.samples)
    print(
        f"{len(aps)} runs of the row {options.row}, AP {100 * aps.mean():.2f} ± {100 * aps.std(ddof=1):.2f}, "
        f"{options.comparisons} comparisons, {options.samples} samples of {matches[0].images} images\n"
    )
    print("| seeds of a side | hold zero, over seeds | mean half width, AP | over images | told from noise |")
    print("|---:|---:|---:|---:|---:|")
    for count in (2, 3, 5, 8):
        print(_line(aps, resampled, count, options.comparisons))


def _line(aps: np.ndarray, resampled: np.ndarray, count: int, comparisons: int) -> str:
    draws = random.Random(count)
    held = held_over_images = told = 0
    widths = []
    for _ in range(comparisons):
        chosen = draws.sample(range(len(aps)), 2 * count)
        one, other = chosen[:count], chosen[count:]
        found = interval([float(aps[a] - aps[b]) for a, b in zip(one, other, strict=True)])
        value = float(aps[one].mean() - aps[other].mean())
        low, high = image_interval(value, resampled[:, one].mean(1) - resampled[:, other].mean(1))
        held += not found.excludes_zero
        held_over_images += low <= 0 <= high
        told += found.excludes_zero and not low <= 0 <= high
        widths.append(found.high - found.mean)
    shares = [f"{100 * value / comparisons:.1f} %" for value in (held, held_over_images, told)]
    return f"| {count} | {shares[0]} | {100 * float(np.mean(widths)):.2f} | {shares[1]} | {shares[2]} |"


if __name__ == "__main__":
    main()
