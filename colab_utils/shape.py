"""The sizes of a Llama, read once from its config.

All other modules take a `Shape`: only this one knows what transformers calls the sizes,
and which of them a config may leave out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colab_utils.families import FAMILIES, Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A config without one of these fields is that of a model with other layers.
REQUIRED = ("intermediate_size", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class Shape:
    """The sizes of a model with Llama's decoder layers.

    Such a layer has a gated MLP and grouped-query attention: `heads` query heads share
    `kv_heads` key and value heads.
    """

    family: str  # transformers' `model_type`: "llama", "mistral", ...
    width: int  # of the residual stream (`hidden_size`)
    inner: int  # width of the MLP (`intermediate_size`)
    layers: int
    heads: int  # query heads
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool  # embeddings and head are the same weight
    activation: str  # of the MLP, such as "silu"
    rope: str  # type of the rotary embedding, such as "default" or "llama3"
    norm_eps: float
    max_positions: int
    quantized: bool  # the model's files hold quantized weights
    biased: tuple[str, ...] = ()  # the linear layers that have a bias
    qk_norm: bool = False  # each head of queries and keys has an RMSNorm
    window: int | None = None  # tokens that the narrowest attention sees, if limited
    nope: tuple[int, ...] = ()  # layers without a rotary embedding

    @classmethod
    def from_config(cls, config: PreTrainedConfig | Shape) -> Shape:
        """Return the sizes in a transformers config; a `Shape` is returned as it is.

        Raises ValueError for a model without Llama's layers.
        """
        if isinstance(config, Shape):
            return config
        if not all(hasattr(config, name) for name in REQUIRED):
            raise ValueError(
                "The course supports models with Llama's layers, but this one is a "
                f"{config.model_type}: choose another MODEL."
            )

        heads = config.num_attention_heads

        def optional(*names: str, default: Any) -> Any:
            values = (getattr(config, name, None) for name in names)
            return next((value for value in values if value is not None), default)

        return cls(
            family=config.model_type,
            width=config.hidden_size,
            inner=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=config.num_key_value_heads or heads,
            head_dim=optional("head_dim", default=config.hidden_size // heads),
            vocab=config.vocab_size,
            tied=config.tie_word_embeddings,
            activation=optional("hidden_act", "hidden_activation", default=""),
            rope=_rope_type(optional("rope_parameters", default={})),
            norm_eps=optional("rms_norm_eps", "layer_norm_eps", default=1e-5),
            max_positions=optional("max_position_embeddings", default=0),
            quantized=bool(optional("quantization_config", default=False)),
            biased=_biased(config),
            qk_norm=FAMILIES.get(config.model_type, Family("")).qk_norm,
            window=_window(config),
            nope=tuple(
                i
                for i, rotated in enumerate(optional("no_rope_layers", default=()))
                if not rotated
            ),
        )

    @property
    def known(self) -> bool:
        """Whether the layers are those of one of the course's families."""
        return self.family in FAMILIES

    @property
    def queries(self) -> int:
        """The width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """The width of all keys of a token; all its values have the same width."""
        return self.kv_heads * self.head_dim

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (inputs, outputs) of the seven linear layers of a decoder layer."""
        return {
            "q_proj": (self.width, self.queries),
            "k_proj": (self.width, self.keys),
            "v_proj": (self.width, self.keys),
            "o_proj": (self.queries, self.width),
            "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner),
            "down_proj": (self.inner, self.width),
        }


def _biased(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the linear layers that have a bias, in the order of `linear_shapes`."""
    found = FAMILIES.get(config.model_type, Family("")).biased
    if not found and getattr(config, "attention_bias", False):
        found = ("q_proj", "k_proj", "v_proj", "o_proj")
    if getattr(config, "mlp_bias", False):
        found += ("gate_proj", "up_proj", "down_proj")
    return found


def _window(config: PreTrainedConfig) -> int | None:
    """Return the sliding window of attention, or None if no layer has one."""
    kinds = getattr(config, "layer_types", None)
    if not getattr(config, "use_sliding_window", True):
        return None
    if kinds and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def _rope_type(parameters: dict[str, Any]) -> str:
    """Return the type of the rotary embedding; "mixed" if the layers have several."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return "mixed" if nested else parameters.get("rope_type", "default")
