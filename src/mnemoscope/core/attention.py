r"""A watch reads what cross-attention looks at while the network runs, and keeps only reductions.

Formulas, with P = softmax(Q·Kᵀ / sqrt(d_h)) of a layer, in float32::

    tokens   mean over heads and queries of P[head, query, token]
    end      mean over heads of P[head, query, end token], over the finest layers on the way down

Processors are wrapped, never replaced: the layer's own processor still computes its output, so a
watched run is bit for bit the same. They are put back when the context ends, whatever happens.

Contents: `Watch`, `watch`, `cross_attentions`.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Watch:
    """What was seen.

    Attributes:
        rows: The rows of the coming call that are of interest; None to look away.
        end: Position of the end token of each of these rows; None where it is of no interest.
        tokens: Attention to each token at every call so far.
        maps: Attention of each position to the end token at the latest call.
    """

    rows: slice | None = None
    end: Int[Tensor, " row"] | None = None
    tokens: list[Float[Tensor, "row layer token"]] = field(default_factory=list[Tensor])
    maps: Float[Tensor, "row height width"] | None = None
    _layers: list[Tensor] = field(default_factory=list[Tensor])
    _fine: list[Tensor] = field(default_factory=list[Tensor])

    def finish(self) -> None:
        """Reduce what the layers left at a call; to be called after it."""
        if self._layers:
            self.tokens.append(torch.stack(self._layers, dim=1))
        if self._fine:
            most = max(part.shape[1] for part in self._fine)
            map_ = torch.stack([p for p in self._fine if p.shape[1] == most]).mean(dim=0)
            side = round(most**0.5)
            self.maps = map_.unflatten(1, (side, most // side))
        self._layers, self._fine = [], []

    def see(self, attention: Any, hidden: Tensor, context: Tensor, down: bool) -> None:
        """Take in one layer, on the network's way down or not."""
        if self.rows is None:
            return
        states, text = hidden[self.rows], context[self.rows]
        if states.ndim == 4:
            states = states.flatten(2).mT
        if attention.norm_cross:
            text = attention.norm_encoder_hidden_states(text)
        query = attention.to_q(states).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        key = attention.to_k(text).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        logits = query.float() @ key.float().mT * attention.scale
        shares = logits.softmax(dim=-1).mean(dim=1)
        self._layers.append(shares.mean(dim=1).cpu())
        if self.end is not None and down:
            at = self.end.to(shares.device)[:, None, None].expand(-1, shares.shape[1], 1)
            self._fine.append(shares.gather(2, at)[..., 0].cpu())


class _Watched:
    """A processor that shows a layer's input to a watch before it does its work."""

    def __init__(self, inner: Any, seen: Watch, down: bool) -> None:
        self.inner = inner
        self.seen = seen
        self.down = down

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        if encoder_hidden_states is not None:
            with torch.no_grad():
                self.seen.see(attn, hidden_states, encoder_hidden_states, self.down)
        return self.inner(attn, hidden_states, encoder_hidden_states, *args, **options)


def cross_attentions(network: Any) -> list[tuple[str, Any]]:
    """Return the cross-attention layers of a network, in the order down, middle, up.

    Args:
        network: A diffusers UNet, or anything else.

    Returns:
        Name and layer; empty for a network without any.
    """
    if not hasattr(network, "named_modules"):
        return []
    found = [
        (name, module)
        for name, module in network.named_modules()
        if hasattr(module, "set_processor") and getattr(module, "is_cross_attention", False)
    ]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(found, key=lambda item: order.get(item[0].split(".")[0], 3))


@contextmanager
def watch(network: Any) -> Generator[Watch]:
    """Watch the cross-attention of a network within a context.

    Args:
        network: A diffusers UNet.

    Yields:
        The watch; say in its `rows` which rows are of interest, and `finish` after each call.
    """
    seen = Watch()
    layers = cross_attentions(network)
    before = [layer.processor for _, layer in layers]
    try:
        for name, layer in layers:
            layer.set_processor(_Watched(layer.processor, seen, name.startswith("down_blocks")))
        yield seen
    finally:
        for (_, layer), processor in zip(layers, before, strict=True):
            layer.set_processor(processor)
