"""Bad command lines, keys and configs."""

from faults.making import BOMB, fifo, folder, link
from faults.running import Case

TRAIN = "train run=new data=coco"
DISTILL = "distill run=new data=coco teacher=trained detector=fcos_mobilenet_v2 detector.width_mult=0.35"

VALUES = [
    "run=", "run='a\\0b'", "data=", "data=[]", "data='[a, 3]'", "data.train=", "data.train=null", "data.val={}",
    "data.shorter_side=0", "data.shorter_side=-64", "data.shorter_side=1e9", "data.shorter_side=[]",
    "data.shorter_side='[640, x]'", "data.shorter_side.9=3", "data.shorter_side=100000", "data.longer_side=31",
    "data.shorter_side_mode=both", "data.flip=1.1", "data.flip=-0.1", "data.flip=nan", "data.flip=inf",
    "data.flip=yes", "data.group_by_aspect=3", "data.skip_empty=maybe", "data.workers=-1", "data.workers=100000",
    "data.workers=1.5", "data.max_pixels=0", "data.allow_outside=perhaps", "data.unlabelled_batch=-1",
    "detector.name=", "detector={}", "detector=[a]", "detector.neck_channels=0", "detector.neck_channels=1000000000",
    "detector.width_mult=0", "detector.width_mult=1e9", "detector.width_mult=nan", "detector.norm=group",
    "detector.head_norm=batch", "detector.frozen_stages=5", "detector.anchor_scale=0", "detector.anchor_scale=1e300",
    "detector.image_mean=0.5", "detector.image_mean='[1, 2]'", "detector.image_std='[0, 1, 1]'",
    "detector.channel_order=gbr", "detector.conventions=yolo", "detector.settings=3",
    "optimizer='[sgd]'", "optimizer=adam", "optimizer.name='{a: b}'", "optimizer.lr=0", "optimizer.lr=-1",
    "optimizer.lr=1e300", "optimizer.lr=abc", "optimizer.momentum=1", "optimizer.weight_decay=-1",
    "optimizer.scale_lr=2", "optimizer.reference_batch=0", "optimizer.clip_norm=0", "schedule='[1x]'",
    "schedule=3x", "schedule.epochs=0", "schedule.epochs=1000000000000000000000000000000", "schedule.warmup=cosine",
    "schedule.warmup_steps=-1", "schedule.warmup_factor=0", "batch_size=0", "batch_size=2.5", "batch_size=many",
    "precision=64", "seed=-1", "seed=18446744073709551616", "seed=0x10", "accelerator=", "devices=0", "devices=all",
    "num_nodes=0", "strategy=", "strategy=ddp_spawn", "evaluate_every=0", "log_every=0", "log_every=[",
    "log_every='*a'", "log_every='&a [*a]'", "teacher=t", "nonsense=1", "data.nonsense=1", "data.flip.x=1", "=1",
    "data", "a b=1", "'data.flip: 0'", f"data.flip={'[' * 50}0{']' * 50}",
    "détecteur=x", "'\x1b[31mdata=x'",
]  # fmt: skip

OF_DISTILL = [
    "teacher=", "methods=", "methods=3", "methods=[]", "methods='[frs, frs]'", "methods='[3]'",
    "methods=fsr", "methods.frs.thresold=1", "methods.frs.threshold=x",
    "--method nothing", "--method frs,pkd", "--method ''", "--method :X",
    "--method os:path", "--method frs methods.pkd.levels=1",
    "inherit=maybe", "--method frs --method frs",
]  # fmt: skip

