"""The command line with stand-ins for what the commands call: arguments, messages, exit codes, start-up time."""

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_sets import squares

import understudy
from understudy.cli import app, main
from understudy.cli.analyse import analyse
from understudy.config import DetectorConfig, DistillConfig, TrainConfig, dump_config, load_config
from understudy.config.methods import DEFAULT_METHODS
from understudy.data import LIMITS
from understudy.errors import RunError, UserError

HEAVY = ("torch", "torchvision", "lightning", "matplotlib", "numpy")
COMMANDS = sorted(
    command.name or command.callback.__name__ for command in app.registered_commands if not command.hidden
)
ANALYSES = sorted(command.callback.__name__ for command in analyse.registered_commands)


@pytest.fixture
def run(capsys):
    """Runs a command line and returns its exit code, stdout and stderr."""

    def run(*arguments: str) -> SimpleNamespace:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        output = capsys.readouterr()
        return SimpleNamespace(code=stop.value.code or 0, out=output.out, err=output.err)

    return run


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a module with one function in the place of a module of the package; returns the calls it gets."""

    def stand_in(module: str, function: str, result=None, error: BaseException | None = None) -> list:
        calls = []

        def called(*args, **kwargs):
            calls.append((args, kwargs))
            if error is not None:
                raise error
            return result

        fake = SimpleNamespace(**{function: called})
        parent, _, name = f"understudy.{module}".rpartition(".")
        monkeypatch.setattr(import_module(parent), name, fake, raising=False)
        monkeypatch.setitem(sys.modules, f"{parent}.{name}", fake)
        return calls

    return stand_in


# --- start-up and help ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["import understudy", "import understudy.cli as c; c.main(['--help'])"])
def test_nothing_heavy_is_imported(code):
    script = (
        f"import sys, atexit\natexit.register(lambda: print('HEAVY', [m for m in {HEAVY} if m in sys.modules]))\n{code}"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip().endswith("HEAVY []")


ARGUMENTS = {
    "train": "run=r data=d",
    "distill": "run=r data=d teacher=t",
    "resume": "r",
    "study": "folder --row frs",
    "doctor": "r",
    "check": "d",
    "evaluate": "r",
    "predict": "r d -o out",
    "compare": "r",
    "benchmark": "r",
    "export": "r out",
    "import": "weights.pth",
    "demo": "",
    "detectors": "fcos_resnet18",
    "recipes": "check",
    "swap": "t s",
    "analyse richness": "t",
    "analyse errors": "t",
    "analyse entropy": "t",
    "analyse ranks": "t s",
    "analyse imitation": "t s",
    "analyse proposals": "t s",
    "analyse regions": "-o out",
    "analyse teachers": "t u -o out",
    "analyse swap": "t s",
    "suggest": "d",
}
"""The shortest arguments of every command that needs PyTorch."""

FIRST_OUTPUT = """
import contextlib, io, json, sys
from understudy.cli import main

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise SystemExit("torch")  # before a second has passed

sys.meta_path.insert(0, Stop())
said = {}
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(command.split())
        except SystemExit as stop:
            said[command] = [stop.code, out.getvalue(), err.getvalue()]
