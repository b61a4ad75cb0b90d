"""Tiny random pipelines of every family, built from configurations; nothing is downloaded."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 32
LATENT = 8

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
"""Stable Diffusion's schedule."""


def tiny_tokenizer(window: int = 77) -> CLIPTokenizer:
    """Build a CLIP tokenizer without merges: one token a byte."""
    alphabet = sorted(ByteLevel.alphabet())
    start, end = "<|startoftext|>", "<|endoftext|>"
    pieces = [*alphabet, *(piece + "</w>" for piece in alphabet), start, end]
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[],
        bos_token=start,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=window,
    )


def tiny_t5_tokenizer() -> T5Tokenizer:
    """Build a T5 tokenizer of single letters."""
    letters = [chr(code) for code in range(32, 127)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0)]
    return T5Tokenizer(
        vocab=[*vocab, *((letter, -3.0) for letter in letters)],
        extra_ids=0,
        model_max_length=512,
    )


def _encoder(tokenizer: CLIPTokenizer, kind: type = CLIPTextModel) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=WIDTH,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    ).eval()


def _t5(
    tokenizer: T5Tokenizer,
    config: type = T5Config,
    kind: type = T5EncoderModel,
    width: int = WIDTH,
) -> Any:
    size = len(tokenizer)
    shape = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    return kind(config(vocab_size=size, **shape)).eval()


def _vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=2 * LATENT,
        **options,
    ).eval()


def _unet(sample_size: int | tuple[int, int] = LATENT, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": sample_size,
            "block_out_channels": (WIDTH, WIDTH),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
            **options,
        }
    ).eval()


