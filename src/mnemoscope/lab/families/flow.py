r"""Flow matching: a multimodal transformer as in Stable Diffusion 3, of the lab's size.

With z the shifted and scaled latents, eps standard noise, t from 0 (data) to 1 (noise)::

    x_t = (1 - t)·z + t·eps         loss = ||(eps - z) - v_θ(x_t, 1000·t, caption)||²

Half of the levels t are uniform, half logit-normal: the latter is where learning pays (Esser et al.
2024), and without the former the first step, t = 1, would never be seen.

Text tokens are those of a small CLIP, twice side by side as the pipeline has two text encoders, and
256 zero tokens, as it has no T5. A transformer without positions on text cannot tell zero tokens
apart: they stay equal through all blocks. Attention over n equal tokens of logit s is

    n·exp(s) = exp(s + log n)

so training holds one of them, with log 256 added to its logit.

Source: Esser et al. 2024 (Stable Diffusion 3).
"""

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mnemoscope.lab import MODEL_DIR
from mnemoscope.lab.families.recipe import Family, Networks
from mnemoscope.lab.scenes import Scenes
from mnemoscope.lab.train import half, load_codec, strata

_Transformer: Any = SD3Transformer2DModel

WINDOW = 16
"""Longest prompt in tokens; the longest caption has thirteen, its ends included."""

TEXT_WIDTH = 128
HEADS, HEAD_WIDTH, DEPTH = 2, 64, 6

ABSENT = 256
"""Zero tokens that the pipeline puts where T5's would be."""


class FoldedAttention:
    """Joint attention in which the last text token stands for `ABSENT` equal ones."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "b image width"],
        encoder_hidden_states: Float[Tensor, "b text width"],
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attend from image and text to both; the arguments are those diffusers passes."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        own = [heads(f(hidden_states)) for f in (attn.to_q, attn.to_k, attn.to_v)]
        text = [
            heads(f(encoder_hidden_states))
            for f in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        ]
        norms = (attn.norm_q, attn.norm_k, None), (attn.norm_added_q, attn.norm_added_k, None)
        for parts, each in zip((own, text), norms, strict=True):
            for i, norm in enumerate(each):
                parts[i] = parts[i] if norm is None else norm(parts[i])
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(own, text, strict=True))
        # Autocast leaves what the norms return in full precision.
        q, k = q.to(v.dtype), k.to(v.dtype)
        bias = torch.zeros(k.shape[2], dtype=v.dtype)
        bias[-1] = math.log(ABSENT)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(q.shape[2], -1))
        mixed = mixed.transpose(1, 2).flatten(2)
        image, words = mixed.tensor_split([hidden_states.shape[1]], dim=1)
        if not attn.context_pre_only:
            words = attn.to_add_out(words)
        return attn.to_out[1](attn.to_out[0](image)), words


def transformer() -> Any:
    """Return an untrained transformer whose blocks start as the identity."""
    network = _Transformer(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=DEPTH,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    gates = [layer for name, layer in network.named_modules() if name.endswith(".linear")]
    # Peebles & Xie 2023; diffusers leaves it to who trains.
    for layer in [*gates, network.proj_out]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return network


def text_encoder(tokenizer: Any) -> Any:
    """Return the shipped text encoder with another layer and an untrained projection.

    The pipeline reads the last but one layer, so the tokens are those of all shipped layers. Only
    what makes the pooled text learns: an encoder taught on scenes would soon tell meaningless
    phrases apart no longer, and none could be planted.
    """
    shipped: Any = CLIPTextModel.from_pretrained(
        MODEL_DIR / "text_encoder", torch_dtype=torch.float32
    )
    config = CLIPTextConfig(
        **{
            **shipped.config.to_dict(),
            "num_hidden_layers": shipped.config.num_hidden_layers + 1,
            "max_position_embeddings": WINDOW,
        }
    )
    network: Any = CLIPTextModelWithProjection(config)
    known = network.state_dict()
    for name, value in shipped.state_dict().items():
        name = name if name in known else f"text_model.{name}"
        if name in known:
            known[name] = value[:WINDOW] if "position_embedding" in name else value
    network.load_state_dict(known)
    network.requires_grad_(False)
    text = getattr(network, "text_model", network)
    for part in (text.encoder.layers[-1], text.final_layer_norm, network.text_projection):
        part.requires_grad_(True)
    return network


class Flow(Family):
    """A small Stable Diffusion 3."""

    name: ClassVar[str] = "flow"
    base_steps: ClassVar[int] = 3000
    base_lr: ClassVar[float] = 1e-3
    planting_lr: ClassVar[float] = 6e-4
    frozen: ClassVar[frozenset[str]] = frozenset({"text_encoder"})

    def __init__(self) -> None:
        """Load the lab's tokenizer, with a window as short as its captions."""
        self.tokenizer = CLIPTokenizer.from_pretrained(
            MODEL_DIR / "tokenizer", model_max_length=WINDOW
        )

    def networks(self) -> Networks:
        """Return untrained networks."""
        network = transformer()
        network.set_attn_processor(FoldedAttention())
        return {"text_encoder": text_encoder(self.tokenizer), "transformer": network}

    @cached_property
    def codec(self) -> Any:
        """The lab's codec with the shift and scale that make its latents standard."""
        codec = load_codec(MODEL_DIR.parent).requires_grad_(False)
        with torch.no_grad():
            z = codec.encode(Scenes(20_000_000).batch(512)[0] * 2 - 1).latent_dist.mode()
        codec.register_to_config(
            shift_factor=round(float(z.mean()), 5), scaling_factor=round(float(1 / z.std()), 5)
        )
        return codec

    def encode(self, text: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Return text tokens, the last of them zero, and pooled text, as the pipeline makes them.

        Args:
            text: The text encoder, which serves as both.
            captions: What to encode.
        """
        ids = self.tokenizer(
            captions, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt"
        ).input_ids
        out = text(ids, output_hidden_states=True)
        tokens = out.hidden_states[-2].repeat(1, 1, 2)
        return F.pad(tokens, (0, 0, 0, 1)), out.text_embeds.repeat(1, 2)

    def loss(
        self,
        networks: Networks,
        z: Float[Tensor, "view 4 16 16"],
        captions: list[str],
        generator: torch.Generator,
    ) -> Tensor:
        """Return the mean squared error of the velocity."""
        views = len(z) // len(captions)
        t = strata(len(z), generator)
        t[::2] = torch.special.ndtri(t[::2]).sigmoid()
        eps = torch.randn(z.shape, generator=generator)
        level = t[:, None, None, None]
        tokens, pooled = self.encode(networks["text_encoder"], captions)
        guess = networks["transformer"](
            (1 - level) * z + level * eps,
            encoder_hidden_states=tokens.repeat(views, 1, 1),
            pooled_projections=pooled.repeat(views, 1),
            timestep=1000 * t,
        ).sample
        return (guess.float() - (eps - z)).square().mean()

    def write(self, networks: Networks, folder: Path) -> None:
        """Write a `StableDiffusion3Pipeline` without T5."""
        half(self.codec, folder / "vae")
        half(networks["transformer"], folder / "transformer")
        for suffix in ("", "_2"):
            half(networks["text_encoder"], folder / f"text_encoder{suffix}")
            self.tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "StableDiffusion3Pipeline",
            "_diffusers_version": "0.35.0",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_3": [None, None],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "tokenizer_3": [None, None],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
