"""The normalisation that an ONNX network does itself, read from the first nodes of its graph.

Older files of insightface begin with Sub 127.5 and Mul 1/128 and take pixels from 0 to 255. Normalised once more they
see a nearly constant image, and still tell some people apart: 63 % where 99 % is right. So what the graph does and what
is stated are put together, and a whole that no network was trained on is refused, with the settings that fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adadistill.core.teachers.interface import TeacherError
from adadistill.core.teachers.preprocessing import Preprocessing

Floats = npt.NDArray[np.float64]

_MOST_NODES = 32
_EVERY_PIXEL: Final = np.array([[0.0], [1.0]])  # darkest and brightest, on the scale of mean and std
_INPUTS: Final[Mapping[str, tuple[float, float]]] = {
    "0 to 255": (0.0, 1.0 / 255.0),
    "0 to 1": (0.0, 1.0),
    "-1 to 1": (0.5, 0.5),
    "-127.5 to 127.5": (0.5, 1.0 / 255.0),
}
"""What networks take, with the mean and std that make it."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnNormalisation:
    """What a network does to each channel of its input before anything else: `scale * x + shift`."""

    scale: Floats
    """(3,) in the order of the input's channels."""
    shift: Floats
    """(3,)"""
    nodes: tuple[str, ...]
    """Kinds of the nodes that do it."""

    def check(self, wanted: Preprocessing, name: str) -> None:
        """Refuse stated settings that do not fit, where others do.

        Raises:
            TeacherError: as said, with those others.
        """
        seen = self._seen(np.array(wanted.mean), np.array(wanted.std))
        fitting = [(text, *made) for text, made in _INPUTS.items() if _plausible(self._seen(*made))]
        if _plausible(seen) or not fitting:
            return
        takes, mean, std = fitting[0]
        listed = [f"[{', '.join(f'{number:.6g}' for number in numbers)}]" for numbers in (wanted.mean, wanted.std)]
        raise TeacherError(
            f"{name} normalises its images itself: its graph begins with {', '.join(self.nodes)}, which makes sense of "
            f"numbers from {takes}. With the stated mean {listed[0]} and std {listed[1]} its first layer would see "
            f"numbers from {seen.min():.3g} to {seen.max():.3g}. State mean [{mean:g}, {mean:g}, {mean:g}] and std "
            f"[{std:.6g}, {std:.6g}, {std:.6g}]"
        )

    def _seen(self, mean: Floats | float, std: Floats | float) -> Floats:
        """(2, 3) what the first layer sees of the darkest and the brightest pixel."""
        return self.scale * ((_EVERY_PIXEL - mean) / std) + self.shift


