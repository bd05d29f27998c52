"""Pretend devices: what a host sees of several GPUs, without one.

A tensor on a pretend device has a shape but no values yet. An operation on it is queued on its device's
worker thread and the host goes on, as after a kernel launch. Only when the host asks for values does it
wait, and that is written down. Transfers wait where PyTorch's do: the host for those to a device or to the
host unless `non_blocking`, and two devices for each other.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

KIND = "privateuseone"
_READS = (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)
# These ask PyTorch for the device's own code before they come to be dispatched.
_WHOLE = (torch.Tensor.__getitem__, torch.Tensor.contiguous, scaled_dot_product_attention)
_COPY = torch.ops.aten._to_copy.default


class Pretend(torch.Tensor):
    """A tensor whose values are still being computed."""

    device_box: "Devices"
    future: "Future[Any]"

    @staticmethod
    def __new__(cls, like: torch.Tensor, device: torch.device, box: "Devices", future: "Future[Any]"):
        made = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), storage_offset=like.storage_offset(),
            dtype=like.dtype, device=device,
        )  # fmt: skip
        made.device_box, made.future = box, future
        return made

    __torch_function__ = classmethod(
        lambda cls, func, types, args=(), kwargs=None: _function(func, types, args, kwargs or {})
    )

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        return _box_of(args, kwargs).run(func, args, kwargs or {})


def _box_of(*trees: Any) -> "Devices":
    return next(leaf for leaf in tree_flatten(trees)[0] if isinstance(leaf, Pretend)).device_box


def _function(func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func in _READS:
        return func(args[0].device_box.wait(args[0], func.__name__), *args[1:], **kwargs)
    if func in _WHOLE:
        return _box_of(args, kwargs).queue(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


class Devices(TorchDispatchMode):
    """Several pretend devices; inside `with`, tensors can be made on them and moved to them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        sys.modules.setdefault(f"torch.{KIND}", ModuleType(f"torch.{KIND}"))  # PyTorch looks for it
        self.devices = [torch.device(KIND, k) for k in range(count)]
        self.workers = [ThreadPoolExecutor(1, f"device-{k}") for k in range(count)]
        self.waits: list[str] = []
        """Where and why the host has stood still."""

    def close(self) -> None:
        for worker in self.workers:
            worker.shutdown()

    def submit(self, device: torch.device, work: Callable[[], Any]) -> "Future[Any]":
        """Queue `work` behind all that was queued on the device before."""

        def quietly() -> Any:
            with torch.no_grad():
                return work()

        return self.workers[device.index].submit(quietly)

    def wait(self, tensor: Pretend, why: str) -> torch.Tensor:
        """The values: the host stands still until they are there."""
        self.waits.append(f"{tensor.device} {why}")
        values: torch.Tensor = tensor.future.result()
        return values

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation of PyTorch's."""
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Pretend)]
        to = kwargs.get("device")
        on_its_way = any(tensor.device.type == "cpu" for tensor in given)
        if on_its_way or func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            args, kwargs = tree_map_only(Pretend, lambda t: self.wait(t, str(func)), (args, kwargs))
            return func(*args, **kwargs)
        if func is _COPY and to is not None and torch.device(to) != args[0].device:
            return self._transfer(args[0], torch.device(to), kwargs)
        if given or (to is not None and torch.device(to).type == KIND):
            return self.queue(func, args, kwargs)
        return func(*args, **kwargs)

    def queue(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Queue an operation on the device of its arguments; what it returns has a shape only."""
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Pretend)]
        places = {tensor.device for tensor in given} or {torch.device(kwargs["device"])}
        assert len(places) == 1, f"{func}: tensors on {places}"
        place = places.pop()

        def elsewhere(name: str, values: Callable[[Pretend], torch.Tensor]) -> tuple[Any, Any]:
            moved, named = tree_map_only(Pretend, values, (args, kwargs))
            return moved, {**named, "device": name} if named.get("device") is not None else named

        moved, named = elsewhere("meta", _shape_of)
        shapes = func(*tree_map_only(torch.Tensor, lambda t: t.to("meta"), moved), **named)

        def work() -> Any:
            real, named = elsewhere("cpu", lambda t: t.future.result())
            return func(*real, **named)

        future = self.submit(place, work)
        schema = getattr(func, "_schema", None)
        alias = schema.arguments[0].alias_info if schema and schema.arguments else None
        if alias is not None and alias.is_write:
            return args[0]  # changed in place, in the queue's order
        if isinstance(shapes, torch.Tensor):
            return Pretend(shapes, place, self, future)
        return type(shapes)(Pretend(s, place, self, _Part(future, i)) for i, s in enumerate(shapes))  # type: ignore[arg-type]

    def _transfer(self, tensor: torch.Tensor, to: torch.device, kwargs: dict[str, Any]) -> torch.Tensor:
        dtype, waits = kwargs.get("dtype") or tensor.dtype, not kwargs.get("non_blocking")
        shape = torch.empty_like(_shape_of(tensor), dtype=dtype)
        if not isinstance(tensor, Pretend):
            values = tensor.to(dtype, copy=True)
            arrived = Pretend(shape, to, self, self.submit(to, lambda: values))
            if waits:
                self.wait(arrived, "copy to the device")
            return arrived
        source = tensor.future
        if to.type == "cpu":
            copy = Pretend(
                shape, to, self, self.submit(tensor.device, lambda: source.result().to(dtype, copy=True))
            )
            return self.wait(copy, "copy to the host") if waits else copy
        # As PyTorch does it: on the source's queue, once the target has done all that it was given before;
        # and what the target is given next waits for it.
        ready = self.submit(to, lambda: None)
        copied = self.submit(tensor.device, lambda: (ready.result(), source.result().to(dtype, copy=True))[1])
        return Pretend(shape, to, self, self.submit(to, copied.result))

    def aside(self, tensor: Pretend, to: torch.device) -> Pretend:
        """A copy to another device that only those wait for who use it."""
        source = tensor.future
        return Pretend(_shape_of(tensor), to, self, self.submit(to, lambda: source.result().clone()))


class _Part:
    """One of several results of an operation."""

    def __init__(self, whole: "Future[Any]", index: int) -> None:
        self.whole, self.index = whole, index

    def result(self) -> Any:
        return self.whole.result()[self.index]


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    shape = torch.empty(0, dtype=tensor.dtype, device="meta")
    return shape.as_strided(tensor.shape, tensor.stride(), 0)


@contextmanager
def pretend_devices(count: int) -> Iterator[Devices]:
    """`count` devices, stopped at the end."""
    devices = Devices(count)
    try:
        with devices:
            yield devices
    finally:
        devices.close()
