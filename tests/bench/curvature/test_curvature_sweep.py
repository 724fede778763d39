"""Every architecture that can be made tiny: the Hessian of the model's own loss, or a sentence.

The reference is double backward through the model's own call with labels, in eager attention and fp64, with padding on the left and
on the right. The tables are data: a model that begins to agree, or ceases to, fails a test and moves to another table.
"""

import pytest

from support.curvature_sweep import AGREES, AGREES_WITH_DIFFERENCES, SIDES, outcomes

AGREE = """
afmoe apertus arcee aria aria_text audioflamingo3 axk1 axk2 aya_vision bamba bert bert-generation big_bird biogpt
bitnet bloom camembert codegen cohere cohere2 cohere2_moe cosmos3_omni ctrl cwm data2vec-text deepseek_v2
deepseek_v3 deepseek_v32 deepseek_v4 deepseek_vl diffllama doge electra emu3 ernie ernie4_5 ernie4_5_moe exaone4
exaone4_5 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text
gemma4 gemma4_text gemma4_unified gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa glmasr got_ocr2
gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_speech granite_speech_plus
granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hrm_text hunyuan_v1_dense
hunyuan_v1_moe hy_v3 hy_v4 hyperclovax idefics2 idefics3 internvl jais2 jamba jetmoe kimi_k25 kosmos-2.5 laguna lfm2
lfm2_vl lighton_ocr llama llama4 llama4_text llava llava_next llava_next_video llava_onevision mamba megatron-bert
mellum mimo_v2_flash minicpm3 minicpmv4_6 minimax minimax_m2 minimax_m3_vl minimax_m3_vl_text ministral ministral3
mistral mistral3 mistral4 mixtral mllama modernbert-decoder moshi mpt musicflamingo nanochat nemotron nemotron_h
olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt ovis2 paddleocr_vl paligemma persimmon phi phi3 phimoe
pp_chart2table qianfan_ocr qwen2 qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_5 qwen3_5_moe
qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe rembert roberta roberta-prelayernorm
roformer seed_oss shieldgemma2 smollm3 smolvlm solar_open stablelm starcoder2 step3p7 vaultgemma video_llama_3
video_llava vipllava voxtral xglm xlm-roberta xlm-roberta-xl youtu
"""
"""Types whose product is that of double backward with padding on either side."""

REFUSED = {
    "takes no labels and has no loss": """
        aimv2_vision_model beit canine chinese_clip_vision_model clip_text_model clip_vision_model data2vec-vision
        deit dinov2 dinov2_with_registers dinov3_vit dpr dpt flava glm4v_text idefics3_vision ijepa imagegpt
        internvl_vision markuplm mlcd mlcd_vision_model mobilenet_v2 muse_glimmer_text openai_privacy_filter pixio
        pixtral qianfan_ocr_vision qwen2_5_vl_text qwen2_vl_text qwen3_vl_moe_text qwen3_vl_text radio
        sam3_lite_text_text_model sam3_vision_model sam3_vit_model sam_hq_vision_model sam_vision_model sapiens2
        siglip_vision_model smolvlm_vision splinter tipsv2 tipsv2_text_model tipsv2_vision_model visual_bert vit
        vit_mae vit_msn vitdet
    """,
    "has an encoder and a decoder": """
        bart bigbird_pegasus blenderbot blenderbot-small fsmt led longt5 m2m_100 marian mbart mt5 mvp nllb-moe
        pegasus pegasus_x plbart prophetnet seamless_m4t seamless_m4t_v2 switch_transformers t5 t5gemma t5gemma2
        umt5
    """,
    "adds up its loss in another way": """
        albert convbert deberta deberta-v2 distilbert esm eurobert flaubert fnet funnel ibert jina_embeddings_v3
        layoutlm longformer mobilebert modernbert modernvbert mpnet mra nomic_bert nystromformer squeezebert tapas
        trocr whisper xlm xlnet yoso
    """,
    "cannot be called with input_ids, attention_mask and labels alone": """
        git higgs_audio_v2
    """,
}
"""Types that are refused, by what the sentence holds."""

PARTLY_REFUSED = {"recurrent_gemma": {"left": "the derivative of the logits by model.embed_tokens.weight"}}
"""Types that are refused with padding on one side."""

NO_REFERENCE = {"rwkv"}
"""Types that change a tensor which double backward needs, and are compared with differences of gradients."""

EVERY_DAY = {"falcon", "git", "t5", "vit"}
"""Types that are tried in each run of the tests, not only at night; `test_agreement` has a dozen more."""


def _expected() -> dict[str, str]:
    expected = dict.fromkeys(AGREE.split(), AGREES) | dict.fromkeys(PARTLY_REFUSED, AGREES)
    expected |= dict.fromkeys(NO_REFERENCE, AGREES_WITH_DIFFERENCES)
    for sentence, types in REFUSED.items():
        expected |= dict.fromkeys(types.split(), f"refused: curvature: {sentence}")
    return expected


EXPECTED = _expected()


def test_there_are_enough_types() -> None:
    listed = " ".join([AGREE, *REFUSED.values(), *PARTLY_REFUSED, *NO_REFERENCE]).split()
    assert sorted(listed) == sorted(EXPECTED)  # in one table each
    assert len(AGREE.split()) >= 130
    assert EXPECTED.keys() >= EVERY_DAY


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model_type", [pytest.param(x, marks=() if x in EVERY_DAY else pytest.mark.nightly) for x in sorted(EXPECTED)]
)
def test_curvature_is_that_of_the_models_own_loss_or_says_why_not(model_type: str) -> None:
    results = outcomes(model_type)
    assert results.keys() == set(SIDES)
    for side, outcome in results.items():
        expected = PARTLY_REFUSED.get(model_type, {}).get(side, EXPECTED[model_type])
        if expected in {AGREES, AGREES_WITH_DIFFERENCES}:
            assert outcome == expected, side
        else:
            assert outcome.startswith("refused: curvature: "), side
            assert expected.removeprefix("refused: curvature: ") in outcome, side
