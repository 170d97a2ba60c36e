"""Registered architectures that are not decoder-only text models, and what they are instead."""

_BY_KIND = {
    "encoder": "BertForMaskedLM BertLMHeadModel RobertaForMaskedLM",
    "encoder-decoder": (
        "BartForConditionalGeneration BlenderbotForConditionalGeneration LEDForConditionalGeneration "
        "LongT5ForConditionalGeneration M2M100ForConditionalGeneration MarianMTModel MBartForConditionalGeneration "
        "MT5ForConditionalGeneration PegasusForConditionalGeneration SwitchTransformersForConditionalGeneration "
        "T5ForConditionalGeneration T5Gemma2ForConditionalGeneration T5GemmaForConditionalGeneration T5WithLMHeadModel"
    ),
    "vision": "DeiTForImageClassification DeiTModel ViTForImageClassification ViTModel",
    "speech": (
        "ASTForAudioClassification HubertForCTC HubertModel Wav2Vec2ForCTC Wav2Vec2ForPreTraining Wav2Vec2Model"
    ),
    "multimodal": (
        "AudioFlamingo3ForConditionalGeneration Emu3ForConditionalGeneration Florence2ForConditionalGeneration "
        "Gemma3ForConditionalGeneration Gemma3nForConditionalGeneration Gemma4ForConditionalGeneration "
        "Gemma4UnifiedForConditionalGeneration Glm4vForConditionalGeneration GlmAsrForConditionalGeneration "
        "Idefics3ForConditionalGeneration Llama4ForConditionalGeneration LlavaForConditionalGeneration "
        "LlavaNextForConditionalGeneration LlavaOnevisionForConditionalGeneration Mistral3ForConditionalGeneration "
        "MuseGlimmerForConditionalGeneration MusicFlamingoForConditionalGeneration "
        "Qwen2_5_VLForConditionalGeneration Qwen2AudioForConditionalGeneration Qwen3_5ForConditionalGeneration "
        "Qwen3_5MoeForConditionalGeneration Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration"
    ),
    "diffusion": "BD3LM DreamModel GiddForDiffusionLM LLaDA2MoeModelLM LLaDAModelLM",
}
OTHERS = {name: kind for kind, names in _BY_KIND.items() for name in names.split()}
