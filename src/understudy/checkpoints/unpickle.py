"""Read files of ``torch.save`` from any source, without executing anything in them.

A pickle names functions and can call them. This reader never looks up a name. Each name gives either a harmless
stand-in defined below (a dict, a tensor over bytes of the file), or an object that ignores every operation. So there is
nothing to call. Both formats of ``torch.save`` are read here: ``torch.load``, if it is not restricted to its own types,
has further ways into Python (TorchScript, tar files, source code, gradient hooks).
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from understudy.errors import UserError
from understudy.reading import require_file

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first pickle of the format before torch 1.6
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_FOREIGN_KINDS = (  # first bytes of files that are often renamed, or downloaded instead of weights
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a pointer to a file in Git LFS that was not fetched"),
)


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file.

    Attributes:
        value: tensors and plain values. Every other object is replaced by one without content.
        skipped: dotted names of the replaced objects, in the order of the file.
    """

    value: Any
    skipped: tuple[str, ...]


def read_foreign(file: Path) -> Content:
    """Read a file of ``torch.save`` in its present or its former format. Nothing in it is executed.

    Args:
        file: e.g. a checkpoint of mmdet or weights of torchvision.

    Raises:
        UserError: the file does not exist, has another format, or is damaged.
    """
    if file.exists():
        require_file(file, "checkpoint")
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            return _read(file, stream, size)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist; expected a checkpoint to import.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from error


def _read(file: Path, stream: BinaryIO, size: int) -> Content:
    start = stream.read(64)
    stream.seek(0)
    if kind := foreign_kind(start):
        raise UserError(f"{file} is {kind}, not a checkpoint: expected a file that torch.save wrote.")
    try:
        return _read_zip(file, stream) if start.startswith(b"PK") else _read_former(file, stream, size)
    except (UserError, OSError):
        raise
    except Exception as error:  # arbitrary bytes can make an unpickler raise any exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{file} is damaged or not a checkpoint ({reason}). Was it copied completely?") from error


def foreign_kind(start: bytes) -> str | None:
    """Return what a file is by its first 64 bytes; None if it may be one that torch.save wrote."""
    if not start:
        return "an empty file"
    for sign, kind in _FOREIGN_KINDS:
        if start.startswith(sign):
            return kind
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return "a safetensors file"
    if not start.startswith((b"\x80", b"PK")) and all(32 <= byte < 127 or byte in b"\t\n\r" for byte in start):
        return "a text file"
    return None


# --- the two formats --------------------------------------------------------------------------------------------------


def _read_zip(file: Path, stream: BinaryIO) -> Content:
    """Read the format since torch 1.6: a zip archive of one pickle and one member for each storage."""
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
        if "data.pkl" not in members or "constants.pkl" in members:
            what = "a TorchScript archive" if "constants.pkl" in members else "a zip archive without weights"
            raise UserError(f"{file} is {what}, not a checkpoint: expected a file that torch.save wrote.")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise UserError(f"{file} was compressed after torch.save wrote it: unpack it, and import the file inside.")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise UserError(f"{file} was written on a big-endian machine, which is not supported.")

        def storage(key: str, nbytes: int) -> torch.UntypedStorage:
            return _as_storage(archive.read(members[f"data/{key}"]))

        unpickler = _Unpickler(io.BytesIO(archive.read(members["data.pkl"])), storage)
        return Content(unpickler.load(), tuple(unpickler.skipped))


def _read_former(file: Path, stream: BinaryIO, size: int) -> Content:
    """Read the format before torch 1.6: five pickles, then the bytes of every storage."""
    allocated = 0

    def storage(key: str, nbytes: int) -> torch.UntypedStorage:
        nonlocal allocated
        allocated += nbytes
        if nbytes < 0 or allocated > size:
            raise ValueError("its tensors are larger than the file")
        return torch.UntypedStorage(nbytes)

    first = _Unpickler(stream, storage)
    if first.load() != _MAGIC_NUMBER:
        named = f" of {', '.join(list(first.skipped)[:5])}" if first.skipped else ""
        raise UserError(
            f"{file} is a plain pickle{named}, not a checkpoint: expected a file that torch.save wrote. "
            "Nothing in it was executed."
        )
    for _ in ("version of the protocol", "sizes of the machine's types"):
        _Unpickler(stream, storage).load()
    unpickler = _Unpickler(stream, storage)
    value = unpickler.load()
    for key in _Unpickler(stream, storage).load():
        dtype, empty = unpickler.storages[key]
        (count,) = struct.unpack("<q", stream.read(8))
        raw = stream.read(empty.nbytes())
        if len(raw) != empty.nbytes() or count * dtype.itemsize != len(raw):
            raise ValueError("it ends in the middle of its tensors")
        empty.copy_(_as_storage(raw))
    return Content(value, tuple(unpickler.skipped))


def _as_storage(raw: bytes) -> torch.UntypedStorage:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).untyped_storage() if raw else torch.UntypedStorage(0)


# --- stand-ins for the names in a pickle ------------------------------------------------------------------------------
# A pickle can also set attributes of the objects that it gets. So these objects have none, and ignore a state.


def _ignore(*_: Any, **__: Any) -> None:
    """Do nothing."""


class _Dict(dict):
    """Stand-in for OrderedDict. Its extra attributes (versions of modules) are ignored."""

    __slots__ = ()
    __setstate__ = staticmethod(_ignore)


class _Skipped:
    """Stand-in for every other name. It can be created, called and filled, and stays empty."""

    __slots__ = ()
    append = extend = add = __setitem__ = __setstate__ = staticmethod(_ignore)

    def __new__(cls, *_: Any, **__: Any) -> "_Skipped":
        return super().__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> "_Skipped":
        return self


class _RebuildTensor:
    """Stand-in for torch's functions that make a tensor over a storage."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> "Tensor | _Skipped":
        if not isinstance(storage, tuple):  # from an object that was pickled without torch.save
            return _Skipped()
        dtype, content = storage
        if math.prod(size) * dtype.itemsize > content.nbytes():
            raise ValueError(f"a tensor of shape {tuple(size)} is larger than its storage")
        return torch.empty(0, dtype=dtype).set_(content, offset, tuple(size), tuple(stride))


class _RebuildParameter:
    """Stand-in for torch's functions that turn a tensor into a parameter."""

    __slots__ = ()

    def __call__(self, data: Any, *_: Any) -> Any:
        return data


_STAND_INS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch", "Size"): tuple,
    **{
        (module, kind): kind_of
        for module in ("builtins", "__builtin__")
        for kind, kind_of in (("set", set), ("frozenset", frozenset))
    },
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Reads one pickle. ``skipped`` holds the names that it replaced, ``storages`` dtype and bytes by key."""

    def __init__(self, stream: Any, make_storage: Any):
        super().__init__(stream, encoding="utf-8")
        self.make_storage = make_storage
        self.skipped: dict[str, None] = {}  # an ordered set
        self.storages: dict[str, tuple[torch.dtype, torch.UntypedStorage]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for exactly this name; a dotted name (``OrderedDict.__init__``) is another name."""
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        self.skipped[f"{module}.{name}"] = None
        return _Skipped

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, torch.UntypedStorage]:
        """Return dtype and bytes of a storage."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view not in ([], [None]):
            raise ValueError("it contains tensors of an unsupported kind")
        if key not in self.storages:
            self.storages[key] = dtype, self.make_storage(key, count * dtype.itemsize)
        return dtype, self.storages[key][1]
