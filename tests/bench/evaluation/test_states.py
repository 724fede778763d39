"""Texts under hidden states: against sums by hand in float64, on batches of unlike lengths, and at the ends of the measures' ranges."""

import math

import numpy as np
import pytest
import torch

from modelassay.evaluation.states import activation_statistics, coherence, mean_states, sentences_of, sigma
from support.byte_tokenizer import byte_tokenizer
from support.drift_models import byte_model


def unit_rows(count: int, size: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def test_a_text_is_its_own_mean_whatever_it_is_read_with() -> None:
    model, tokenizer = byte_model().eval(), byte_tokenizer()
    texts = ["The dogs sleep.", "", "a", "It rains on the small village and the owls drink slowly."]
    found = mean_states(model, tokenizer, texts)
    for text, row in zip(texts, found, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if not ids:
            assert not row.any()
            continue
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double()
        expected = states.mean(0) / states.mean(0).norm()
        assert torch.allclose(row, expected, atol=1e-6)


def test_coherence_is_the_mean_over_pairs() -> None:
    states, documents = unit_rows(9, 5), [0, 0, 0, 2, 2, 3, 5, 5, 5]
    adjacent, chance = coherence(states, documents)
    near = [float(states[at - 1] @ states[at]) for at in range(1, 9) if documents[at] == documents[at - 1]]
    far = [float(states[i] @ states[j]) for i in range(9) for j in range(9) if documents[i] != documents[j]]
    assert adjacent == pytest.approx(sum(near) / len(near))
    assert chance == pytest.approx(sum(far) / len(far))
    assert all(map(math.isnan, coherence(states[:1], [0])))
    alone = coherence(states[:3], [0, 0, 0])
    assert math.isfinite(alone[0])
    assert math.isnan(alone[1])
    assert all(map(math.isnan, coherence(states[:0], [])))


def test_sentences_end_in_marks() -> None:
    assert sentences_of("One. Two! 日本語だ。次は？ open", None) == ["One.", "Two!", "日本語だ。", "次は？"]
    assert sentences_of("...", None) == []
    assert sentences_of("The dogs sleep. The fox", "en") == ["The dogs sleep."]


def test_sigma_is_the_sum_of_log_eigenvalues_and_falls_where_texts_lie_close() -> None:
    rows = unit_rows(40, 6)
    values = np.linalg.eigvalsh((rows.T @ rows).numpy())
    sensitive, conservative = sigma(rows, total=100)
    assert sensitive == pytest.approx(float(np.log(values + 1e-3).sum()) - 6 * math.log(40))
    assert conservative == pytest.approx(float(np.log1p(values / (60 + 1e-3)).sum()))
    centre = unit_rows(1, 6, seed=3)
    close = torch.nn.functional.normalize(centre + 0.05 * rows, dim=-1)
    narrow = sigma(close, total=100)
    assert narrow[0] < sensitive - 5
    assert narrow[1] < conservative
    assert math.isnan(sigma(rows)[1])
    assert all(map(math.isnan, sigma(rows[:6])))


def test_activation_statistics_are_their_definitions() -> None:
    model = byte_model().eval()
    rows = torch.randint(0, 259, (5, 7), generator=torch.Generator().manual_seed(1))
    found = activation_statistics(model, rows, batch_size=2)
    with torch.no_grad():
        layers = model(input_ids=rows, output_hidden_states=True).hidden_states
    assert len(found) == len(layers) == 5
    for values, states in zip(found, layers, strict=True):
        x = states.flatten(0, 1).double()
        centred = x - x.mean(0)
        unit = torch.nn.functional.normalize(x, dim=-1)
        cosines = unit @ unit.T
        assert values["rms"] == pytest.approx(float(x.square().mean().sqrt()), rel=1e-5)
        assert values["kurtosis"] == pytest.approx(float((centred**4).mean() / (centred**2).mean() ** 2), rel=1e-5)
        assert values["largest"] == pytest.approx(float(x.abs().max()) / values["rms"], rel=1e-5)
        assert values["anisotropy"] == pytest.approx(float((cosines.sum() - 35) / (35 * 34)), abs=1e-6)
