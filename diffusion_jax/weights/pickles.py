"""torch's pickled checkpoints (.ckpt, .bin, .pt, .th), read without torch and safely.

A pickle is a program. Here only the instructions that build numbers, strings, plain
containers and tensors are carried out, the rule of `torch.load(weights_only=True)`: a
global is a name that is looked up in a short list, never imported and never called.
The file is a zip archive: the pickle itself, and one entry of bytes for every storage.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAGICS = {
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19": "is a checkpoint in torch's format "
    "from before 1.6; where torch is installed: "
    "torch.save(torch.load(IN, weights_only=True), OUT)",
    b"<!DO": "is an HTML page, not a checkpoint; download the file itself",
    b"<htm": "is an HTML page, not a checkpoint; download the file itself",
    b"version https://git-lfs": "is a git-lfs pointer; `git lfs pull` gets the file",
}
ITEMS = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
STORAGES = {f"torch.{name}Storage": np.dtype(item) for name, item in ITEMS.items()}
UNTYPED = "torch.storage.UntypedStorage"
DTYPES = {f"torch.{np.dtype(item).name}": np.dtype(item) for item in ITEMS.values()}
DTYPES |= {
    f"torch.{np.dtype(item).name}": np.dtype(item)
    for item in (np.uint16, np.uint32, np.uint64)
}
# What trainers leave beside the weights: names that are kept as names, and dropped.
INERT = {
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.ModelCheckpoint",
    "torch.device",
}


class Global(NamedTuple):
    """The name of something that a pickle refers to, or a use of an inert one."""

    name: str


class Storage(NamedTuple):
    """The bytes of one or several tensors, in an entry of the archive."""

    archive: zipfile.ZipFile
    entry: str
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Pickled:
    """A tensor that is not read yet: a strided window on a storage, in items."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        item = self.dtype.itemsize
        with self.storage.archive.open(self.storage.entry) as file:
            file.seek(self.offset * item)
            window = file.read(_extent(self.shape, self.strides) * item)
        items = np.frombuffer(window, self.dtype)
        array = np.lib.stride_tricks.as_strided(
            items, self.shape, [item * stride for stride in self.strides]
        )
        return np.ascontiguousarray(array, dtype).reshape(self.shape)


def read(path: str | pathlib.Path) -> Any:
    """What was pickled, with a `Pickled` for every tensor and a `Global` for a name."""
    path = pathlib.Path(path)
    archive = _open(path)
    entries = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    root = entries[0].removesuffix("data.pkl") if entries else ""
    if len(entries) != 1 or f"{root}constants.pkl" in archive.namelist():
        raise ValueError(f"{path} is a zip archive, but not a checkpoint of torch.save")
    if f"{root}byteorder" in archive.namelist():
        order = archive.read(f"{root}byteorder")
        if order != b"little":
            raise ValueError(
                f"{path} has the byte order {order!r}; only little is read"
            )
    try:
        return _run(
            archive.read(entries[0]), functools.partial(_storage, archive, root)
        )
    except Forbidden as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # any at all: the file says what is done
        raise ValueError(f"{path} is a damaged pickle: {error!r}") from error


def tensors(content: Any, *, key: str | None = None) -> dict[str, Pickled]:
    """The tensors of a state dict: `content[key]`, where not given that of
    "state_dict" if there is one, else the content itself. All else is dropped.
    """
    if not isinstance(content, dict):
        raise ValueError(f"the pickle is a {type(content).__name__}, not a state dict")  # noqa: TRY004
    inner = {name: value for name, value in content.items() if isinstance(value, dict)}
    if key is None and "state_dict" in inner:
        key = "state_dict"
    if key is not None and key not in inner:
        raise ValueError(f"the pickle has no dict {key!r}; one of {sorted(inner)}")
    found = content if key is None else inner[key]
    kept = {str(k): v for k, v in found.items() if isinstance(v, Pickled)}
    if not kept:
        choices = [
            name
            for name, value in inner.items()
            if any(isinstance(entry, Pickled) for entry in value.values())
        ]
        hint = f"give --key, one of {choices}" if choices else "it has no weights"
        raise ValueError(f"no tensor in {key or 'the pickle'}: {hint}")
    return kept


# ---- the archive --------------------------------------------------------------------


