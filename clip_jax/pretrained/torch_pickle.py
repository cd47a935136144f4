"""The pickles inside PyTorch's files, read by a machine of our own that can call nothing.

Python's unpickler imports and calls whatever a file names. Here a name stays a name: the stack
holds plain values and the inert ones of `torch_values`, and the few functions of PyTorch that
weights need are done by that module. Any other name is refused before anything is built.
"""

import pickletools
from collections.abc import Mapping
from typing import Any

from clip_jax.pretrained import torch_values as values


def unpickle(data: bytes, sizes: Mapping[str, int]) -> Any:
    """The value that a pickle describes, out of dicts, lists, tuples, plain values and tensors.

    Args:
      sizes: bytes of each storage in the archive, by key.

    Raises:
      ValueError: the pickle asks for a class or function that is no part of weights, is damaged,
        or describes tensors that reach out of their storage.
    """
    machine = _Machine(sizes)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.step(opcode.name, argument)
        (value,) = machine.stack
    except values.Refused:
        raise
    # All that a pickle out of order can cause: an empty stack, a missing memo, a wrong operand.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as fault:
        raise values.Refused(f"holds a damaged pickle ({fault})") from fault
    return value


class _Machine:
    """Stack, marks and memo of the pickle language, and the opcodes that tensors need."""

    def __init__(self, sizes: Mapping[str, int]):
        self.stack: list[Any] = []
        self._sizes = sizes
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Do one opcode, whose argument `pickletools` has decoded."""
        push, pop = self.stack.append, self.stack.pop
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE"
                | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINSTRING" | "SHORT_BINSTRING"
                | "BINBYTES" | "SHORT_BINBYTES"
            ):  # fmt: skip
                push(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "MARK":
                self._marks.append(self.stack)
                self.stack = []
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                push({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[opcode])
            case "TUPLE":
                items = self._since_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [pop() for _ in range(int(opcode[-1]))]
                push(tuple(reversed(items)))
            case "APPEND" | "APPENDS":
                self._extend([pop()] if opcode == "APPEND" else self._since_mark())
            case "SETITEM" | "SETITEMS":
                self._set([pop(), pop()][::-1] if opcode == "SETITEM" else self._since_mark())
            case _:
                self._step_with_names(opcode, argument)

    def _step_with_names(self, opcode: str, argument: Any) -> None:
        """The opcodes by which Python's unpickler would import, make and call."""
        push, pop = self.stack.append, self.stack.pop
        match opcode:
            case "GLOBAL":
                push(values.known(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                if not (isinstance(name, str) and isinstance(module, str)):
                    raise values.Refused("names a class or function by something else than text")
                push(values.known(f"{module}.{name}"))
            case "BINPERSID":
                push(values.make_storage(pop(), self._sizes))
            case "REDUCE":
                arguments, function = pop(), pop()
                push(_call(function, arguments))
            case "NEWOBJ":
                _, kind = pop(), pop()
                if not _is_script(kind):
                    raise values.refuse(f"an object of {values.called(kind)}")
                push(values.ScriptObject(name=kind.name))
            case "BUILD":
                state = pop()
                _build(self.stack[-1], state)
            case "INST":
                raise values.refuse(argument.replace(" ", ".", 1))
            case "EXT1" | "EXT2" | "EXT4":
                raise values.refuse(f"extension {argument} of Python's copyreg")
            case _:
                raise values.refuse(f"the pickle opcode {opcode}")

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._marks.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise values.Refused(f"appends to {values.called(target)}, which is no list")
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise values.Refused(f"sets items of {values.called(target)}, which is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple of tuples of tuples ... could overflow the C stack.
            if not (key is None or isinstance(key, (str, int, float))):
                raise values.Refused(f"has {values.called(key)} as the key of a dict")
            target[key] = value


def _is_script(kind: Any) -> bool:
    return isinstance(kind, values.Name) and kind.name.startswith(values.SCRIPT)


def _call(function: Any, arguments: Any) -> Any:
    if _is_script(function):
        # A named tuple, whose values are no part of a model's state.
        return values.ScriptObject(name=function.name)
    if not (isinstance(function, values.Name) and function.name in values.FUNCTIONS):
        raise values.refuse(f"a call of {values.called(function)}")
    if not isinstance(arguments, tuple):
        raise values.Refused(f"calls {function.name} without a tuple of arguments")
    return values.FUNCTIONS[function.name](*arguments)


def _build(target: Any, state: Any) -> None:
    """Give an object its state. Dicts get theirs too (`_metadata`), of which nothing is kept."""
    if isinstance(target, values.ScriptObject):
        if target.attributes is not None or not isinstance(state, dict):
            raise values.Refused(f"sets the state of {target.name} twice, or not by a dict")
        target.attributes = state
    elif not (isinstance(target, dict) and isinstance(state, dict)):
        raise values.refuse(f"setting the state of {values.called(target)}")
