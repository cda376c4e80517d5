"""The language model of the TDA project for Hugging Face transformers.

A GPT with pre-LayerNorm blocks, rotary embedding, an exact GELU, no biases and an untied head; attention is one of
``mechanisms_tda.MECHANISMS``. Names of parameters are those that `tda train` writes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention_tda import Rotation, rotation
from .configuration_tda import TdaConfig
from .mechanisms_tda import MECHANISMS


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class TdaBlock(nn.Module):
    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention_norm = nn.LayerNorm(width, eps=eps, bias=False)
        self.attention = MECHANISMS[config.mechanism](config, layer)
        self.mlp_norm = nn.LayerNorm(width, eps=eps, bias=False)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, turn: Rotation, cache: Cache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn, cache)
        return x + self.mlp(self.mlp_norm(x))


def require_no_padding_before_text(attention_mask: Tensor | None, length: int) -> None:
    """Thresholds and rotary embedding count positions from the first token, so padding may only follow the text.

    Keys behind a row never reach it; what the model says at padded positions means nothing.
    """
    if attention_mask is None:
        return
    if attention_mask.dim() != 2 or attention_mask.shape[1] != length:
        raise ValueError(f"attention_mask: expected shape (B, {length}), got {tuple(attention_mask.shape)}")
    if attention_mask.shape[1] > 1 and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
        raise ValueError("attention_mask: this model takes padding on the right only; generate prompts of equal length")


def require_positions_from_zero(
    position_ids: Tensor | None, attention_mask: Tensor | None, past: int, length: int
) -> None:
    if position_ids is None:
        return
    wrong = position_ids != torch.arange(past, past + length, device=position_ids.device)
    if attention_mask is not None:  # behind the text positions mean nothing
        wrong = wrong & attention_mask[:, -length:].bool()
    if bool(wrong.any()):
        raise ValueError("position_ids: positions count from the first token; leave them out")


class TdaForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = TdaConfig
    base_model_prefix = "model"
    _no_split_modules = ("TdaBlock",)

    def __init__(self, config: TdaConfig) -> None:
        super().__init__(config)
        if config.mechanism not in MECHANISMS:
            raise ValueError(f"mechanism: expected one of {', '.join(MECHANISMS)}, got {config.mechanism!r}")
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TdaBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) of the tokens that follow.

        Args:
            input_ids: (B, T).
            attention_mask: (B, past + T); zeros may stand at the end of a row only.
            position_ids: (B, T); positions count from the first token, nothing else is accepted.
            past_key_values: what earlier positions left; the new ones are added to it.
            labels: (B, T), -100 is left out; shifted by one inside, as everywhere in transformers.
            logits_to_keep: compute the last rows only; 0 for all.

        Raises:
            ValueError: padding before the text, or other positions.
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        length = input_ids.shape[1]
        require_no_padding_before_text(attention_mask, past + length)
        require_positions_from_zero(position_ids, attention_mask, past, length)

        turn = rotation(self.config, past, length, input_ids.device)
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x, turn, past_key_values)
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(self.final_norm(x[:, rows]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
