"""LTG-BERT (Samuel et al. 2023): classes that transformers' Auto classes know once this package is imported.

The modules named ``*_ltg_bert`` go into every saved folder, so that it loads with ``trust_remote_code=True`` where
there is no tinyhat: they import only each other, by relative imports, torch and transformers.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tinyhat.encoder.ltg_bert.configuration_ltg_bert import LtgBertConfig
from tinyhat.encoder.ltg_bert.modeling_ltg_bert import (
    LtgBertForMaskedLM,
    LtgBertForSequenceClassification,
    LtgBertForTokenClassification,
    LtgBertModel,
    LtgBertPreTrainedModel,
)

__all__ = [
    "LtgBertConfig",
    "LtgBertForMaskedLM",
    "LtgBertForSequenceClassification",
    "LtgBertForTokenClassification",
    "LtgBertModel",
    "LtgBertPreTrainedModel",
]

AutoConfig.register(LtgBertConfig.model_type, LtgBertConfig, exist_ok=True)
LtgBertConfig.register_for_auto_class()
for _auto, _class in (
    (AutoModel, LtgBertModel),
    (AutoModelForMaskedLM, LtgBertForMaskedLM),
    (AutoModelForSequenceClassification, LtgBertForSequenceClassification),
    (AutoModelForTokenClassification, LtgBertForTokenClassification),
):
    _auto.register(LtgBertConfig, _class, exist_ok=True)
    _class.register_for_auto_class(_auto.__name__)
