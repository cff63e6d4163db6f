"""What lies beside an exported ONNX file: a program, a page for the browser, and the definition of input and output."""

from importlib.resources import files
from pathlib import Path

from understudy.evaluation.runtimes import Facts
from understudy.files import write_atomically

RUNTIME = "1.30.0"
"""Version of onnxruntime-web that the page was tested with."""

COMMAND = (
    f"curl -LO https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{RUNTIME}.tgz && "
    f"tar xzf onnxruntime-web-{RUNTIME}.tgz --strip-components=2 "
    "package/dist/ort.wasm.min.js package/dist/ort-wasm-simd-threaded.mjs package/dist/ort-wasm-simd-threaded.wasm"
)
"""Puts the runtime beside the page. It is not shipped: it has 14 MB, and code of others."""


def write_beside(folder: Path, facts: Facts) -> list[Path]:
    """Write ``README.md`` and, unless the file is raw, ``detect.py`` and ``detect.html``.

    Args:
        folder: of the ONNX file.
        facts: what the ONNX file states.

    Returns:
        The files.
    """
    texts = {"README.md": readme(facts)}
    if not facts.raw:
        stated = facts.to_json().replace("<", "\\u003c")  # a class may be called </script>
        page = _template("detect.html").replace("/*FACTS*/null", stated)
        texts |= {"detect.py": _template("detect.py"), "detect.html": page.replace("/*COMMAND*/", COMMAND)}
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]


def readme(facts: Facts) -> str:
    """Describe an ONNX file: its input and output, how a photo is prepared, and how it is run."""
    pixels = "(N, 3, H, W)" if facts.size is None else f"({facts.batch}, 3, {facts.size[0]}, {facts.size[1]})"
    count = "N" if facts.batch is None else str(facts.batch)
    values = "float32, 0 to 1" if facts.input == "float32" else "uint8, 0 to 255"
    images = "any number, of any size" if facts.size is None else f"{count} of {facts.size[0]} x {facts.size[1]} pixels"
    if facts.raw:
        tables = _RAW_TABLE.format(pixels=pixels, count=count, values=values, classes=len(facts.classes))
    else:
        tables = _TABLE.format(pixels=pixels, count=count, values=values, most=facts.detections)
    canvas = ""
    if facts.size:
        mean = ", ".join(f"{255 * value:g}" for value in facts.mean)
        canvas = _CANVAS.format(height=facts.size[0], width=facts.size[1], mean=mean)
    chosen = (
        f"at most {facts.detections}, with a score above {facts.score_threshold:g}; "
        f"NMS with an IoU of {facts.nms_threshold:g} within each class"
    )
    step = 4 if facts.size else 3
    return _template("README.md").format(
        detector=facts.detector,
        end="the boxes and scores of every anchor" if facts.raw else "detections",
        count=len(facts.classes),
        classes=", ".join(facts.classes),
        AP="not known" if facts.AP is None else f"{100 * facts.AP:.1f} (of the weights in float32, in PyTorch)",
        precision=facts.precision,
        images=images,
        detections=facts.detections,
        score=f"{facts.score_threshold:g}",
        nms=f"{facts.nms_threshold:g}",
        licence=facts.licence or "not stated",
        understudy=facts.versions["understudy"],
        versions=", ".join(f"{name} {version}" for name, version in facts.versions.items() if name != "understudy"),
        opset=facts.opset,
        chosen="not chosen: every anchor is an output" if facts.raw else chosen,
        outputs="two outputs" if facts.raw else "four outputs",
        tables=tables,
        shorter=facts.resize["shorter_side"],
        longer=facts.resize["longer_side"],
        canvas=canvas,
        step=step,
        next=step + 1,
        type="Divide by 255, as float32." if facts.input == "float32" else "Round to bytes, uint8.",
        files="" if facts.raw else _FILES,
        use="" if facts.raw else _USE.format(command=COMMAND),
    )


_FILES = """## Files

| file | |
|---|---|
| `student.onnx` | the detector |
| `student.int8.onnx` | the same in INT8, if it was exported |
| `student.xml`, `student.bin` | the same for OpenVINO, if it was exported |
| `detect.py` | detects objects in photos; needs `onnxruntime`, `numpy` and `pillow` |
| `detect.html` | the same in a browser |

```sh
pip install onnxruntime numpy pillow
python detect.py photo.jpg --score 0.3 --output found
```"""

_TABLE = """| | shape | type | |
|---|---|---|---|
| input `image` | {pixels} | {values} | RGB, neither normalised nor padded |
| `boxes` | ({count}, {most}, 4) | float32 | left, top, right, bottom in pixels of the image, clipped to it |
| `scores` | ({count}, {most}) | float32 | 0 to 1, from the best on; 0 after the last detection |
| `labels` | ({count}, {most}) | int64 | number of the class, from 0; -1 after the last detection |
| `count` | ({count}) | int64 | detections of each image |"""

_RAW_TABLE = """R is the number of anchors. No detections are chosen: there is no threshold and no NMS.

| | shape | type | |
|---|---|---|---|
| input `image` | {pixels} | {values} | RGB, neither normalised nor padded |
| `boxes` | ({count}, R, 4) | float32 | left, top, right, bottom in pixels of the image, clipped to it |
| `scores` | ({count}, R, {classes}) | float32 | score of each class, 0 to 1 |"""

_CANVAS = """\
3. If the result is higher than {height} or wider than {width} pixels, scale it down once more, in the same way, by
   s = min({height} / height, {width} / width). Put it into the upper left corner of an image that is {height} pixels
   high, {width} wide, and filled with the colour ({mean}).
"""

_USE = """## From C++

With the C++ API of ONNX Runtime:

1. Make an `Ort::Env` and an `Ort::Session` of `student.onnx`.
2. Prepare the photo as above, for example with OpenCV: `cv::imread`, which turns it upright; `cv::cvtColor` with
   `cv::COLOR_BGR2RGB`; `convertTo` with `CV_32F` and 1 / 255; then `cv::resize`; `cv::split` for the layout. Compute s
   as a `double`. If bytes are resized, OpenCV rounds them, by up to 0.75 of a level; floats are within 0.001.
3. Wrap the values with `Ort::Value::CreateTensor`; call `session.Run` with the input name `image` and the output names
   `boxes`, `scores`, `labels`, `count`.
4. Read `count` rows of each output and scale the boxes back.

## In a browser

`detect.html` runs the detector with onnxruntime-web on the device itself. Put its runtime (14 MB) beside the page:

```sh
{command}
python -m http.server
```

and open http://localhost:8000/detect.html. A page that is opened as a file cannot read its neighbours: it asks for
`student.onnx`, `ort-wasm-simd-threaded.mjs` and `ort-wasm-simd-threaded.wasm`, which are chosen at once.
"""


def _template(name: str) -> str:
    return files("understudy.deployment").joinpath("beside", name).read_text(encoding="utf-8")
