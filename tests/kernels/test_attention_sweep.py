"""Every architecture that can be made tiny, called in every way: the numbers of eager attention, or a sentence.

The tables are data: a model that begins to agree, or ceases to, fails a test and moves to another table. What makes and calls
the models is in `support.attention_models` and `support.attention_sweep`.
"""

import pytest

from support.attention_sweep import AGREES, OWN_ATTENTION, outcomes

AGREE = """
afmoe aimv2_vision_model albert apertus arcee aria aria_text audioflamingo3 axk1 aya_vision bamba bart beit bert
bert-generation biogpt bitnet blenderbot blenderbot-small camembert chinese_clip_vision_model clip_text_model
clip_vision_model cohere cohere2 cohere2_moe cosmos3_omni ctrl cwm data2vec-text deepseek_v2 deepseek_v3 deepseek_vl
deit diffllama dinov2 dinov2_with_registers dinov3_vit distilbert dpr dpt electra emu3 ernie ernie4_5 ernie4_5_moe
esm eurobert exaone4 exaone4_5 exaone_moe falcon_h1 flex_olmo fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text
gemma4 gemma4_text gemma4_unified gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm4v_text glmasr got_ocr2
gpt-sw3 gpt2 gpt_bigcode gpt_neox granite granite_speech granite_speech_plus granitemoe granitemoehybrid
granitemoeshared helium higgs_audio_v2 hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax idefics2 idefics3
idefics3_vision ijepa internvl internvl_vision jais2 jamba jetmoe jina_embeddings_v3 kimi_k25 kosmos-2.5 laguna lfm2
lfm2_vl lighton_ocr llama llama4 llama4_text llava llava_next llava_next_video llava_onevision m2m_100 marian mbart
mellum minicpm3 minicpmv4_6 minimax minimax_m2 ministral ministral3 mistral mistral3 mistral4 mixtral mlcd
mlcd_vision_model mllama mobilebert modernbert modernbert-decoder modernvbert muse_glimmer_text musicflamingo
nanochat nemotron nemotron_h nomic_bert olmo olmo2 olmo3 olmo_hybrid olmoe opt ovis2 paddleocr_vl paligemma pegasus
pegasus_x persimmon phi phi3 phimoe pixio plbart pp_chart2table qianfan_ocr qianfan_ocr_vision qwen2 qwen2_5_vl
qwen2_5_vl_text qwen2_audio qwen2_moe qwen2_vl qwen2_vl_text qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text
qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe qwen3_vl_moe_text qwen3_vl_text radio recurrent_gemma roberta
roberta-prelayernorm sam3_lite_text_text_model sam3_vision_model sam3_vit_model sapiens2 seamless_m4t
seamless_m4t_v2 seed_oss shieldgemma2 siglip_vision_model smollm3 smolvlm smolvlm_vision solar_open splinter
stablelm starcoder2 step3p7 t5gemma tipsv2 tipsv2_text_model tipsv2_vision_model vaultgemma video_llama_3
video_llava vipllava vit vit_mae vit_msn voxtral whisper xlm-roberta xlm-roberta-xl youtu
"""
"""Types whose every way of being called gives the numbers of eager attention."""

REFUSED = {
    "applies its attention mask itself": """
        axk2 big_bird bigbird_pegasus bloom canine codegen convbert deepseek_v32 doge flava glm_moe_dsa
        gpt_neox_japanese hy_v4 ibert imagegpt led longformer megatron-bert mpnet mpt mra mvp nllb-moe nystromformer
        rembert roformer squeezebert t5gemma2 tapas trocr visual_bert xglm
    """,
    "attention sinks are not supported": """
        deepseek_v4 gpt_oss granite_swa granitemoe_swa mimo_v2_flash openai_privacy_filter
    """,
    "made elsewhere": """
        layoutlm markuplm pixtral
    """,
    "position biases are not supported": """
        longt5 mt5 switch_transformers t5 umt5
    """,
    "'block_indices' that is not understood": """
        minimax_m3_vl minimax_m3_vl_text
    """,
}
"""Types that are refused in every way of being called, by what the sentence holds."""

PARTLY_REFUSED = {"moshi": {"prefill": "passes no mask"}}
"""Types that are refused in some ways of being called."""

OWN = """
deberta deberta-v2 falcon_mamba flaubert fnet fsmt funnel mamba mobilenet_v2 openai-gpt prophetnet rwkv vitdet xlm
xlnet yoso
"""
"""Types that have no attention, or compute it without the interface: they stay what they are."""

TABLES = """
data2vec-vision falcon git gpt_neo gptj sam_hq_vision_model sam_vision_model
"""
"""Types that look their attention up in a table of their own when they are made: a KeyError before anything here is asked."""

NOT_IN_EAGER = {
    "steps": """
        bert bert-generation big_bird camembert data2vec-text electra ernie falcon_mamba flaubert mamba
        megatron-bert openai-gpt recurrent_gemma rembert roberta roberta-prelayernorm roformer rwkv xlm xlm-roberta
        xlm-roberta-xl xlnet
    """,
    "static": """
        deepseek_v4 llama4 llama4_text prophetnet
    """,
}
"""Ways of being called that eager attention of this version fails in as well, by type."""

EVERY_DAY = {"llama", "gpt2", "gemma2", "bart", "bloom", "gpt_oss", "moshi", "minimax_m3_vl_text"}
"""Types that are tried in each run of the tests, not only at night."""


def _expected() -> dict[str, str]:
    """What is expected of each type where eager attention works: one outcome, or part of a sentence."""
    expected = (
        dict.fromkeys(AGREE.split(), AGREES)
        | dict.fromkeys(PARTLY_REFUSED, AGREES)
        | dict.fromkeys(OWN.split(), OWN_ATTENTION)
    )
    for sentence, types in REFUSED.items():
        expected |= dict.fromkeys(types.split(), sentence)
    return expected | dict.fromkeys(TABLES.split(), "KeyError: 'modelassay'")


EXPECTED = _expected()


def test_there_are_enough_types() -> None:
    listed = " ".join([AGREE, OWN, TABLES, *REFUSED.values(), *PARTLY_REFUSED]).split()
    assert sorted(listed) == sorted(EXPECTED)  # in one table each
    assert len(EXPECTED) >= 130
    assert EXPECTED.keys() >= EVERY_DAY
    failing = {model_type for types in NOT_IN_EAGER.values() for model_type in types.split()}
    assert failing <= EXPECTED.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model_type", [pytest.param(x, marks=() if x in EVERY_DAY else pytest.mark.nightly) for x in sorted(EXPECTED)]
)
def test_a_model_agrees_with_eager_attention_or_says_why_not(model_type: str) -> None:
    failing = {mode for modes, types in NOT_IN_EAGER.items() if model_type in types.split() for mode in modes.split()}
    results = outcomes(model_type)
    assert {mode for mode, outcome in results.items() if outcome.startswith("eager fails")} == failing
    for mode, outcome in results.items():
        if mode not in failing:
            expected = PARTLY_REFUSED.get(model_type, {}).get(mode, EXPECTED[model_type])
            assert outcome == expected if expected in {AGREES, OWN_ATTENTION} else expected in outcome, mode
