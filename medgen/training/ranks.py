"""Several processes that work as one: who this one is, and the few things that they do together.

Nothing else in medgen speaks to `torch.distributed`. With one process every function here is the identity.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medgen.core.errors import MedgenError

BUCKET = 1 << 24  # numbers that travel together: 64 MB of float32
PATIENCE = timedelta(hours=2)  # rank 0 may measure a codec meanwhile; a process that died is noticed at once without it


class Agreed(MedgenError):
    """What stops all ranks alike; rank 0 says it."""


def launched() -> bool:
    """Whether torchrun, or medgen itself, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def one_voice() -> Iterator[None]:
    """Within the context only rank 0 is heard."""
    with ExitStack() as stack:
        if rank():
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(silence))
            stack.enter_context(redirect_stderr(silence))
        yield


def connect() -> None:
    """Meet the other processes that the environment names (torchrun's variables): plain data by gloo, a GPU's tensors by NCCL."""
    here, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if here < gpus:
        torch.cuda.set_device(here)
    backend = "cpu:gloo,cuda:nccl" if here < gpus else "gloo"
    place = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    if "MEDGEN_STORE" in os.environ:  # medgen's launcher keeps the meeting point, on a port that is its own
        place["store"] = dist.TCPStore("127.0.0.1", int(os.environ["MEDGEN_STORE"]), is_master=False)
    dist.init_process_group(backend, timeout=PATIENCE, **place)


def disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def lost(error: BaseException) -> bool:
    """Whether an error only says that another process has gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text))


def broadcast(value: Any) -> Any:
    """Rank 0's value (plain data and CPU tensors) on every rank."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
    return box[0]


def gathered(value: Any) -> list[Any]:
    """Every rank's value (plain data and CPU tensors), in order of rank; an empty list on the others than rank 0."""
    if world() == 1:
        return [value]
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(data)]))
    if rank():
        dist.send(data, 0)
        return []
    values = [value]
    for other in range(1, world()):
        data = torch.empty(int(sizes[other]), dtype=torch.uint8)
        dist.recv(data, other)
        values.append(pickle.loads(data.numpy().tobytes()))
    return values


def wait() -> None:
    """Until every rank is here."""
    anywhere(False)


def anywhere(flag: bool) -> bool:
    """Whether any rank says so: the same answer everywhere."""
    if world() == 1:
        return flag
    answer = torch.tensor([int(flag)])
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer)


@contextmanager
def agreed() -> Iterator[None]:
    """What one rank refuses in this context, all refuse at its end. Nothing inside may wait for another rank."""
    said = None
    try:
        yield
    except MedgenError as error:
        if world() == 1:
            raise
        said = str(error)
    if world() > 1:
        verdicts = broadcast(gathered(said))
        for place, text in enumerate(verdicts):
            if text is not None:
                raise Agreed(text if place == 0 else f"rank {place}: {text}")


def same_start(module: nn.Module) -> None:
    """Rank 0's parameters and buffers on every rank."""
    if world() > 1:
        for tensor in module.state_dict().values():
            value = tensor.detach().contiguous()
            dist.broadcast(value, 0)
            tensor.data.copy_(value)


def averaged(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means over ranks of scalars that every rank has under the same names."""
    if world() == 1 or not terms:
        return dict(terms)
    values = torch.stack([value.detach().float().reshape(()) for value in terms.values()])
    dist.all_reduce(values)
    return dict(zip(terms, (values / world()).unbind(), strict=True))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over ranks. A sharded parameter's gradient is its mean already.

    A parameter may have a gradient on some ranks only; one that has none anywhere keeps none, so that its optimizer leaves it alone.
    """
    if world() == 1:
        return
    learning = [p for p in parameters if p.requires_grad and not sharded(p)]
    for bucket in _buckets(learning):
        has = torch.tensor([float(p.grad is not None) for p in bucket], device=bucket[0].device, dtype=bucket[0].dtype)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([has, *(g.reshape(-1) for g in grads)])
        dist.all_reduce(flat)
        had, *means = flat.div_(world()).split([len(bucket), *(g.numel() for g in grads)])
        torch._foreach_copy_(grads, [mean.view(grad.shape) for mean, grad in zip(means, grads, strict=True)])
        for i, parameter in enumerate(bucket):
            if parameter.grad is None and float(had[i]) > 0:
                parameter.grad = grads[i]


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one type and device, up to `BUCKET` numbers together."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        kind, size = (parameter.dtype, parameter.device), sum(p.numel() for p in bucket)
        if bucket and ((bucket[0].dtype, bucket[0].device) != kind or size + parameter.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def sharded(tensor: Any) -> bool:
    """Whether a tensor is spread over the ranks."""
    return hasattr(tensor, "full_tensor")


def whole(data: Any) -> Any:
    """Nested plain data with every sharded tensor put together: all ranks call it alike."""
    if isinstance(data, Mapping):
        return {key: whole(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(whole(value) for value in data)
    return data.full_tensor() if sharded(data) else data


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, spread over the ranks where `like` is."""
    if not sharded(like) or sharded(tensor):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if sharded(tensor) else tensor