def _silent(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_pipeline(
    prediction_type: str = "epsilon",
    seed: int = 0,
    *,
    sample_size: int | tuple[int, int] = LATENT,
    scheduler: Any = None,
    **unet: Any,
) -> Any:
    """Build a Stable Diffusion with random weights, 8x8x4 latents and 16-pixel images."""
    torch.manual_seed(seed)
    network, vae, tokenizer = _unet(sample_size, **unet), _vae(), tiny_tokenizer()
    own = diffusers.PNDMScheduler(
        **BETAS, skip_prk_steps=True, set_alpha_to_one=False, prediction_type=prediction_type
    )
    return _silent(
        diffusers.StableDiffusionPipeline(
            vae=vae,
            text_encoder=_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=network,
            scheduler=own if scheduler is None else scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def tiny_zero_snr() -> Any:
    """Build a v-prediction whose schedule ends at pure noise."""
    scheduler = diffusers.DDIMScheduler(
        **BETAS,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )
    return tiny_pipeline(scheduler=scheduler)


def tiny_sdxl() -> Any:
    """Build an SDXL whose empty negative prompt is zeros."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    return _silent(
        diffusers.StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=_encoder(tokenizer),
            text_encoder_2=_encoder(tokenizer, CLIPTextModelWithProjection),
            tokenizer=tokenizer,
            tokenizer_2=tiny_tokenizer(),
            unet=_unet(
                cross_attention_dim=2 * WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            ),
            scheduler=diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    )


def tiny_sd3(*, third: bool = False) -> Any:
    """Build a Stable Diffusion 3, with or without its T5."""
    torch.manual_seed(0)
    clip, t5 = tiny_tokenizer(), tiny_t5_tokenizer()
    return _silent(
        diffusers.StableDiffusion3Pipeline(
            transformer=diffusers.SD3Transformer2DModel(
                sample_size=LATENT,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=2 * WIDTH,
                caption_projection_dim=WIDTH,
                pooled_projection_dim=2 * WIDTH,
                pos_embed_max_size=2 * LATENT,
            ).eval(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(shift_factor=0.06, scaling_factor=1.5),
            text_encoder=_encoder(clip, CLIPTextModelWithProjection),
            tokenizer=clip,
            text_encoder_2=_encoder(clip, CLIPTextModelWithProjection),
            tokenizer_2=clip,
            text_encoder_3=_t5(t5, width=2 * WIDTH) if third else None,
            tokenizer_3=t5 if third else None,
        )
    )


def tiny_flux(*, guidance_embeds: bool = True) -> Any:
    """Build a Flux, dev or schnell. Its default picture is large: load it with a size."""
    torch.manual_seed(0)
    clip, t5 = tiny_tokenizer(), tiny_t5_tokenizer()
    return _silent(
        diffusers.FluxPipeline(
            transformer=diffusers.FluxTransformer2DModel(
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(4, 4, 8),
            ).eval(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=True
            ),
            vae=_vae(shift_factor=0.06, scaling_factor=1.5),
            text_encoder=_encoder(clip),
            tokenizer=clip,
            text_encoder_2=_t5(t5),
            tokenizer_2=t5,
        )
    )


def tiny_dit() -> Any:
    """Build a DiT with a learned variance and three classes that have a text."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=LATENT,
        patch_size=2,
        num_embeds_ada_norm=1000,
    ).eval()
    return _silent(
        diffusers.DiTPipeline(
            transformer=transformer,
            vae=_vae(),
            scheduler=diffusers.DDIMScheduler(clip_sample=False),
            id2label={"0": "tench, Tinca tinca", "1": "goldfish", "207": "golden retriever"},
        )
    )


def _plain_unet(channels: int, sample_size: int | tuple[int, int] = LATENT) -> UNet2DModel:
    return UNet2DModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(WIDTH, WIDTH),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def tiny_ddpm(sample_size: int | tuple[int, int] = LATENT) -> Any:
    """Build an unconditional diffusion of pixels, which clips its clean estimates."""
    torch.manual_seed(0)
    return _silent(
        diffusers.DDPMPipeline(
            unet=_plain_unet(3, sample_size), scheduler=diffusers.DDPMScheduler(clip_sample=True)
        )
    )


def tiny_ldm() -> Any:
    """Build an unconditional diffusion in the latents of a VQ-VAE."""
    torch.manual_seed(0)
    return _silent(
        diffusers.LDMPipeline(
            vqvae=diffusers.VQModel(
                block_out_channels=(16, 16),
                down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
                up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
                latent_channels=3,
                norm_num_groups=8,
                num_vq_embeddings=32,
            ).eval(),
            unet=_plain_unet(3),
            scheduler=diffusers.DDIMScheduler(**BETAS, clip_sample=False),
        )
    )


def tiny_pixart() -> Any:
    """Build a PixArt: attention masks and a learned variance."""
    torch.manual_seed(0)
    t5 = tiny_t5_tokenizer()
    return _silent(
        diffusers.PixArtAlphaPipeline(
            tokenizer=t5,
            text_encoder=_t5(t5),
            vae=_vae(),
            transformer=diffusers.PixArtTransformer2DModel(
                num_attention_heads=4,
                attention_head_dim=8,
                in_channels=4,
                out_channels=8,
                num_layers=1,
                cross_attention_dim=WIDTH,
                caption_channels=WIDTH,
                sample_size=LATENT,
                patch_size=2,
                use_additional_conditions=False,
            ).eval(),
            scheduler=diffusers.DPMSolverMultistepScheduler(**{**BETAS, "steps_offset": 0}),
        )
    )


def tiny_auraflow() -> Any:
    """Build an AuraFlow: a flow told the time from 0 to 1."""
    torch.manual_seed(0)
    t5 = tiny_t5_tokenizer()
    return _silent(
        diffusers.AuraFlowPipeline(
            tokenizer=t5,
            text_encoder=_t5(t5, UMT5Config, UMT5EncoderModel),
            vae=_vae(),
            transformer=diffusers.AuraFlowTransformer2DModel(
                sample_size=LATENT,
                patch_size=2,
                in_channels=4,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=WIDTH,
                caption_projection_dim=WIDTH,
                out_channels=4,
                pos_embed_max_size=64,
            ).eval(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
    )


PIPELINES: Mapping[str, Callable[[], Any]] = {
    "stable-diffusion": tiny_pipeline,
    "stable-diffusion v": lambda: tiny_pipeline("v_prediction"),
    "stable-diffusion zero-snr": tiny_zero_snr,
    "stable-diffusion 1:2": lambda: tiny_pipeline(sample_size=(LATENT, 2 * LATENT)),
    "stable-diffusion-xl": tiny_sdxl,
    "stable-diffusion-3": tiny_sd3,
    "stable-diffusion-3 with t5": lambda: tiny_sd3(third=True),
    "flux dev": tiny_flux,
    "flux true": tiny_flux,
    "flux schnell": lambda: tiny_flux(guidance_embeds=False),
    "dit": tiny_dit,
    "unconditional ddpm": tiny_ddpm,
    "unconditional ldm": tiny_ldm,
    "text-to-image pixart": tiny_pixart,
    "text-to-image auraflow": tiny_auraflow,
}
"""Builders by family and, after a space, what is particular about it."""

LOADED: Mapping[str, Mapping[str, Any]] = {
    "flux dev": {"height": 16, "width": 24},
    "flux true": {"height": 16, "width": 24, "true_guidance": True},
    "flux schnell": {"height": 16, "width": 24},
}
"""What a pipeline is loaded with."""


def tiny_folder(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a tiny Stable Diffusion as a complete diffusers folder of safetensors."""
    tiny_pipeline(prediction_type, seed).save_pretrained(folder, safe_serialization=True)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    return folder
