"""A backbone that is larger than memory: its blocks' weights are on the disk, and each is brought when it computes.

While a block computes, the next one's weights are read, so that two are in memory at most. The backbone is frozen and
keeps nothing for the way back, so training reads them once a step.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from dinounet.network.backbone import FrozenBackbone
from dinounet.network.held import held_linears
from dinounet.network.reading import StoredBackbone


def bring_blocks(backbone: FrozenBackbone, stored: StoredBackbone) -> None:
    """Have each block's weights read from a file before it computes, and let go afterwards."""
    reader = ThreadPoolExecutor(1, "reads the next block")
    ahead: dict[int, Future[dict[str, tuple[Tensor, Tensor]]]] = {}
    blocks = [held_linears(block) for block in backbone.vit.blocks]

    def read(index: int) -> dict[str, tuple[Tensor, Tensor]]:
        """A block's weights as they are held."""
        names = [f"blocks.{index}.{name}" for name in blocks[index]]
        return {
            name: layer.convert(tensor)
            for (name, layer), (_, tensor) in zip(blocks[index].items(), stored.read(names), strict=True)
        }

    def bring(index: int, image: Tensor) -> None:
        if index not in ahead:
            ahead[index] = reader.submit(read, index)
        weights = ahead.pop(index).result()
        if index < max(backbone.taps):  # further ones don't compute
            ahead[index + 1] = reader.submit(read, index + 1)
        for name, (weight, scale) in weights.items():
            blocks[index][name].put(weight.to(image.device), scale.to(image.device))

    def let_go(index: int) -> None:
        for layer in blocks[index].values():
            layer.empty("meta")

    for index, block in enumerate(backbone.vit.blocks):
        block.register_forward_pre_hook(lambda _block, inputs, index=index: bring(index, inputs[0]))
        block.register_forward_hook(lambda _block, _inputs, _output, index=index: let_go(index))
