"""Inputs of a model: photos, arrays and lines of text, each an `Item` that is read when its turn comes."""

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

Example = tuple[
    np.ndarray[Any, Any], ...
]  # one array for each input of the model, without the axis of the batch


class InputError(Failure):
    """One input that cannot be used; a run goes on without it."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
      name: Path of the photo, ``file.npy[3]``, or ``file.txt:4``.
      read: Reads it.
      ragged: Its arrays may be filled up with zeros at their ends to the length of others (tokens of a text).
    """

    name: str
    read: Callable[[], Example]
    ragged: bool = False

    def example(self) -> Example:
        """What the model gets.

        Raises:
          InputError: It is unreadable, or holds NaN or infinity; the message names it.
        """
        try:
            arrays = self.read()
        except QuantizationError as error:
            raise InputError(str(error)) from error
        except Exception as error:  # the user's own preprocessing raises what it likes
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
      photos: How an image file becomes an array where no function is given.
      preprocess: The user's own: of one photo (PIL.Image) to its array or arrays without batch axis, or of a list of one text
        to arrays with batch axis.
    """

    photos: Photos
    preprocess: Callable[..., Any] | None = None

    def items(self, files: Iterable[str]) -> list[Item]:
        """The inputs in files and folders, each name once, in the given order.

        Raises:
          Failure: A path does not exist, holds no inputs, or is no whole file of arrays.
        """
        found: dict[str, Item] = {}
        for file in files:
            for item in self._of(Path(file)):
                found.setdefault(item.name, item)
        return list(found.values())

    def _of(self, path: Path) -> list[Item]:
        if path.is_dir():
            photos = sorted(p for p in path.rglob("*") if is_photo(p))
            if not photos:
                raise Failure(f"{path}: holds no images; check the folder")
            return [self._photo(p) for p in photos]
        if not path.exists():
            raise Failure(f"{path}: no such file or folder; check the path")
        readers = {".npy": _arrays, ".npz": _arrays, ".txt": self._texts}
        return readers.get(path.suffix, lambda p: [self._photo(p)])(path)

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
    """The examples along the first axis of an .npy, or of all arrays of an .npz, which are the model's inputs in order."""
    try:
        arrays = _npz(path) if path.suffix == ".npz" else [np.load(path, mmap_mode="r", allow_pickle=False)]
    except Exception as error:  # zipfile, zlib and NumPy each have errors of their own
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
    """Examples as one batch.

    Args:
      named: (name, example) of each.
      expected: Shapes and dtypes with the axis of the batch, where they are known: arrays are converted to these dtypes.
      ragged: Fill arrays up with zeros at the end of their first axis.

    Raises:
      InputError: Number, shapes or dtypes do not fit; the message names the input.
    """
    count = len(expected) or len(named[0][1])
    shapes = [tuple(e.shape[1:]) for e in expected] or [a.shape for a in named[0][1]]
    if ragged:
        shapes = [_longest(shape, [e[i] for _, e in named], bool(expected)) for i, shape in enumerate(shapes)]
    rows: list[list[Any]] = [[] for _ in range(count)]
    for name, example in named:
        if len(example) != count:
            raise InputError(
                f"{name}: has {len(example)} arrays, the model takes {count}; give all of its inputs"
            )
        for i, array in enumerate(example):
            rows[i].append(_fitted(name, _filled(array, shapes[i]) if ragged else array, shapes[i]))
    batch = tuple(np.stack(row) for row in rows)
    return (
        tuple(_converted(a, e, named[0][0]) for a, e in zip(batch, expected, strict=True))
        if expected
        else batch
    )


def _longest(shape: tuple[int, ...], arrays: list[Any], fixed: bool) -> tuple[int, ...]:
    return shape if fixed or not shape else (max(a.shape[0] for a in arrays), *shape[1:])


def _filled(array: Any, shape: tuple[int, ...]) -> Any:
    missing = shape[0] - array.shape[0] if shape and array.ndim else 0
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing > 0 else array


def _fitted(name: str, array: Any, shape: tuple[Any, ...]) -> Any:
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
    """The items in groups; which are together depends on the list alone."""
    return [items[i : i + size] for i in range(0, len(items), size)]


Read = list[tuple[Item, Example | InputError]]


def read_ahead(groups: Iterable[Sequence[Item]], ahead: int = 2) -> Iterator[Read]:
    """Each group read, by threads that are a few groups ahead of who uses them: decoding photos and computing overlap."""
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
    """Batches for calibration and comparison, where every input counts: the first that cannot be read is an error."""
    for group in read_ahead(batches(items, size)):
        named = []
        for item, example in group:
            if isinstance(example, InputError):
                raise example
            named.append((item.name, example))
        yield stacked(named, expected, group[0][0].ragged)


def imported(name: str | None) -> Callable[..., Any] | None:
    """The function of --preprocess."""
    if name is None:
        return None
    function = attribute(name)
    with foreign(f"--preprocess {name}", "name a function"):
        if not callable(function):
            raise Misuse(f"--preprocess {name} is a {type(function).__name__}; name a function")
    return function
