"""The inputs of a model: photos, arrays and lines of text, each an `Item` that is read only when it is needed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxq8.cli.models import attribute
from jaxq8.cli.photos import Photos, is_photo
from jaxq8.cli.problems import Failure, Misuse, foreign, short
from jaxq8.errors import QuantizationError

# One array for each input of the model, without the axis of the batch.
Example = tuple[np.ndarray[Any, Any], ...]


class InputError(Failure):
    """One input that cannot be used; `jaxq8 run` continues without it."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
      name: Path of a photo, or a name such as ``file.npy[3]`` or ``file.txt:4``.
      read: A function that reads the input.
      ragged: Whether its arrays, as the tokens of a text, may be filled up with zeros at their ends to the length of others.
    """

    name: str
    read: Callable[[], Example]
    ragged: bool = False

    def example(self) -> Example:
        """Reads the arrays that the model gets.

        Raises:
          InputError: The input is unreadable, or holds NaN or infinity; the message names it.
        """
        try:
            arrays = self.read()
        except QuantizationError as error:
            raise InputError(str(error)) from error
        except Exception as error:  # the user's own preprocessing may raise anything
            raise InputError(
                f"{self.name}: cannot be read ({short(error)}); repair it or leave it out"
            ) from error
        for array in arrays:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(f"{self.name}: holds NaN or infinity; repair it or leave it out")
        return arrays


@dataclasses.dataclass(frozen=True)
class Reader:
    """How files become examples.

    Attributes:
      photos: How an image file becomes an array if no function is given.
      preprocess: The user's own function. It takes one photo (PIL.Image) and returns its array or arrays without a batch axis,
        or takes a list of one text and returns arrays with a batch axis.
    """

    photos: Photos
    preprocess: Callable[..., Any] | None = None

    def items(self, files: Iterable[str]) -> list[Item]:
        """The inputs in files and folders, each name once, in the given order.

        Raises:
          Failure: A path does not exist, holds no inputs, or is not a complete file of arrays.
        """
        found: dict[str, Item] = {}
        for file in files:
            for item in self._of(Path(file)):
                found.setdefault(item.name, item)
        return list(found.values())

    def _of(self, path: Path) -> list[Item]:
        """The inputs in one file or folder."""
        if path.is_dir():
            photos = sorted(p for p in path.rglob("*") if is_photo(p))
            if not photos:
                raise Failure(f"{path}: holds no images; check the folder")
            return [self._photo(p) for p in photos]
        if not path.exists():
            raise Failure(f"{path}: no such file or folder; check the path")
        if path.suffix in (".npy", ".npz"):
            return _arrays(path)
        return self._texts(path) if path.suffix == ".txt" else [self._photo(path)]

    def _photo(self, path: Path) -> Item:
        def read() -> Example:
            image = self.photos.open(path)
            return _tuple(self.preprocess(image) if self.preprocess else self.photos.array(image))

        return Item(str(path), read)

    def _texts(self, path: Path) -> list[Item]:
        preprocess = self.preprocess
        if preprocess is None:
            raise Misuse(
                f"{path}: texts need --preprocess MODULE:FUNCTION, which makes arrays of a list of them"
            )
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise Failure(f"{path}: is not UTF-8 text ({error}); convert it") from error

        def reader(line: str) -> Callable[[], Example]:
            return lambda: tuple(np.asarray(a)[0] for a in _tuple(preprocess([line])))

        items = [
            Item(f"{path}:{i}", reader(line), ragged=True) for i, line in enumerate(lines, 1) if line.strip()
        ]
        if not items:
            raise Failure(f"{path}: holds no text; one input a line is wanted")
        return items


def _arrays(path: Path) -> list[Item]:
    """The examples along the first axis of an .npy file, or of all arrays of an .npz file.

    The arrays of an .npz file are the model's inputs in their order.
    """
    try:
        arrays = _npz(path) if path.suffix == ".npz" else [np.load(path, mmap_mode="r", allow_pickle=False)]
    except Exception as error:  # zipfile, zlib and NumPy raise errors of their own
        raise Failure(f"{path}: is not a whole file of arrays ({short(error)}); write it again") from error
    sizes = {a.shape[:1] for a in arrays}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        shapes = ", ".join(str(list(a.shape)) for a in arrays)
        raise Failure(
            f"{path}: shapes {shapes} have no common first axis of examples; stack examples along it"
        )

    def reader(index: int) -> Callable[[], Example]:
        return lambda: tuple(np.asarray(a[index]) for a in arrays)

    return [Item(f"{path}[{i}]", reader(i)) for i in range(arrays[0].shape[0])]


def _npz(path: Path) -> list[np.ndarray[Any, Any]]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as opened:
        return [opened[name] for name in opened.files]


def _tuple(x: Any) -> Example:
    return tuple(np.asarray(a) for a in x) if isinstance(x, tuple | list) else (np.asarray(x),)


def stacked(
    named: Sequence[tuple[str, Example]], expected: Sequence[Any] = (), ragged: bool = False
) -> Example:
    """Stacks examples to one batch.

    Args:
      named: The name and the arrays of each example.
      expected: Shapes and dtypes of the model's inputs with the axis of the batch, if they are known; arrays are converted to
        these dtypes.
      ragged: Whether arrays are filled up with zeros at the end of their first axis.

    Returns:
      One array for each input of the model, with the axis of the batch in front.

    Raises:
      InputError: Number, shapes or dtypes do not fit; the message names the input.
    """
    count = len(expected) or len(named[0][1])
    for name, example in named:
        if len(example) != count:
            raise InputError(
                f"{name}: has {len(example)} arrays, the model takes {count}; give all of its inputs"
            )
    shapes = [tuple(e.shape[1:]) for e in expected] or [a.shape for a in named[0][1]]
    if ragged:
        for i, shape in enumerate(shapes):
            arrays = [example[i] for _, example in named]
            shapes[i] = shape if expected else _longest(shape, arrays)
    rows: list[list[Any]] = [[] for _ in range(count)]
    for name, example in named:
        for i, array in enumerate(example):
            rows[i].append(_fitted(name, _filled(array, shapes[i]) if ragged else array, shapes[i]))
    batch = tuple(np.stack(row) for row in rows)
    if not expected:
        return batch
    first_name = named[0][0]
    return tuple(_converted(a, e, first_name) for a, e in zip(batch, expected, strict=True))


def _longest(shape: tuple[int, ...], arrays: list[Any]) -> tuple[int, ...]:
    """The shape with the longest first axis of all arrays; a scalar has none."""
    return (max(a.shape[0] for a in arrays), *shape[1:]) if shape else shape


def _filled(array: Any, shape: tuple[int, ...]) -> Any:
    """The array with zeros at the end of its first axis, up to that of `shape`."""
    missing = shape[0] - array.shape[0] if shape and array.ndim else 0
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing > 0 else array


def _fitted(name: str, array: Any, shape: tuple[Any, ...]) -> Any:
    """The array, if it has this shape; sizes that are not integers are symbolic and may be anything."""
    same = len(array.shape) == len(shape) and all(
        not isinstance(n, int) or n == m for n, m in zip(shape, array.shape, strict=True)
    )
    if not same:
        raise InputError(
            f"{name}: has shape {list(array.shape)} instead of {list(shape)}; prepare it as the model's inputs are"
        )
    return array


def _converted(array: Any, expected: Any, name: str) -> Any:
    if not np.can_cast(array.dtype, expected.dtype, "same_kind"):
        raise InputError(f"{name}: is {array.dtype}, the model takes {expected.dtype}; convert it")
    return array.astype(expected.dtype, copy=False)


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in groups of `size`; which items are in one group depends only on the list."""
    return [items[i : i + size] for i in range(0, len(items), size)]


