"""Damaged checkpoints, damaged run folders, output paths, and methods of the user's own."""

import torch
from faults.making import (
    BOMB,
    checkpoint,
    cut,
    edited,
    fifo,
    folder,
    meta,
    removed,
    result,
    weight,
)
from faults.running import Case

CHECKPOINTS = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("weights"),
    "a pickle": lambda file: file.write_bytes(b"cos\nsystem\n(S'echo hacked'\ntR."),
    "cut": cut(2000),
    "without its end": cut(-200),
    "a pipe": lambda file: (file.unlink(), fifo(file)),
    "a folder": lambda file: (file.unlink(), folder(file)),
    "a list": checkpoint(lambda content: [1]),
    "a tensor": checkpoint(lambda content: torch.zeros(3)),
    "another format": meta(format=99),
    "no format": meta(format=...),
    "a nested format": meta(format=[[[[1]]]]),
    "metadata are a list": checkpoint(lambda content: content | {"understudy": [1]}),
    "no weights": checkpoint(lambda content: content | {"state_dict": {}}),
    "weights are a list": checkpoint(lambda content: content | {"state_dict": [1]}),
    "weights with numbers": checkpoint(lambda content: content | {"state_dict": {1: torch.zeros(1)}}),
    "no classes": meta(classes=...),
    "classes are integers": meta(classes=[1, 2, 3]),
    "classes are text": meta(classes="cat"),
    "classes are escapes": meta(classes=["\x1b[31m", "a", "b"]),
    "too few classes": meta(classes=["cat"]),
    "no category ids": meta(category_ids=...),
    "category ids are text": meta(category_ids=["1", "2", "3"]),
    "no build": meta(build=...),
    "build is a list": meta(build=[1]),
    "build is empty": meta(build={}),
    "build is unknown": meta(build={"name": "yolo_resnet50", "num_classes": 3}),
    "build is huge": meta(build={"name": "fcos_resnet50", "num_classes": 10**9, "neck_channels": 10**6}),
    "build is wide": meta(build={"name": "fcos_resnet50", "num_classes": 3, "width_mult": 1e9}),
    "build is negative": meta(build={"name": "fcos_resnet50", "num_classes": -3}),
    "no config": meta(config=...),
    "config is empty": meta(config={}),
    "config without sizes": meta(config={"data": {"path": "x"}}),
    "a sparse weight": weight(lambda value: value.to_sparse()),
    "a meta weight": weight(lambda value: value.to("meta")),
    "a complex weight": weight(lambda value: value.to(torch.complex64)),
    "a short weight": weight(lambda value: value[:1]),
    "a weight that is text": weight(lambda value: "x"),
    "an expanded weight": weight(lambda value: torch.zeros(1).expand(10**12)),
}
"""Changes of a good checkpoint by what is wrong with it."""

RUNS = {
    "config.yaml": {
        "removed": removed,
        "empty": lambda file: file.write_text(""),
        "cut": edited(lambda text: text[: text.index("  path:")]),
        "binary": lambda file: file.write_bytes(bytes(range(256))),
        "a list": lambda file: file.write_text("- a\n"),
        "a bomb": lambda file: file.write_text(BOMB),
        "an unknown key": edited(lambda text: text + "nonsense: 1\n"),
        "another seed": edited(lambda text: text.replace("seed: 0", "seed: 1")),
        "a wrong value": edited(lambda text: text.replace("batch_size: 2", "batch_size: two")),
        "a pipe": lambda file: (file.unlink(), fifo(file)),
    },
    "result.json": {
        "empty": lambda file: file.write_text(""),
        "cut": cut(40),
        "a list": lambda file: file.write_text("[]"),
        "nested": lambda file: file.write_text("[" * 100_000),
        "closed and nested": lambda file: file.write_text('{"a": ' + "[" * 500 + "]" * 500 + "}"),
        "without its numbers": result(coco=...),
        "numbers are text": result(coco={"AP": "high"}),
        "numbers are a list": result(coco=[1]),
        "without an epoch": result(epoch=...),
        "measured nowhere": result(measured_on=3),
    },
}

OWN = {
    "leaves": "import sys\nsys.exit()\n",
    "leaves_loudly": "raise SystemExit('good bye')\n",
    "fails": "1 / 0\n",
    "is_no_python": "def (\n",
    "is_binary": bytes(range(1, 256)),
    "is_empty": "",
    "holds_another_class": "class X: pass\n",
    "holds_a_bare_method": "from understudy import Method\nclass X(Method): pass\n",
    "imports_nothing": "import absent_module\n",
    "needs_too_much": "raise MemoryError\n",
}
"""Contents of modules with a user's method `X`."""

