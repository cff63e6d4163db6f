"""Files of ``torch.save`` are read without executing anything in them, and tensors as torch reads them."""

import builtins
import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from foreign_files import Malicious, mmdet_state, refusal, save
from torch import nn

from understudy.checkpoints import import_checkpoint
from understudy.checkpoints.unpickle import read_foreign
from understudy.errors import UserError

REFERENCES = Path(__file__).parents[1] / "mmdet_references"
LEGACY = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])

# --- nothing is executed ----------------------------------------------------------------------------------------------


def attacks(folder: Path) -> tuple[list[Malicious], list[Path]]:
    """Return three objects that make a file when they are unpickled, and these files."""
    proofs = [folder / f"proof{number}" for number in range(3)]
    return [
        Malicious(os.system, f"touch {proofs[0]}"),
        Malicious(builtins.exec, f"open({str(proofs[1])!r}, 'w').close()"),
        Malicious(builtins.eval, f"open({str(proofs[2])!r}, 'w').close()"),
    ], proofs


@LEGACY
@pytest.mark.parametrize("where", ["top", "message_hub", "meta", "state_dict"])
def test_a_malicious_pickle_runs_nothing(tmp_path, zipped, where):
    evil, proofs = attacks(tmp_path)
    state = {"weight": torch.ones(2)}
    content = {
        "top": evil,
        "message_hub": {"meta": {}, "state_dict": state, "message_hub": {"runtime_info": [{"deep": evil}]}},
        "meta": {"meta": evil, "state_dict": state},
        "state_dict": {"state_dict": {**state, "one": evil[0], "two": evil[1], "three": evil[2]}},
    }[where]
    file = tmp_path / "evil.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)

    skipped = read_foreign(file).skipped
    with pytest.raises(UserError):
        import_checkpoint(file, tmp_path / "out.ckpt")
    assert not any(proof.exists() for proof in proofs)
    assert skipped == ("posix.system", "__builtin__.exec", "__builtin__.eval")

    torch.load(file, weights_only=False)  # the attacks themselves work
    assert all(proof.exists() for proof in proofs)


@LEGACY
@pytest.mark.parametrize("number", range(3))
def test_a_file_that_is_one_malicious_object_runs_nothing(tmp_path, zipped, number):
    evil, proofs = attacks(tmp_path)
    file = tmp_path / "evil.pth"
    torch.save(evil[number], file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="no weights by name"):
        import_checkpoint(file, tmp_path / "out.ckpt")
    assert not proofs[number].exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_plain_malicious_pickle_runs_nothing(tmp_path, protocol):
    evil, proofs = attacks(tmp_path)
    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps(evil[0], protocol=protocol))
    with pytest.raises(UserError, match="plain pickle" if protocol else "text file"):
        import_checkpoint(file, tmp_path / "out.ckpt")
    assert not proofs[0].exists()
    pickle.loads(file.read_bytes())
    assert proofs[0].exists()


def archive(file: Path, program: bytes, **members: bytes) -> Path:
    """Write a file of ``torch.save`` with a given pickle."""
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", program)
        for name, content in members.items():
            made.writestr(f"archive/data/{name}", content)
    return file


@pytest.mark.parametrize(
    "program",
    [
        # protocol 4: a global by two strings, whose name has dots, of a module that is otherwise known
        b"\x80\x04\x8c\x0bcollections\x8c\x23OrderedDict.__init__.__globals__.get\x93\x8c\x01x\x85R.",
        b"\x80\x04\x8c\x05torch\x8c\x10serialization.os\x93)R.",
        # an attribute set on a global; on a stand-in for a function; on a class
        b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n}\x8c\x0c__defaults__Nsb.",
        b"\x80\x04ccollections\nOrderedDict\n}\x8c\x08__init__Nsb.",
        b"\x80\x04cbuiltins\ngetattr\n}\x8c\x08__call__Nsb.",
        # an instance made by the opcodes for classes
        b"\x80\x02(S'x'\nios\nsystem\n.",
        b"\x80\x02cos\nsystem\nS'x'\n\x85\x81.",
        b"\x80\x02(cos\nsystem\nS'x'\no.",
    ],
)
def test_handwritten_pickles_reach_nothing(tmp_path, program, monkeypatch):
    def forbidden(*_):
        raise SystemExit("something was called")

    monkeypatch.setattr(os, "system", forbidden)
    rebuild, ordered = torch._utils._rebuild_tensor_v2.__defaults__, OrderedDict.__init__
    file = archive(tmp_path / "evil.pth", program)
    with pytest.raises(UserError):
        import_checkpoint(file, tmp_path / "out.ckpt")
    assert torch._utils._rebuild_tensor_v2.__defaults__ == rebuild
    assert OrderedDict.__init__ is ordered
    # the stand-ins are unchanged, too
    torch.save({"state_dict": OrderedDict(a=torch.ones(2))}, tmp_path / "good.pth")
    assert torch.equal(read_foreign(tmp_path / "good.pth").value["state_dict"]["a"], torch.ones(2))