def own_normalisation(model: Any, input_name: str, onnx: Any) -> OwnNormalisation | None:
    """Follow the images through the graph up to the first node that does more than scale and shift channels.

    Args:
        model: an `onnx.ModelProto`; external data is not looked at.

    Returns:
        None where nothing is scaled or shifted.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for entry in node.attribute if node.op_type == "Constant" else ():
            if entry.name in ("value_float", "value_floats"):
                constants[node.output[0]] = onnx.numpy_helper.from_array(np.array(entry.floats or entry.f, np.float32))
            elif entry.name == "value":
                constants[node.output[0]] = entry.t
    walk = _Walk(constants, onnx)
    current = input_name
    for _ in range(_MOST_NODES):
        readers = [node for node in graph.node if current in node.input and node.op_type != "Shape"]
        if len(readers) != 1 or not readers[0].output or not walk.passes(readers[0], current):
            break
        current = readers[0].output[0]
    scale, shift = np.empty(3), np.empty(3)
    scale[walk.order], shift[walk.order] = walk.scale, walk.shift
    if not walk.nodes or not (np.isfinite(scale) & np.isfinite(shift) & (scale != 0.0)).all():
        return None
    return OwnNormalisation(scale, shift, tuple(walk.nodes))


class _Walk:
    """Where a walk through a graph has come to: what was done to the channels so far."""

    def __init__(self, constants: Mapping[str, Any], onnx: Any) -> None:
        self._constants, self._onnx = constants, onnx
        self.scale, self.shift = np.ones(3), np.zeros(3)
        self.order = np.arange(3)  # input channels, as they now stand
        self._axis = 1  # of the channels
        self.nodes: list[str] = []

    def passes(self, node: Any, current: str) -> bool:
        """Take a node into account; False where it does something else."""
        kind, attributes = node.op_type, {entry.name: entry for entry in node.attribute}
        if kind in ("Identity", "Cast", "Dropout"):
            return True
        if kind == "Transpose" and "perm" in attributes and sorted(attributes["perm"].ints) == [0, 1, 2, 3]:
            self._axis = list(attributes["perm"].ints).index(self._axis)
            return True
        if kind in ("Gather", "Slice"):
            return self._reorders(node, attributes)
        done = self._affine(node, current, attributes)
        if done is None:
            return False
        factor, term = done
        with np.errstate(all="ignore"):  # nonsense ends as no normalisation
            self.scale, self.shift = factor * self.scale, factor * self.shift + term
        self.nodes.append(kind)
        return True

    def _affine(self, node: Any, current: str, attributes: Mapping[str, Any]) -> tuple[Floats, Floats] | None:
        """Factor and term of each channel."""
        kind, ones, zeros = node.op_type, np.ones(3), np.zeros(3)
        if kind == "Neg":
            return -ones, zeros
        if kind == "BatchNormalization" and self._axis == 1:
            if len(found := self._flat(node.input[1:5])) != 4:
                return None
            gamma, beta, mean, variance = found
            epsilon = attributes["epsilon"].f if "epsilon" in attributes else 1e-5
            factor = gamma / np.sqrt(np.maximum(variance, 0.0) + epsilon)
            return factor, beta - factor * mean
        if kind == "Conv" and self._axis == 1 and "group" in attributes and attributes["group"].i == 3:
            found = self._flat(node.input[1:])  # three groups with three weights are a factor for each channel
            return (found[0], (*found[1:], zeros)[0]) if found else None
        if kind not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
            return None
        first = node.input[0] == current
        values = self._values(node.input[1 if first else 0], flat=False)
        if values is None or (kind == "Div" and not first):
            return None
        if kind == "Add":
            return ones, values
        if kind == "Sub":
            return (ones, -values) if first else (-ones, values)
        with np.errstate(all="ignore"):
            return (values if kind == "Mul" else 1.0 / values), zeros

    def _reorders(self, node: Any, attributes: Mapping[str, Any]) -> bool:
        """Channels in another order: by a list of them, or backwards."""
        numbers = [self._integers(name) for name in node.input[1:]]
        chosen: Any = None
        if node.op_type == "Gather" and (attributes["axis"].i if "axis" in attributes else 0) == self._axis:
            chosen = numbers[0]
        elif len(numbers) == 4 and all(found is not None and len(found) == 1 for found in numbers):
            start, stop, axis, step = (int(found[0]) for found in numbers if found is not None)
            if axis == self._axis and step != 0:
                chosen = np.arange(3)[start:stop:step]
        if chosen is None or sorted(np.asarray(chosen).tolist()) != [0, 1, 2]:
            return False
        self.order, self.scale, self.shift = self.order[chosen], self.scale[chosen], self.shift[chosen]
        return True

    def _array(self, name: str, most: int) -> npt.NDArray[Any] | None:
        tensor = self._constants.get(name)
        if tensor is None or tensor.data_location == self._onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) > most:
            return None
        try:
            return np.asarray(self._onnx.numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError):  # damaged, which onnxruntime will say
            return None

    def _integers(self, name: str) -> npt.NDArray[Any] | None:
        values = self._array(name, 3)
        return None if values is None or values.dtype.kind != "i" else values.reshape(-1)

    def _flat(self, names: Sequence[str]) -> list[Floats]:
        """Constants for each channel; none where one of them is no such thing."""
        found = [values for name in names if (values := self._values(name, flat=True)) is not None]
        return found if len(found) == len(names) else []

    def _values(self, name: str, *, flat: bool) -> Floats | None:
        """(3,) a constant for each channel, None where it is no such thing."""
        values = self._array(name, 3)
        if values is None or values.dtype.kind not in "fiu" or values.size not in (1, 3):
            return None
        if values.size == 3 and not flat:  # it must lie along the channels, counted from the right as numpy does
            place = 4 - self._axis
            if values.ndim < place or values.shape[values.ndim - place] != 3:
                return None
        return np.broadcast_to(values.reshape(-1).astype(np.float64), (3,)).copy()


def _plausible(seen: Floats) -> bool:
    """Whether networks are trained on such numbers: about zero and one of deviation, or from 0 to 1."""
    centre, half = seen.mean(axis=0), np.abs(seen[1] - seen[0]) / 2.0
    from_zero = (np.abs(centre - half) <= 0.1 * half) & (half >= 0.4) & (half <= 0.6)
    return bool((((half >= 0.4) & (half <= 3.0) & (np.abs(centre) <= 0.35 * half)) | from_zero).all())