def _open(path: pathlib.Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open("rb") as file:
        start = file.read(32)
    for magic, reason in MAGICS.items():
        if start.startswith(magic):
            raise ValueError(f"{path} {reason}")
    if start[8:9] == b"{":
        raise ValueError(f"{path} is a safetensors file already")
    if start[:2] != b"PK":
        raise ValueError(f"{path} is not a checkpoint of torch.save")
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise ValueError(f"{path} is truncated: its zip archive has no end") from None


def _storage(archive: zipfile.ZipFile, root: str, reference: Any) -> Storage:
    """The storage of a persistent id ("storage", type, entry, device, number)."""
    _, kind, entry, *_ = reference
    if kind.name == UNTYPED:
        dtype = np.dtype(np.uint8)
    elif kind.name in STORAGES:
        dtype = STORAGES[kind.name]
    else:
        raise Forbidden(f"holds a storage of {kind.name}; one of {sorted(STORAGES)}")
    return Storage(archive, archive.getinfo(f"{root}data/{entry}").filename, dtype)


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many items a strided window spans."""
    if math.prod(shape) == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))


# ---- what may be built --------------------------------------------------------------


class Forbidden(Exception):
    """The pickle asks for something that is not data."""


def _tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_) -> Pickled:
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or min(numbers) < 0:
        raise ValueError(f"a tensor of shape {shape}, strides {strides} at {offset}")
    size = storage.archive.getinfo(storage.entry).file_size // storage.dtype.itemsize
    if offset + _extent(shape, strides) > size:
        raise ValueError(f"a tensor of shape {shape} does not fit in {storage.entry}")
    return Pickled(storage, offset, tuple(shape), tuple(strides))


def _tensor_of_dtype(storage, offset, shape, strides, grad, hooks, dtype, *_):
    if dtype.name not in DTYPES:
        raise Forbidden(f"holds a tensor of {dtype.name}; one of {sorted(DTYPES)}")
    storage = storage._replace(dtype=DTYPES[dtype.name])
    return _tensor(storage, offset, shape, strides)


CONSTRUCTORS: dict[str, Callable] = {
    "collections.OrderedDict": dict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "_codecs.encode": lambda text, *_: text.encode("latin1"),  # bytes, in protocol 2
    "builtins.set": set,
    "__builtin__.set": set,
}
NAMES = {*CONSTRUCTORS, *STORAGES, UNTYPED, *DTYPES, *INERT}


def _global(name: str) -> Global:
    if name not in NAMES:
        raise Forbidden(
            f"refers to {name}, which is not data; nothing was executed. Load it where "
            "it can be trusted and save its state dict alone"
        )
    return Global(name)


def _call(function: Any, arguments: tuple) -> Any:
    if not isinstance(function, Global):
        raise Forbidden(f"calls {type(function).__name__} {function!r:.40}")
    if function.name in INERT:
        return function
    if function.name not in CONSTRUCTORS:
        raise Forbidden(f"calls {function.name}")
    return CONSTRUCTORS[function.name](*arguments)


# ---- the machine --------------------------------------------------------------------

_MARK = object()
Stack = list[Any]


def _since_mark(stack: Stack) -> list[Any]:
    place = len(stack) - 1
    while stack[place] is not _MARK:
        place -= 1
        if place < 0:
            raise ValueError("no mark on the stack")
    found = stack[place + 1 :]
    del stack[place:]
    return found


def _tuple(stack: Stack, length: int) -> None:
    found = tuple(stack[len(stack) - length :])
    del stack[len(stack) - length :]
    stack.append(found)


def _set_items(stack: Stack, pairs: list[Any]) -> None:
    if not isinstance(stack[-1], dict):
        raise ValueError(f"items of a {type(stack[-1]).__name__}")  # noqa: TRY004
    stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))


def _dict(stack: Stack, pairs: list[Any]) -> None:
    stack.append({})
    _set_items(stack, pairs)


def _extend(stack: Stack, items: list[Any]) -> None:
    if isinstance(stack[-1], set):
        stack[-1].update(items)
    elif isinstance(stack[-1], list):
        stack[-1].extend(items)
    else:
        raise ValueError(f"items of a {type(stack[-1]).__name__}")  # noqa: TRY004


def _reduce(stack: Stack) -> None:
    arguments, function = stack.pop(), stack.pop()
    stack.append(_call(function, arguments))


def _build(stack: Stack) -> None:
    """Attributes, such as the `_metadata` of a state dict, are dropped."""
    stack.pop()
    if not isinstance(stack[-1], dict | Global):
        raise Forbidden(f"sets attributes of a {type(stack[-1]).__name__}")


def _pop_pair(stack: Stack) -> list[Any]:
    value, key = stack.pop(), stack.pop()
    return [key, value]


def _stack_global(stack: Stack) -> None:
    name, module = stack.pop(), stack.pop()
    stack.append(_global(f"{module}.{name}"))


# The instructions whose argument is pushed as it is.
PUSHED = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"),
    *("BINFLOAT", "FLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
CHANGED: dict[str, Callable[[Stack], Any]] = {
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": lambda stack: _tuple(stack, 1),
    "TUPLE2": lambda stack: _tuple(stack, 2),
    "TUPLE3": lambda stack: _tuple(stack, 3),
    "DICT": lambda stack: _dict(stack, _since_mark(stack)),
    "LIST": lambda stack: stack.append(_since_mark(stack)),
    "APPEND": lambda stack: _extend(stack, [stack.pop()]),
    "APPENDS": lambda stack: _extend(stack, _since_mark(stack)),
    "ADDITEMS": lambda stack: _extend(stack, _since_mark(stack)),
    "SETITEM": lambda stack: _set_items(stack, _pop_pair(stack)),
    "SETITEMS": lambda stack: _set_items(stack, _since_mark(stack)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
    "POP": lambda stack: stack.pop(),
}


def _run(data: bytes, load_storage: Callable[[Any], Storage]) -> Any:
    stack: Stack = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in PUSHED:
            stack.append(argument)
        elif name in MADE:
            stack.append(MADE[name]())
        elif name in CHANGED:
            CHANGED[name](stack)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_global(argument.replace(" ", ".")))
        elif name == "BINPERSID":
            stack.append(load_storage(stack.pop()))
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise Forbidden(f"has the instruction {name}, which is not data")
    raise ValueError("it does not end")