Read = list[tuple[Item, Example | InputError]]


def read_ahead(groups: Iterable[Sequence[Item]], ahead: int = 2) -> Iterator[Read]:
    """Yields each group with its examples, which threads read a few groups ahead, so that reading and computing overlap."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        waiting: list[list[tuple[Item, Any]]] = []
        try:
            for group in groups:
                waiting.append([(item, pool.submit(_attempt, item)) for item in group])
                if len(waiting) > ahead:
                    yield [(item, future.result()) for item, future in waiting.pop(0)]
            while waiting:
                yield [(item, future.result()) for item, future in waiting.pop(0)]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _attempt(item: Item) -> Example | InputError:
    try:
        return item.example()
    except InputError as error:
        return error


def whole_batches(items: Sequence[Item], size: int, expected: Sequence[Any] = ()) -> Iterator[Example]:
    """Yields batches for calibration and comparison; an input that cannot be read is an error, since every input counts."""
    for group in read_ahead(batches(items, size)):
        named = []
        for item, example in group:
            if isinstance(example, InputError):
                raise example
            named.append((item.name, example))
        yield stacked(named, expected, group[0][0].ragged)


def imported(name: str | None) -> Callable[..., Any] | None:
    """The function that --preprocess names; None without the option."""
    if name is None:
        return None
    function = attribute(name)
    with foreign(f"--preprocess {name}", "name a function"):
        if not callable(function):
            raise Misuse(f"--preprocess {name} is a {type(function).__name__}; name a function")
    return function
