"""A device that computes on the CPU: what would fail or wait on a GPU, found without one.

Its tensors say that they lie on ``pretend:0``. As on a GPU, operations on tensors of two devices
fail, so do random numbers from another device's generator and numpy; and each operation for which
the host would wait is noted, with the line that asked for it.

    python tests/accelerator.py applications/adv_training.py --smoke --device pretend

What a GPU does otherwise (kernels, streams, autocast) is not seen here.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, library
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing

AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
NAME = "pretend"
ROOT = Path(__file__).parents[1]
PROJECT = f"{ROOT}{os.sep}"
aten = torch.ops.aten

waits: list[str] = []
"""File and line of each operation for which the host waited."""

uploads: list[str] = []
"""The same of what it copied to the device, for which it waits too."""

WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique2"}
MIXING = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}
"""What takes tensors of two devices."""


class Far(Tensor):
    """A tensor on the device, around one on the CPU."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Far:
        far: Far = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        far.raw = raw
        return far

    def __repr__(self) -> str:
        return f"Far({self.raw})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        near = self.detach().cpu()
        rebuild = torch._utils._rebuild_device_tensor_from_cpu_tensor
        return rebuild, (near, self.dtype, NAME, self.requires_grad)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.numpy, Tensor.__array__):
            if not kwargs.get("force"):
                raise TypeError(f"can't convert {NAME} device type tensor to numpy")
            return args[0].detach().cpu().numpy()
        if function is Tensor.tolist:
            return args[0].detach().cpu().tolist()
        if function is Tensor.data_ptr:
            return args[0].raw.data_ptr()
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(op, args, kwargs or {})


