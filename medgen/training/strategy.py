"""How several processes share the training of a model, as a Lightning strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from medgen.core.errors import MedgenError
from medgen.core.model import GenerativeModel
from medgen.training import ranks

STRATEGIES = ("auto", "ddp", "fsdp")


def placement(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of Lightning's trainer that say where it runs."""
    if ranks.world() == 1:
        return {"accelerator": settings["accelerator"], "devices": 1}
    return {
        "accelerator": settings["accelerator"],
        "devices": settings["devices"],
        "num_nodes": settings["nodes"],
        "strategy": SharedStep(settings["strategy"] == "fsdp"),
        "plugins": [TorchElasticEnvironment()],  # rank and world from the environment, whoever set it
    }


class SharedStep(DDPStrategy):
    """Lightning's handling of processes and devices, without its wrapper: `Fit` averages the gradients of one phase at a time.

    Args:
        shard: spread parameters, gradients and optimizer states over the ranks (FSDP); for models with one phase.
    """

    def __init__(self, shard: bool = False):
        super().__init__()
        self.shard = shard

    def configure_ddp(self) -> None:
        """Between the move to the device and the making of optimizers, which must see the shards."""
        if self.shard:
            shard(self.lightning_module.model, self.root_device)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        ranks.wait()


def check_shardable(model: GenerativeModel) -> None:
    """Refuse what FSDP cannot train here."""
    if len(model.phases) > 1:
        names = ", ".join(phase.name for phase in model.phases)
        raise MedgenError(f"training.strategy=fsdp takes models with one phase, this one has {names}; use training.strategy=ddp")


def shard(model: GenerativeModel, device: torch.device) -> None:
    """Spread the learned module over all ranks: block by block, which bounds what is whole at a time, and then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (ranks.world(),))
    module = model.phases[0].module
    blocks = [part for parts in module.modules() if isinstance(parts, nn.ModuleList) for part in parts]
    for block in reversed(blocks):  # inner blocks first
        if not isinstance(block, nn.ModuleList) and any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for method in ("encode", "decode"):  # an autoencoder is not entered by its forward
        if hasattr(module, method):
            register_fsdp_forward_method(module, method)