print(json.dumps(said))
"""


def test_every_command_says_something_before_it_imports_torch():
    """The import takes seconds, and a command without output looks as if it hung, in a pipe, too."""
    known = [*COMMANDS, *(f"analyse {name}" for name in ANALYSES)]
    assert set(known) - set(ARGUMENTS) == {"config", "methods"}
    commands = [f"{command} {arguments}".strip() for command, arguments in ARGUMENTS.items()]
    script = [sys.executable, "-c", FIRST_OUTPUT, json.dumps(commands)]
    said = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    assert [command for command in commands if said[command][0] != "torch" or not said[command][2]] == []
    assert said["evaluate r"] == ["torch", "", "Loading PyTorch ...\n"]


def test_help_answers_within_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "understudy", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1


def test_no_command_shows_help_and_version_is_known(run):
    assert run().code == 0
    assert run().out == run("--help").out == run("-h").out
    assert all(f"\n  {command} " in run("-h").out for command in COMMANDS)
    assert run("--version").out.strip() == understudy.__version__


@pytest.mark.parametrize("command", [*COMMANDS, *(f"analyse {name}" for name in ANALYSES)])
def test_help_of_a_command_has_an_example_and_fits_80_columns(run, command):
    result = run(*command.split(), "-h")
    assert result.code == 0
    assert f"Example:\n    understudy {command}" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert result.out.isascii()


def test_short_help_is_whole(run):
    assert "..." not in run("-h").out.partition("Commands:")[2]
    analyses = run("analyse", "-h").out
    assert "..." not in analyses.partition("Commands:")[2]
    assert all(f"\n  {name} " in analyses for name in ANALYSES)


# --- public names -----------------------------------------------------------------------------------------------------


def test_public_names_exist():
    assert set(understudy.__all__) <= set(dir(understudy))
    for name in understudy.__all__:
        assert getattr(understudy, name) is not None
    assert understudy.functional.__name__ == "understudy.functional"
    assert understudy.UserError is UserError
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = understudy.nonsense


def test_train_from_python_is_train_from_the_command_line(run, stand_in, tmp_path):
    calls = stand_in("training.run", "train", Path("runs/a"))
    result = run("train", "run=runs/a", "data=photos", "optimizer.lr=1e-3")
    assert (result.code, result.err) == (0, "")
    assert "runs/a" in result.out
    assert understudy.train(run="runs/a", data="photos", **{"optimizer.lr": 1e-3}) == Path("runs/a")
    file = tmp_path / "a.yaml"
    file.write_text(dump_config(calls[0][0][0]))
    understudy.train(file)
    understudy.train(load_config(TrainConfig, file))
    assert run("train", "-c", str(file)).code == 0
    configs = [args[0] for args, _ in calls]
    assert len(configs) == 5
    assert all(config == configs[0] for config in configs)
    assert type(configs[0]) is TrainConfig


def test_distill_and_its_methods(run, stand_in, tmp_path):
    calls = stand_in("training.run", "distill", Path("runs/s"))
    needed = ("run=runs/s", "data=photos", "teacher=runs/t")
    file = tmp_path / "a.yaml"
    file.write_text("methods: {pkd: {weight: 6}, frs: {y: 2}}\n")
    assert run("distill", *needed).code == 0
    assert run("distill", *needed, "-c", str(file)).code == 0
    assert (
        run("distill", *needed, "-c", str(file), "--method", "frs", "-m", "own.code:Fit", "methods.frs.x=1").code == 0
    )
    understudy.distill({"methods": ["frs", "own.code:Fit"]}, run="runs/s", data="photos", teacher="runs/t")
    configs = [args[0] for args, _ in calls]
    assert [config.methods for config in configs] == [
        DEFAULT_METHODS,
        {"pkd": {"weight": 6}, "frs": {"y": 2}},
        {"frs": {"y": 2, "x": 1}, "own.code:Fit": {}},
        {"frs": {}, "own.code:Fit": {}},
    ]
    assert type(configs[0]) is DistillConfig
    for other in ("methods.pfi.power=1", "methods=pfi"):
        result = run("distill", *needed, "--method", "frs", other)
        assert result.code == 2
        assert "--method frs" in result.err
    assert len(calls) == 4


# --- what the commands call -------------------------------------------------------------------------------------------


def test_resume(run, stand_in):
    calls = stand_in("training.run", "resume", Path("runs/a"))
    assert "runs/a" in run("resume", "runs/a").out
    assert calls == [((Path("runs/a"), []), {"accept_changes": False})]


def test_check_exits_with_2_where_there_is_a_fault(run, stand_in):
    class Report(str):
        ok = True

    report = Report("3 images")
    calls = stand_in("data.check", "check_data", report)
    assert run("check", "photos", "--sheet", "sheet.png").out == "3 images\n"
    ((arguments, options),) = calls
    assert (arguments, options["force"]) == (([Path("photos")], Path("sheet.png"), LIMITS), False)
    line, remarks = options["describe_boxes"](squares(8.0))
    assert "at data.shorter_side=160" in line, "the size of the images"
    assert f"anchors of {DetectorConfig().name}: 64 to 1024 pixels" in line, "the detector of a run by default"
    run("check", "photos", "--detector", "retinanet_resnet50")
    line, remarks = calls[1][1]["describe_boxes"](squares(8.0))
    assert "anchors of retinanet_resnet50: 16 to 407 pixels (detector.anchor_scale=2)" in line
    assert "data.shorter_side=320" in remarks[0]
    run("check", "photos", "--detector", "fcos_resnet18", "--shorter-side", "96")
    assert "at data.shorter_side=96" in calls[2][1]["describe_boxes"](squares(8.0))[0]
    report.ok = False
    assert run("check", "photos").code == 2


SCORED = {"score_threshold": 0.3, "aliases": None}
DEFAULTS = {"limits": None, "batch_size": 8, "workers": None, "precision": "32"}
OPTIONS = {"limits": None, "batch_size": 4, "workers": 0, "precision": "bf16"}


def test_evaluate_prints_a_table_or_nothing_but_json(run, stand_in):
    class Result(str):
        def to_dict(self):
            return {"coco": {"AP": 0.5, "APs": None}}

    def talkative(*args, **kwargs):
        print("creating index...")
        return Result("AP 50.0")

    calls = stand_in("evaluation", "evaluate", Result("AP 50.0"))
    assert run("evaluate", "runs/a").out == "AP 50.0\n"
    options = ["--batch-size", "4", "--workers", "0", "--precision", "bf16"]
    run("evaluate", "runs/a", "photos", "--split", "test", *options)
    assert calls[0] == ((Path("runs/a"), None), {"split": None, **DEFAULTS, **SCORED})
    assert calls[1] == ((Path("runs/a"), Path("photos")), {"split": "test", **OPTIONS, **SCORED})
    understudy.evaluation.evaluate = talkative
    result = run("evaluate", "runs/a", "--json")
    assert json.loads(result.out) == {"coco": {"AP": 0.5, "APs": None}}
    assert "creating index" in result.err


def test_predict(run, stand_in):
    calls = stand_in("evaluation.prediction", "predict", [{}, {}])
    assert run("predict", "runs/a", "photos", "-o", "found").out.startswith("2 detections")
    options = ["--batch-size", "4", "--workers", "0", "--precision", "bf16"]
    run("predict", "runs/a", "photos", "--output", "found", "--score", "0.5", "--split", "test", *options)
    assert calls[0] == ((Path("runs/a"), Path("photos"), Path("found"), 0.3), {"split": "val", **DEFAULTS})
    assert calls[1] == ((Path("runs/a"), Path("photos"), Path("found"), 0.5), {"split": "test", **OPTIONS})


def test_export(run, stand_in):
    calls = stand_in("export", "write", ["deploy/weights.pt: needs torch and torchvision"])
    assert "deploy/weights.pt: needs" in run("export", "runs/a", "deploy").out
    some = ["--format", "onnx", "--format", "torch", "--size", "320x416", "--batch", "2", "--input", "uint8"]
    more = ["--opset", "20", "--score-threshold", "0.2", "--licence", "CC0", "--data", "photos", "--split", "test"]
    run("export", "runs/a", "deploy", *some, *more, "--int8", "voc", "--max-ap-loss", "2", "--calibration-photos", "9")
    plain = {"size": None, "batch": 1, "raw": False, "input": "float32", "licence": None, "score_threshold": None}
    no_int8 = {"data": None, "limit": 1.0, "calibrated": 64}
    assert calls[0][0] == (Path("runs/a"), Path("deploy"), ["torch"], plain, None, None, no_int8)
    options = {"size": (320, 416), "batch": 2, "raw": False, "input": "uint8", "licence": "CC0", "score_threshold": 0.2}
    quantise = {"data": Path("voc"), "limit": 2.0, "calibrated": 9}
    photos = (Path("photos"), "test")
    assert calls[1][0][2:] == (["onnx", "torch"], options | {"opset": 20}, *photos, quantise)
    result = run("export", "runs/a", "deploy", "--format", "onnx", "--size", "320")
    assert (result.code, result.err) == (
        2,
        "Error: --size 320: expected HxW, height and width in pixels, e.g. --size 320x416\n",
    )


def test_compare(run, stand_in):
    summarise = stand_in("compare.table", "summarise", "teacher 40.0")
    page = stand_in("report", "report_on", Path("page.html"))
    assert run("compare", "runs/t", "runs/s").out == "teacher 40.0\n"
    assert page == []
    assert "page.html" in run("compare", "runs/t", "runs/s", "--html", "page.html").out
    runs = [Path("runs/t"), Path("runs/s")]
    assert summarise[0] == ((runs,), {})
    assert page == [((Path("page.html"), "teacher 40.0"), {"force": False})]


def test_benchmark(run, stand_in, tmp_path):
    calls = stand_in("deployment.benchmark", "benchmark", "a 10.0 ms")
    page = stand_in("report.benchmark", "report_on_benchmark", Path("page.html"))
    assert run("benchmark", "a", "b.onnx").out == "a 10.0 ms\n"
    (detectors, data), options = calls[0]
    assert (detectors, data) == ([Path("a"), Path("b.onnx")], None)
    assert (options["batch"], options["threads"], options["measure_ap"], options["device"]) == (1, None, True, "cpu")
    line = "b.onnx --data d --batch 8 --threads 2 --runtime openvino --runtime onnxruntime --no-ap --html page.html"
    assert run("benchmark", *line.split()).out == "a 10.0 ms\n\nPage: page.html\n"
    (_, data), options = calls[1]
    assert (data, options["batch"], options["threads"], options["measure_ap"]) == (Path("d"), 8, 2, False)
    assert options["libraries"] == ["openvino", "onnxruntime"]
    assert page == [((Path("page.html"), "a 10.0 ms"), {"force": False})]
    (tmp_path / "there.csv").touch()
    assert run("benchmark", "a", "--csv", str(tmp_path / "there.csv")).code == 2
    assert run("benchmark", "a", "--csv", str(tmp_path / "there.csv" / "x.csv")).code == 2
    assert run("benchmark", "a", "--csv", "z", "--html", "z", "--force").code == 2
    assert len(calls) == 2  # refused before anything is measured


def test_demo(run, stand_in):
    calls = stand_in("demo", "run_demo", "table")
    assert run("demo").code == 0
    assert run("demo", "--seed", "3", "--output", "out", "--train-teacher").code == 0
    assert calls == [((Path("demo"), 0, False), {}), ((Path("out"), 3, True), {})]


def test_config_prints_a_file_that_loads(run, tmp_path):
    for kind, cls in (("train", TrainConfig), ("distill", DistillConfig)):
        file = tmp_path / f"{kind}.yaml"
        file.write_text(run("config", kind).out)
        assert isinstance(load_config(cls, file), cls)
        assert json.loads(run("config", kind, "--schema").out)["title"] == cls.__name__
    assert run("config").out == run("config", "train").out


def test_detectors_and_methods_are_listed(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = run("detectors").out
    assert "retinanet           fcos            gfl    faster_rcnn\n" in listed
    assert "\nmobilenet_v2  " in listed
    assert "FCOS" in run("detectors", "fcos_resnet18", "width_mult=0.25", "neck_channels=16").out
    assert run("detectors", "fcos_resnet1B").code == 2
    assert "did you mean 'fcos_resnet18'?" in run("detectors", "fcos_resnet1B").err
    assert "\n  pfi             The student imitates" in run("methods", "--short").out
    assert "frs_feature, frs_class" not in run("methods", "--short").out
    assert "frs_feature, frs_class" in run("methods").out
    explained = run("methods", "frs").out
    assert "methods.frs.feature_weight=null" in explained
    assert "retinanet: feature_weight=0.005, class_weight=0.02" in explained
    prose = [line for line in explained.splitlines() if not line.startswith("    ") or "\\" not in line]  # no formulas
    assert max(map(len, prose)) <= 80


def test_explained_options_are_options(run):
    options = [line.strip() for line in run("methods", "frs").out.splitlines() if line.startswith("  methods.")]
    config = load_config(DistillConfig, None, ["run=r", "data=d", "teacher=t", *options])
    assert len(config.methods["frs"]) == len(options) >= 3
    from understudy.methods.loading import method_options

    method_options("frs")(**config.methods["frs"])


# --- exit codes and messages ------------------------------------------------------------------------------------------

NEEDED = ("run=r", "data=d")
LONG = "RM compares anchors one to one: " + "the student has 1 anchor per cell [fcos_r18], the teacher 9; " * 3


@pytest.mark.parametrize(
    ("module", "function", "command"),
    [
        ("training.run", "train", ("train", *NEEDED)),
        ("training.run", "distill", ("distill", *NEEDED, "teacher=t")),
        ("training.run", "resume", ("resume", "r")),
        ("data.check", "check_data", ("check", "d")),
        ("evaluation", "evaluate", ("evaluate", "r")),
        ("evaluation", "evaluate", ("evaluate", "r", "--json")),
        ("analysis.swap", "swap_test", ("swap", "t", "s")),
        ("analysis.swap", "swap_test", ("analyse", "swap", "t", "s")),
        ("analysis.richness", "analyse_richness", ("analyse", "richness", "t")),
        ("analysis.entropy", "analyse_entropy", ("analyse", "entropy", "t")),
        ("analysis.ranks", "analyse_ranks", ("analyse", "ranks", "t", "s")),
        ("analysis.imitation", "analyse_imitation", ("analyse", "imitation", "t", "s")),
        ("analysis.regions", "analyse_regions", ("analyse", "regions", "-o", "out")),
        ("evaluation.prediction", "predict", ("predict", "r", "d", "-o", "out")),
        ("export", "write", ("export", "r", "out")),
        ("compare.table", "summarise", ("compare", "r")),
        ("demo", "run_demo", ("demo",)),
    ],
)
def test_wrong_input_to_every_command(run, stand_in, module, function, command):
    stand_in(module, function, error=UserError(LONG))
    result = run(*command)
    assert (result.code, result.out, result.err) == (2, "", f"Error: {LONG}\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError.listing("Two faults:", ["one", "two"]), 2, "Error: Two faults:\n  - one\n  - two\n"),
        (RunError("The loss is not a number."), 1, "Error: The loss is not a number.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (KeyboardInterrupt("Go on with: understudy resume r"), 130, "Go on with: understudy resume r\n"),
    ],
    ids=["several faults", "failed run", "interrupted", "interrupted with a way on"],
)
def test_exit_codes(run, stand_in, error, code, message):
    stand_in("training.run", "train", error=error)
    result = run("train", *NEEDED)
    assert (result.code, result.out, result.err) == (code, "", message)


def test_too_little_memory_names_the_options_of_every_command(run, stand_in):
    stand_in("export", "write", error=MemoryError())
    result = run("export", "runs/a", "deploy", "--format", "onnx", "--size", "9000x9000")
    assert (result.code, result.out) == (1, "")
    for option in ("batch_size", "--batch-size", "--batch)", "data.shorter_side", "--size", "--workers"):
        assert option in result.err


@pytest.mark.parametrize("writable", [True, False])
def test_our_own_bugs_write_their_traceback_to_a_file(run, stand_in, tmp_path, monkeypatch, writable):
    monkeypatch.chdir(tmp_path)
    if not writable:  # then into the folder for temporary files
        monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "absent")
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    stand_in("training.run", "train", error=ZeroDivisionError("ours\nand more"))
    result = run("train", *NEEDED)
    (file,) = tmp_path.iterdir()
    assert (result.code, result.out) == (70, "")
    bug = "This is a bug in understudy; please report it with"
    assert result.err == f"Internal error: ZeroDivisionError: ours and more. {bug} {file}\n"
    assert "Traceback" in file.read_text()
    assert "ZeroDivisionError: ours\nand more\n" in file.read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("distil",), "Did you mean 'distill'?"),
        (("nonsense",), "No such command 'nonsense'"),
        (("evaluate",), "Missing argument 'CHECKPOINT'"),
        (("evaluate", "r", "--jsn"), "--json"),
        (("predict", "r", "d"), "Missing option '--output'"),
        (("predict", "r", "d", "-o", "x", "--score", "3"), "--score: expected a number from 0 to 1, got 3"),
        (("check", "d", "--anchor-scale", "nan"), "--anchor-scale: expected a finite number above 0, got nan"),
        (("check", "d", "--anchor-scale", "-1"), "--anchor-scale: expected a finite number above 0, got -1"),
        (("config", "tran"), "expected train or distill, got tran"),
        (("methods", "fsr"), "did you mean 'frs'?"),
        (("train", "nofile"), '"nofile": expected key=value'),
        (
            ("train", "--lr", "0.1"),
            '"--lr": no such option (see --help); write keys without dashes, e.g. optimizer.lr=0.01',
        ),
        (("train", *NEEDED, "dta.flip=0"), "dta: no such key; did you mean data?"),
        (("distill", "--methods", "frs"), '"--methods": no such option; did you mean --method?'),
        (("train", "--confg=a.yaml"), '"--confg=a.yaml": no such option; did you mean --config?'),
        (("train", "--method", "frs"), '"--method": no such option (see --help); write keys without dashes'),
        (("methods", "frs,pfi"), "several methods: --method frs --method pfi"),
        (("methods", ":X"), "':X': not an import path; expected package.module:Class"),
        (("train", "-c", "absent.yaml"), "The config file absent.yaml does not exist"),
        (("distill", *NEEDED), "teacher: missing; expected a path, e.g. teacher=runs/teacher"),
    ],
)
def test_wrong_input_exits_with_2_and_says_what_to_do(run, command, message):
    result = run(*command)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "Traceback" not in result.err


# --- bad input against the real modules -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("check",), ("evaluate",), ("export",), ("predict",), ("resume",), ("compare",)])
def test_paths_that_do_not_exist(run, tmp_path, command):
    more = {"predict": [str(tmp_path), "-o", str(tmp_path / "out")], "export": [str(tmp_path / "out")]}
    result = run(*command, str(tmp_path / "absent"), *more.get(command[0], []))
    assert (result.code, result.out) == (2, "")
    assert "absent" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"cos\nsystem\n(S'echo hacked'\ntR."])
def test_files_that_are_no_checkpoint(run, tmp_path, content):
    file = tmp_path / "best.ckpt"
    file.write_bytes(content)
    result = run("evaluate", str(file))
    assert (result.code, result.out) == (2, "")
    assert "best.ckpt" in result.err


def test_training_with_wrong_input_writes_nothing(run, tmp_path):
    (tmp_path / "empty").mkdir()
    target = tmp_path / "run"
    for wrong in (["data=" + str(tmp_path / "absent")], ["data=" + str(tmp_path / "empty")]):
        result = run("train", f"run={target}", *wrong)
        assert result.code == 2, result.err
        assert not target.exists()