def call(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation whose arguments or results lie on the device."""
    name = op._schema.name.removeprefix("aten::")
    tensors = _tensors((args, kwargs))
    wanted = kwargs.get("device")
    far = any(isinstance(t, Far) for t in tensors) if wanted is None else _is_far(wanted)
    _check(name, args, kwargs, tensors, far)
    graph = Graph.open
    # A graph holds the host's numbers as they are now.
    number = Tensor.clone if graph else lambda tensor: tensor
    near = lambda tensor: tensor.raw if isinstance(tensor, Far) else number(tensor)  # noqa: E731
    args_near, kwargs_near = _mapped(near, args), _mapped(near, kwargs)
    if wanted is not None:
        kwargs_near["device"] = torch.device("cpu")
        kwargs_near.pop("pin_memory", None)
    compute = partial(graph.record, op) if graph else op
    result = compute(*args_near, **kwargs_near)
    if not far:
        return result
    wrap = lambda tensor: tensor if isinstance(tensor, Far) else Far(tensor)  # noqa: E731
    return return_and_correct_aliasing(op, args, kwargs, _mapped(wrap, result))


def _is_far(device: Any) -> bool:
    return torch.device(device).type == NAME


def _check(name: str, args: Any, kwargs: Any, tensors: list[Tensor], far: bool) -> None:
    """What a GPU does not do, or waits for."""
    near = [tensor for tensor in tensors if not isinstance(tensor, Far) and tensor.dim()]
    mixed = len(near) < len(tensors) and bool(near)
    if name == "copy_":
        to_host = isinstance(args[1], Far) and not isinstance(args[0], Far)
        from_host = isinstance(args[0], Far) and not isinstance(args[1], Far)
        asynchronous = len(args) > 2 and args[2]
    else:
        to_host = name == "_to_copy" and not far and isinstance(args[0], Far)
        from_host = name == "_to_copy" and far and not isinstance(args[0], Far)
        asynchronous = kwargs.get("non_blocking")
    indices = _tensors(args[1]) if name == "index" else []
    by_mask = any(index.dtype == torch.bool for index in indices)
    waiting = name in WAITING or by_mask or (to_host and not asynchronous)
    uploading = from_host and not asynchronous
    if waiting:
        waits.append(_line())
    if uploading:
        uploads.append(_line())
    if Graph.open and (waiting or uploading):
        reason = f"{name}: operation not permitted when stream is capturing"
        raise RuntimeError(f"{reason}\nKernel errors might be reported at some other call.")
    if mixed and name not in MIXING:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    generator = kwargs.get("generator")
    if far and generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"{name}: expected a {NAME!r} device type for generator")


def _line() -> str:
    """The innermost line of the project."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PROJECT) and path != __file__:
            return f"{path.removeprefix(PROJECT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class Graph:
    """``torch.cuda.CUDAGraph``: kernels with their addresses and numbers, without Python.

    As on a GPU, nothing is computed while a graph is recorded, numbers of the host are recorded as
    they are then, and a replay reads and writes the memory that the recorded kernels had.
    """

    open: ClassVar[Graph | None] = None
    """The graph that is being recorded."""

    def __init__(self) -> None:
        self._kernels: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: set[int] = set()

    def record(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Records a kernel; what it overwrites is put back when the recording ends."""
        for tensor in _tensors((args, kwargs)):
            place = _place(tensor)
            if place not in self._own and place not in self._before:
                self._before[place] = _all(tensor), _all(tensor).clone()
        result = op(*args, **kwargs)
        self._own |= {_place(t) for t in _tensors(result)} - self._before.keys()
        self._kernels.append((op, args, kwargs, result))
        return result

    def end(self) -> None:
        """Ends the recording: nothing has been computed."""
        for memory, content in self._before.values():
            memory.copy_(content)

    def replay(self) -> None:
        """Computes all kernels again, without Python."""
        for op, args, kwargs, result in self._kernels:
            again = _tensors(op(*args, **kwargs))
            for old, new in zip(_tensors(result), again, strict=True):
                if _place(old) != _place(new):
                    old.copy_(new)


class Stream:
    """``torch.cuda.Stream``; there is one."""

    def wait_stream(self, other: Stream) -> None:
        """Nothing is late."""


@contextlib.contextmanager
def capturing(graph: Graph, pool: object = None) -> Iterator[None]:
    """``torch.cuda.graph``."""
    random = torch.get_rng_state()
    Graph.open = graph
    try:
        yield
    finally:
        Graph.open = None
        graph.end()
        torch.set_rng_state(random)


def _mapped(function: Callable[[Tensor], Tensor], values: Any) -> Any:
    """``tree_map_only``, which takes longer than the operations."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, (list, tuple)):
        return type(values)([_mapped(function, value) for value in values])
    if isinstance(values, dict):
        return {key: _mapped(function, value) for key, value in values.items()}
    return values


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(lambda tensor: found.append(tensor) or tensor, values)  # type: ignore[func-returns-value]
    return found


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _all(tensor: Tensor) -> Tensor:
    """All bytes of the memory in which a tensor lies."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


class Module:
    """``torch.pretend``."""

    waits = waits
    uploads = uploads
    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: None)
    device = staticmethod(lambda index: contextlib.nullcontext())
    CUDAGraph = Graph
    graph = staticmethod(capturing)
    Stream = current_stream = Stream
    stream = staticmethod(lambda stream: contextlib.nullcontext())


def _factories() -> Iterator[tuple[str, Any]]:
    """The operations that make tensors out of nothing."""
    for full in torch._C._dispatch_get_all_op_names():
        if not full.startswith("aten::"):
            continue
        name, _, overload = full.removeprefix("aten::").partition(".")
        op = getattr(getattr(aten, name, None), overload or "default", None)
        arguments = op._schema.arguments if op else []
        if any(one.name == "device" for one in arguments) and not any(
            "Tensor" in str(one.type) for one in arguments
        ):
            yield full.removeprefix("aten::"), op


def _kernel(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: call(op, args, {**kwargs, "device": torch.device(NAME, 0)})


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Within the block there is the device; to the end of the process its name."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module)
    with (
        library._scoped_library("aten", "IMPL") as ours,
        library._scoped_library("_", "IMPL") as others,
    ):
        for name, op in _factories():
            ours.impl(name, _kernel(op), "PrivateUse1")
        copy = lambda raw, to, non_blocking=False: call(  # noqa: E731
            aten.copy_.default, (to, raw, non_blocking), {}
        )
        ours.impl("_copy_from", copy, "PrivateUse1")
        others.fallback(library.fallthrough_kernel, "AutocastPrivateUse1")
        yield


def run(script: Path | str, *arguments: object) -> tuple[str, dict[str, int]]:
    """What a script prints on the device, and how often it waited at which line."""
    command = [sys.executable, "tests/accelerator.py", script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    *printed, waits = ended.stdout.splitlines()
    return "\n".join(printed), json.loads(waits)


def main() -> None:
    """Runs a script, then prints how often it waited where."""
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    status: Any = 0
    try:
        with registered():
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        status = ended.code
    print(json.dumps({line: waits.count(line) for line in dict.fromkeys(waits)}), flush=True)
    # Autograd's thread for the device, which has no way to end it, aborts some exits otherwise.
    os._exit(status or 0)


if __name__ == "__main__":
    main()
