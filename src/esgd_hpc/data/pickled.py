"""How to read a pickle of plain values and uint8 arrays without unpickling it.

A pickle is a program, which may import and call what it names. Here `pickletools` splits the bytes
into instructions, and the few that plain values need are carried out. No name is ever looked up:
those that numpy writes only say that an array follows. Work grows with the number of instructions,
never with what they repeat.
"""

import io
import math
import pickletools
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

_MAX_INSTRUCTIONS = 200_000
"""A batch of CIFAR-10 that Python 3 wrote in protocol 2 has 90,000."""
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")
_TEXTS = (
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_ENCODE = "_codecs encode"
_DTYPE = "numpy dtype"
_NDARRAY = "numpy ndarray"
_NEW_ARRAY = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")

T = TypeVar("T")


class NotPlain(ValueError):
    """The pickle is damaged, or asks for more than plain values and uint8 arrays."""


class PickledArray:
    """A uint8 array of a pickle, whose bytes are looked at only when it is asked for."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] = ()

    def take(self, state: tuple[Any, ...]) -> None:
        """Keep what numpy writes of an array: version, shape, type, order and bytes."""
        self._state = state

    def array(self) -> npt.NDArray[np.uint8]:
        """Return it in its shape, read-only. Raises NotPlain."""
        if len(self._state) != 5:
            raise NotPlain("it is damaged: it has an array without shape and bytes")
        _, shape, kind, in_columns, text = self._state
        _as(_Uint8, kind)
        sizes = [_as(int, size) for size in _as(tuple, shape)]
        try:
            flat = np.frombuffer(_as(str, text).encode("latin-1"), np.uint8)
        except UnicodeEncodeError:
            raise NotPlain("it is damaged: its array is made of letters, not of bytes") from None
        if not 1 <= len(sizes) <= 4 or min(sizes) < 1 or math.prod(sizes) != flat.size:
            raise NotPlain(f"it has an array of shape {sizes[:4]} made of {flat.size} bytes")
        return flat.reshape(sizes, order="F" if in_columns else "C")


class _Name(NamedTuple):
    """What the pickle calls by name."""

    text: str


class _Uint8:
    """numpy's description of uint8."""


def read_pickle(content: bytes) -> Any:
    """Return what a pickle of protocols 2 to 4 describes.

    That may be made of dicts with text keys, lists, tuples, whole numbers, true, false, None, texts
    and bytes, and of uint8 arrays as numpy writes them (`PickledArray`). Texts of Python 2 and
    bytes come as str, one character a byte, so that both versions' files look alike. Raises
    NotPlain.
    """
    try:
        return _run(content)
    except NotPlain:
        raise
    except (ValueError, IndexError, KeyError) as error:
        raise NotPlain(f"it is damaged: {str(error)[:80]}") from None


def _run(content: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
        name = opcode.name
        if number == _MAX_INSTRUCTIONS:
            raise NotPlain(f"it has more than {_MAX_INSTRUCTIONS:,} instructions")
        if name in _NUMBERS:
            stack.append(argument)
        elif name in _TEXTS:
            stack.append(argument.decode("latin-1") if isinstance(argument, bytes) else argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[_as(int, argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_as(int, argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(tuple(_popped(stack, _TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(_popped_to_mark(stack)))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("APPEND", "APPENDS"):
            items = _popped(stack, 1) if name == "APPEND" else _popped_to_mark(stack)
            _as(list, stack[-1]).extend(items)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("SETITEM", "SETITEMS"):
            items = _popped(stack, 2) if name == "SETITEM" else _popped_to_mark(stack)
            _put(_as(dict, stack[-1]), items)
        elif name == "GLOBAL":
            stack.append(_Name(_as(str, argument)))
        elif name == "STACK_GLOBAL":
            module, attribute = _popped(stack, 2)
            stack.append(_Name(f"{_as(str, module)} {_as(str, attribute)}"))
        elif name == "REDUCE":
            function, arguments = _popped(stack, 2)
            stack.append(_called(_as(_Name, function).text, *_as(tuple, arguments)))
        elif name == "BUILD":
            (state,) = _popped(stack, 1)
            if not isinstance(stack[-1], _Uint8):  # of which it says no more than its name does
                _as(PickledArray, stack[-1]).take(_as(tuple, state))
        elif name == "STOP":
            return _popped(stack, 1)[0]
        elif name not in ("PROTO", "FRAME"):
            raise NotPlain(f"it has the instruction {name}, which plain values do not need")
    raise NotPlain("it is damaged: it has no end")


def _popped(stack: list[Any], count: int) -> list[Any]:
    taken = [stack.pop() for _ in range(count)][::-1]
    if any(value is _MARK for value in taken):
        raise NotPlain("it is damaged: it takes more from its stack than it put there")
    return taken


def _popped_to_mark(stack: list[Any]) -> list[Any]:
    taken = []
    while (value := stack.pop()) is not _MARK:
        taken.append(value)
    return taken[::-1]


def _put(target: dict[str, Any], items: list[Any]) -> None:
    """Keys must be texts: to hash a tuple of tuples of tuples ... can take forever."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_as(str, key)] = value


def _called(function: str, *arguments: Any) -> Any:
    """Return what one of the four names that are known would make; all others are refused."""
    if function == _ENCODE and arguments[1:] == ("latin1",):  # bytes, by Python 3 in protocol 2
        return _as(str, arguments[0])
    if function in _NEW_ARRAY and _as(_Name, arguments[0]).text == _NDARRAY:
        return PickledArray()
    if function == _DTYPE:
        kind = _as(str, arguments[0])
        if kind == "u1":
            return _Uint8()
        raise NotPlain(f"it has an array of type {kind[:20]!r}, not 'u1' for uint8")
    raise NotPlain(f"it would call {function.replace(' ', '.')[:80]}")


def _as(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise NotPlain(f"it has a {type(value).__name__} where a {kind.__name__} belongs")
    return value