TRAIN = (
    "train data=coco batch_size=1 data.workers=0 accelerator=cpu detector=fcos_mobilenet_v2 "
    "detector.width_mult=0.35 detector.neck_channels=16 run="
)
LONG = "x" * 256


GROUPS = {
    "checkpoints": [
        *(
            Case("evaluate distilled", {"distilled/best.ckpt": each}, ("distilled",), name)
            for name, each in CHECKPOINTS.items()
        ),
        *(
            Case(line, {"distilled/best.ckpt": CHECKPOINTS[name]}, ("distilled", "photos"), name)
            for line in ("predict distilled photos -o out", "export distilled out", "swap distilled distilled")
            for name in ("no category ids", "a sparse weight")
        ),
        *(
            Case(
                "import distilled/best.ckpt -o new.ckpt",
                {"distilled/best.ckpt": CHECKPOINTS[name]},
                ("distilled",),
                name,
            )
            for name in ("empty", "text", "a pickle", "cut", "a pipe", "a list", "a tensor", "weights are a list")
        ),
        *(
            Case(
                "distill run=new data=coco teacher=distilled detector.backbone_weights=null",
                {"distilled/best.ckpt": CHECKPOINTS[name]},
                ("coco", "distilled"),
                name,
            )
            for name in ("cut", "no classes", "a sparse weight", "a pipe")
        ),
    ],
    "runs": [
        *(
            Case(line, {f"trained/{file}": change}, ("trained",), f"{file}: {name}")
            for file, changes in RUNS.items()
            for name, change in changes.items()
            for line in ("compare trained", "resume trained")
            if (line, file) != ("resume trained", "result.json")
            if (line, name) != ("compare trained", "another seed")
        ),
        *(
            Case("compare trained --html page.html", {f"trained/{file}": change}, ("trained",), f"{file}: {name}")
            for file, name, change in (
                ("losses.csv", "binary", lambda file: file.write_bytes(bytes(range(256)) + b"\n")),
                ("losses.csv", "a word", edited(lambda text: text.replace("0.", "zero"))),
                ("losses.csv", "a cell less", edited(lambda text: text + "1,2\n")),
                ("metrics.csv", "a word", edited(lambda text: text.replace("0.", "zero"))),
                ("metrics.csv", "utf-16", lambda file: file.write_text("epoch,AP\n1,2\n", encoding="utf-16")),
                ("environment.json", "cut", cut(8)),
                ("environment.json", "a list", lambda file: file.write_text("[]")),
                ("environment.json", "a pipe", lambda file: (file.unlink(), fifo(file))),
            )
        ),
    ],
    "resume": [
        *(
            Case(
                "resume distilled",
                {"distilled/result.json": removed, "distilled/last.ckpt": change},
                ("distilled",),
                name,
            )
            for name, change in {
                **{name: each for name, each in CHECKPOINTS.items() if "build" not in name and "ids" not in name},
                "best.ckpt": lambda file: file.write_bytes(file.with_name("best.ckpt").read_bytes()),
                "no optimizer": checkpoint(lambda content: content.pop("optimizer_states")),
                "no step": meta(step=...),
                "a step of zero": meta(step=0),
                "a step as text": meta(step="three"),
                "another config": meta(config={"seed": 7}),
            }.items()
        ),
        Case("resume distilled", {}, ("distilled",), "finished"),
        Case("resume distilled -m a:X", {"distilled/result.json": removed}, ("distilled",)),
    ],
    "own_methods": [
        *(
            Case(f"{line} own_{name}:X", {f"own_{name}.py": content}, ("coco",))
            for name, content in OWN.items()
            for line in ("methods", "distill run=new data=coco teacher=coco detector=fcos_mobilenet_v2 --method")
        ),
    ],
    "outputs": [
        *(
            Case(f"{line}{place}{end}", {"file": "mine", "full/file": "mine"}, ("trained", "photos", "coco"))
            for line, end in (
                ("predict trained photos -o ", ""),
                ("export trained ", ""),
                ("demo --output ", ""),
                ("check coco --sheet ", "/x.png"),
                (TRAIN, ""),
            )
            for place in ("file", "full", "file/below", LONG, "/proc/nothing")
            if (place, end) != ("full", "/x.png")
        ),
    ],
}
