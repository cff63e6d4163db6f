"""Detect objects in photos with the ONNX file beside this program. Needs onnxruntime, numpy and pillow alone.

    pip install onnxruntime numpy pillow
    python detect.py photo.jpg another.jpg --score 0.3 --output found

From Python::

    from detect import Detector
    detector = Detector("student.onnx")
    detector(Image.open("photo.jpg"))  # [{"box": [x1, y1, x2, y2], "label": "cat", "score": 0.9}, ...]
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps

HERE = Path(__file__).resolve().parent
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


class Detector:
    """A detector from an ONNX file of ``understudy export``.

    Args:
        file: the file.
        threads: of the arithmetic; 0: as many as there are cores.
    """

    def __init__(self, file, threads=0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        facts = self.session.get_modelmeta().custom_metadata_map.get("understudy")
        if facts is None:
            raise ValueError(f"{file} was not written by `understudy export`")
        self.facts = json.loads(facts)
        if self.facts["raw"]:
            raise ValueError(f"{file} was exported with --raw: it does not choose detections")

    def __call__(self, photo, score=0.0):
        """Return the detections of a photo, best first, with boxes in its pixels; `score` is the lowest one."""
        photo = ImageOps.exif_transpose(photo).convert("RGB")
        pixels, scale = self.prepared(np.asarray(photo, np.float32) / 255)
        outputs = [np.asarray(each)[0] for each in self.session.run(None, {"image": pixels})]
        boxes, scores, labels = (each[: outputs[3]] for each in outputs[:3])
        boxes = np.minimum(boxes * [*scale, *scale], [photo.width, photo.height] * 2)
        names = [self.facts["classes"][label] for label in labels]
        found = zip(boxes.tolist(), names, scores.tolist(), strict=True)
        return [{"box": box, "label": name, "score": one} for box, name, one in found if one >= score]

    def prepared(self, image):
        """Resize (h, w, 3) in 0..1 for the network: its input (1, 3, H, W), and photo pixels per pixel, x and y."""
        height, width = image.shape[:2]
        rule, canvas = self.facts["resize"], self.facts["size"]
        scale = min(rule["shorter_side"] / min(height, width), rule["longer_side"] / max(height, width))
        new = [max(1, int(side * scale)) for side in (height, width)]
        if canvas and (new[0] > canvas[0] or new[1] > canvas[1]):  # a fixed size that the photo does not fit into
            scale = min(canvas[0] / new[0], canvas[1] / new[1])
            new = [max(1, int(side * scale)) for side in new]
        small = resized(image, *new)
        if canvas:  # filled up with the mean colour at the right and the bottom
            filled = np.empty((*canvas, 3), np.float32)
            filled[:] = self.facts["mean"]
            filled[: new[0], : new[1]] = small
            small = filled
        small = small.transpose(2, 0, 1)[None].repeat(self.facts["batch"] or 1, axis=0)
        pixels = (small * 255).round().astype(np.uint8) if self.facts["input"] == "uint8" else small
        return np.ascontiguousarray(pixels), (width / new[1], height / new[0])


def resized(image, height, width):
    """Resize (h, w, 3) bilinearly without antialiasing, as in training: cells are sampled at their centres."""
    for axis, size in ((0, height), (1, width)):
        old = image.shape[axis]
        places = np.maximum((np.arange(size) + 0.5) * (old / size) - 0.5, 0)
        below = np.minimum(places.astype(int), old - 1)
        share = (places - below).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(3)])
        above = np.minimum(below + 1, old - 1)
        image = np.take(image, below, axis) * (1 - share) + np.take(image, above, axis) * share
    return image.astype(np.float32)


def drawn(photo, found, classes):
    """Draw detections on a photo."""
    photo = photo.copy()
    draw, line = ImageDraw.Draw(photo), max(2, round(max(photo.size) / 400))
    for each in reversed(found):  # the best on top
        colour = COLOURS[classes.index(each["label"]) % len(COLOURS)]
        draw.rectangle(each["box"], outline=colour, width=line)
        text = f"{each['label']} {each['score']:.2f}"
        left, top, right, bottom = draw.textbbox((each["box"][0], max(0, each["box"][1] - 6 * line)), text)
        draw.rectangle((left, top, right + 2, bottom + 2), fill=colour)
        draw.text((left + 1, top), text, fill="white", anchor="lt")
    return photo


def main():
    """Detect objects in the photos that are named on the command line."""
    parser = argparse.ArgumentParser(description="Detect objects in photos.")
    parser.add_argument("photos", nargs="+", type=Path, help="image files")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score (default 0.3)")
    parser.add_argument("--output", type=Path, help="folder for the photos with their boxes")
    parser.add_argument("--model", type=Path, default=HERE / "student.onnx", help="ONNX file (default: beside this)")
    options = parser.parse_args()
    try:
        detector = Detector(options.model)
    except Exception as error:  # onnxruntime's exceptions have no common class
        sys.exit(f"Error: {options.model} cannot be loaded: {' '.join(str(error).split())[:300]}")
    failed = False
    for number, file in enumerate(options.photos):
        try:
            with Image.open(file) as opened:
                photo = ImageOps.exif_transpose(opened).convert("RGB")
            found = detector(photo, options.score)
        except (OSError, ValueError) as error:
            print(f"Error: {file} cannot be read as an image: {error}", file=sys.stderr)
            failed = True
            continue
        print(file)
        for each in found:
            print(f"  {each['label']:20} {each['score']:.2f}  " + " ".join(f"{side:.1f}" for side in each["box"]))
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            target = options.output / f"{file.stem}.png"
            target = options.output / f"{file.stem}-{number}.png" if target.exists() else target
            if target.exists():
                sys.exit(f"Error: {target} exists already; choose another --output")
            drawn(photo, found, detector.facts["classes"]).save(target)
    sys.exit(failed)


if __name__ == "__main__":
    main()
