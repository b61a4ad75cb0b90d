r"""A watch reads what cross-attention looks at while the network runs, and keeps only reductions.

Formulas, with P = softmax(Q·Kᵀ / sqrt(d_h)) of a layer, in float32::

    tokens   mean over heads and queries of P[head, query, token]
    end      mean over heads of P[head, query, end token], over the finest layers on the way down

Processors are wrapped, never replaced: the layer's own processor still computes its output, so a
watched run is bit for bit the same. An intervention that acts on attention is the one exception:
its layers compute softmax(hook(logits))·V themselves. Processors are put back when the context
ends, whatever happens.

Contents: `Watch`, `watch`, `steered`, `cross_attentions`.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemoscope.errors import InputError, ModelError
from mnemoscope.sampling.hooks import Attended, Intervention, ask, checked


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
        logits, _ = _logits(attention, hidden[self.rows], context[self.rows])
        self.take(logits, down)

    def take(self, logits: Float[Tensor, "row head query token"], down: bool) -> None:
        """Take in the logits of a layer for the rows of interest."""
        shares = logits.softmax(dim=-1).mean(dim=1)
        self._layers.append(shares.mean(dim=1).cpu())
        if self.end is not None and down:
            at = self.end.to(shares.device)[:, None, None].expand(-1, shares.shape[1], 1)
            self._fine.append(shares.gather(2, at)[..., 0].cpu())


def _logits(
    attention: Any, states: Tensor, text: Tensor
) -> tuple[Float[Tensor, "row head query token"], Tensor]:
    """Return Q·Kᵀ / sqrt(d_h) in float32, and the text states the values are made of."""
    if states.ndim == 4:
        states = states.flatten(2).mT
    if attention.norm_cross:
        text = attention.norm_encoder_hidden_states(text)
    query = attention.to_q(states).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
    key = attention.to_k(text).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
    return query.float() @ key.float().mT * attention.scale, text


class _Watched:
    """A processor that shows a layer's input to a watch before it does its work."""

    def __init__(self, inner: Any, seen: Watch, down: bool) -> None:
        self.inner = inner
        self.seen = seen
        self.down = down

    def take(self, logits: Float[Tensor, "row head query token"]) -> None:
        """Show the watch the logits that another processor used."""
        if self.seen.rows is not None:
            self.seen.take(logits[self.seen.rows].detach(), self.down)

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


@dataclass
class Wheel:
    """What an intervention is told about the coming call.

    Attributes:
        intervention: Acts on the logits.
        call: Index of the call.
        branches: Branch of each row.
        end: Position of the end token of each row.
    """

    intervention: Intervention
    call: int = 0
    branches: tuple[str, ...] = ()
    end: Tensor | None = None

    def turn(self, call: int, group: list[str], samples: int, end: Tensor | None) -> None:
        """Say what the rows of the coming call are.

        Raises:
            InputError: If the positions of end tokens are not known.
        """
        if end is None:
            raise InputError(
                f"{self.intervention} acts on attention; pass the position of each prompt's end "
                "token in `Branches.end`"
            )
        self.call = call
        self.branches = tuple(name for name in group for _ in range(samples))
        # The empty prompt ends right after its first token.
        parts = [torch.ones_like(end) if name == "uncond" else end for name in group]
        self.end = torch.cat(parts)


class _Steered:
    """A processor that computes a cross-attention layer with other logits."""

    def __init__(self, inner: Any, wheel: Wheel, layer: str) -> None:
        self.inner = inner
        self.wheel = wheel
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        if encoder_hidden_states is None:
            return self.inner(attn, hidden_states, None, attention_mask, temb, **options)
        wheel, before, residual = self.wheel, hidden_states, hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).mT
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.mT).mT
        logits, text = _logits(attn, hidden_states, encoder_hidden_states)
        if attention_mask is not None:
            logits = logits + attention_mask.unflatten(0, (-1, attn.heads))
        assert wheel.end is not None, "the wheel was not turned before the call"
        at = Attended(
            self.layer, self.layer.startswith("down_blocks"), wheel.call, wheel.branches, wheel.end
        )
        steers = wheel.intervention
        changed = checked(steers, "attention", ask(steers, "attention", logits, at), logits)
        if isinstance(self.inner, _Watched):
            self.inner.take(changed)
        value = attn.to_v(text).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        mixed = (changed.softmax(dim=-1).to(value) @ value).transpose(1, 2).flatten(2)
        out = attn.to_out[1](attn.to_out[0](mixed))
        if before.ndim == 4:
            out = out.mT.reshape(before.shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


@contextmanager
def steered(network: Any, intervention: Intervention | None) -> Generator[Wheel | None]:
    """Let an intervention act on the cross-attention of a network within a context.

    Args:
        network: The network, or None.
        intervention: The intervention; where it leaves attention alone, nothing is touched.

    Yields:
        The wheel, to be turned before each call; None where attention is left alone.

    Raises:
        ModelError: If it acts on attention and the network has no cross-attention.
    """
    if intervention is None or not intervention.attends:
        yield None
        return
    layers = cross_attentions(network)
    if not layers:
        raise ModelError(
            f"{intervention} acts on cross-attention to text, and this network has none"
        )
    wheel = Wheel(intervention)
    before = [layer.processor for _, layer in layers]
    try:
        for name, layer in layers:
            layer.set_processor(_Steered(layer.processor, wheel, name))
        yield wheel
    finally:
        for (_, layer), processor in zip(layers, before, strict=True):
            layer.set_processor(processor)