ARGUMENTS = [
    "nonsense", "trian", "--nonsense", "train", "distill", "train nofile", "train --lr 0.1", "train --confg=a.yaml",
    "train -c", "train -c absent.yaml", "train -c coco", "distill -c absent.yaml", "distill --method", "resume",
    "resume absent", "resume coco", "resume a b", "check", "check absent", "check coco absent", "check coco coco",
    "check coco yolo", "check photos", "check photos/a.jpg", "check coco --sheet", "check coco --sheet sheet.jpg",
    "check coco --max-pixels 0", "check coco --max-pixels many", "check ''", "evaluate", "evaluate absent",
    "evaluate coco", "evaluate photos/a.jpg", "evaluate trained absent", "evaluate trained coco --split nothing",
    "evaluate trained coco --batch-size 0", "evaluate trained coco --workers -1",
    "evaluate trained coco --precision 64",
    "evaluate trained coco", "evaluate trained coco --split ''", "evaluate 'a\\0b'", "predict", "predict trained",
    "predict trained coco", "predict trained absent -o out", "predict trained photos -o out --score 2",
    "predict trained photos -o out --score nan", "predict trained photos -o out --score x",
    "predict trained coco -o out --split nothing", "predict coco photos -o out", "export", "export trained",
    "export absent out", "export coco out", "import", "import absent.pth", "import coco", "import photos/a.jpg",
    "import trained/best.ckpt --mean 1,2", "import trained/best.ckpt --mean x", "import trained/last.ckpt --set a",
    "import trained/last.ckpt --set 'a=[1'", "import trained/last.ckpt --set 'a=2001-99-99'",
    "import trained/last.ckpt --classes ''", "import trained/last.ckpt --classes cat,cat", "swap", "swap trained",
    "swap absent trained", "swap trained absent", "swap trained trained absent", "compare", "compare absent",
    "compare coco", "compare trained trained", "config tran", "config train extra", "methods fsr", "methods frs,pkd",
    "methods frs --short", "methods absent:X", "methods json:absent", "methods ''", "methods ../x:Y", "detectors fcos",
    "detectors x", "detectors fcos_resnet18 width_mult=0", "detectors fcos_resnet18 width_mult=1e9",
    "detectors fcos_resnet18 neck_channels=x", "detectors fcos_resnet18 num_classes=0", "detectors fcos_resnet18 x=1",
    "detectors fcos_resnet18 settings=3", "demo --seed -1", "demo --seed x", "demo --seed 1000000",
    "demo --output coco", "demo --output photos/a.jpg",
    "recipes nothing", "recipes frs", "recipes a b", "train run=new data=coco --recipe nothing",
    "distill run=new data=coco teacher=trained --recipe nothing", "distill run=new data=coco teacher=t recipe='[a]'",
    "distill run=new data=absent teacher=t --recipe frs-retinanet-r50", "analyse", "analyse nothing",
    "analyse richness", "analyse richness absent", "analyse richness coco", "analyse richness trained absent",
    "analyse richness trained --images 0", "analyse richness trained --image nothing",
    "analyse richness trained -o photos/a.jpg", "analyse errors absent",
    "analyse errors trained --data absent", "analyse swap trained absent", "analyse swap trained trained absent",
]  # fmt: skip

CONFIGS = {
    "a bomb of aliases": BOMB,
    "a bomb in a key": BOMB.replace("a11", "data"),
    "nesting": "data: " + "[" * 5000,
    "closed nesting": "data: " + "[" * 200 + "]" * 200,
    "nesting of mappings": "\n".join(" " * n + "a:" for n in range(300)),
    "an alias to itself": "data: &a [*a]\n",
    "an alias to nothing": "data: *a\n",
    "too large": "# " + "x" * (9 * 2**20),
    "latin-1": "run: d\xe9j\xe0\n".encode("latin-1"),
    "utf-16": "run: r\n".encode("utf-16"),
    "null bytes": b"run: r\0\n",
    "not yaml": "run: [",
    "tabs": "data:\n\tpath: x\n",
    "a list": "- run: r\n",
    "a number": "3\n",
    "text": "run r\n",
    "two documents": "run: r\n---\nrun: s\n",
    "a key twice": "run: r\nrun: s\n",
    "a mapping as key": "? {a: b}\n: c\n",
    "a list as key": "? [a]\n: c\n",
    "python objects": "run: !!python/object/apply:os.system [echo]\ndata: x\n",
    "an unknown tag": "run: !x r\ndata: x\n",
    "optimizer as list": "run: r\ndata: x\noptimizer: [sgd]\n",
    "detector as number": "run: r\ndata: x\ndetector: 3\n",
    "schedule as mapping": "run: r\ndata: x\nschedule: {name: {a: b}}\n",
    "data as mapping": "run: r\ndata: {path: {a: b}}\n",
    "a run with a null": 'run: "a\\0b"\ndata: x\n',
    "a run with a surrogate": 'run: "\\ud800"\ndata: x\n',
    "empty": "",
    "a comment": "# nothing\n",
    "unknown keys": "run: r\ndata: x\nlr: 0.1\noptimzer: sgd\n",
    "a key with a line feed": 'run: r\ndata: x\n"a\\nb": 1\n',
    "an escape sequence": 'run: r\ndata: x\nbatch_size: "\\e[31mred"\n',
    "markup": 'run: r\ndata: x\nbatch_size: "[/b]"\n',
    "a pipe": fifo,
    "a folder": folder,
    "a device": link("/dev/zero"),
    "a link to nothing": link("absent"),
    "a link to itself": link("a.yaml"),
    "methods as text": "run: r\ndata: x\nteacher: t\nmethods: {frs: {threshold: [1, 2]}}\n",
}
"""Contents of config files by what is wrong with them."""

BASES = ("coco", "yolo", "photos", "trained")

GROUPS = {
    "values": [Case(f"{TRAIN} {value}", base=("coco",)) for value in VALUES],
    "values_of_distill": [Case(f"{DISTILL} {value}", base=("coco", "trained")) for value in OF_DISTILL],
    "arguments": [Case(line, base=tuple(base for base in BASES if base in line)) for line in ARGUMENTS],
    "configs": [
        Case(f"{'distill' if 'methods' in name else 'train'} -c a.yaml", {"a.yaml": content}, name=name)
        for name, content in CONFIGS.items()
    ],
}