def test_objects_of_other_libraries_are_skipped_by_name():
    content = read_foreign(REFERENCES / "gfl" / "checkpoint.pth")
    assert "mmengine.logging.history_buffer.HistoryBuffer" in content.skipped
    assert "GFLHead" in content.value["meta"]["cfg"]


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_a_tensor_larger_than_the_file_is_refused(tmp_path):
    def tensor(size: int, stride: int) -> bytes:
        storage = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x02tQ"
        return (
            b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + b"K\x00J"
            + struct.pack("<i", size)
            + b"\x85K"
            + bytes([stride])
            + b"\x85\x89}tR."
        )

    good = archive(tmp_path / "good.pth", tensor(2, 1), **{"0": struct.pack("<2f", 1, 2)})
    assert read_foreign(good).value.tolist() == [1, 2]
    for size, stride in ((2_000_000_000, 0), (3, 1), (-1, 1)):
        file = archive(tmp_path / "bad.pth", tensor(size, stride), **{"0": struct.pack("<2f", 1, 2)})
        with pytest.raises(UserError, match="damaged"):
            read_foreign(file)


@LEGACY
def test_tensors_are_read_as_torch_reads_them(tmp_path, zipped):
    whole = torch.arange(24.0).reshape(4, 6)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
    content = {
        "state_dict": OrderedDict(whole=whole, view=whole[1:3, ::2].T, none=torch.zeros(0, 3), one=torch.tensor(5)),
        "dtypes": [whole.to(dtype) for dtype in dtypes],
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": (1, 2.5, "text", None, True, {"set"}, torch.Size([2, 3])),
    }
    file = tmp_path / "file.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    found, expected = read_foreign(file), torch.load(file, weights_only=False)
    assert found.skipped == ()
    assert found.value["plain"] == expected["plain"]
    pairs = [(found.value["state_dict"][key], value) for key, value in expected["state_dict"].items()]
    pairs += zip(found.value["dtypes"], expected["dtypes"], strict=True)
    for ours, theirs in [*pairs, (found.value["parameter"], expected["parameter"])]:
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)


# --- other files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\xff\xd8\xff\xe0 photo", "a JPEG image"),
        (b"<!DOCTYPE html><html>not found", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (struct.pack("<Q", 60) + b'{"weight":{"dtype":"F32"}}' + bytes(60), "a safetensors file"),
        (pickle.dumps({"weight": 1}), "a plain pickle"),
        (pickle.dumps(nn.Linear(1, 1)), "a plain pickle of .*Linear"),
        (b"\x80\x02garbage", "damaged"),
        (b"PK\x03\x04 but no archive", "damaged"),
        (bytes(range(256)), "damaged"),
    ],
)
def test_a_file_of_another_kind(tmp_path, content, message):
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    assert re.search(message, refusal(file, tmp_path))


def test_an_archive_of_something_else(tmp_path):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as zipped:
        zipped.writestr("photos/a.jpg", b"")
    file = tmp_path / "model.pth"
    file.write_bytes(made.getvalue())
    assert "a zip archive without weights" in refusal(file, tmp_path)


@LEGACY
def test_a_truncated_file(tmp_path, zipped):
    file = save(tmp_path, mmdet_state("gfl"), zipped=zipped)
    whole = file.read_bytes()
    for part in (0.1, 0.5, 0.99):
        file.write_bytes(whole[: int(part * len(whole))])
        assert re.search("damaged.*Was it copied completely", refusal(file, tmp_path))


def test_no_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nothing.pth", tmp_path)
