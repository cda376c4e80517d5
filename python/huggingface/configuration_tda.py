"""Configuration of the language models that `tda` trains."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class TdaConfig(PretrainedConfig):
    """The fields of config.json; docs/mechanisms.md of the project says what those of a mechanism mean.

    Args:
        mechanism: the attention mechanism, a key of ``mechanisms_tda.MECHANISMS``.
        rope_ntk_factor: NTK-aware factor s >= 1; the base of the rotary embedding becomes theta * s ** (D / (D - 2)).
        view_heads: ``"full"`` or ``"halved"`` for mechanisms with two views.
        kappa, power: constants of the threshold and of the rectifier.
        head_norm_eps: epsilon of the norm on the attention output.
        kwargs: everything else, among it the options of single mechanisms.
    """

    model_type = "tda"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        mechanism: str = "tda",
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        hidden_size: int = 768,
        vocab_size: int = 50304,
        max_position_embeddings: int = 1024,
        rope_theta: float = 10000.0,
        rope_ntk_factor: float = 1.0,
        layer_norm_eps: float = 1e-5,
        view_heads: str = "full",
        kappa: float = 1.0,
        power: float = 2.0,
        head_norm_eps: float = 1e-6,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.mechanism = mechanism
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rope_ntk_factor = rope_ntk_factor
        self.layer_norm_eps = layer_norm_eps
        self.view_heads = view_heads
        self.kappa = kappa
        self.power = power
        self.head_norm_eps = head_norm_eps
        self.use_cache = use_cache
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
