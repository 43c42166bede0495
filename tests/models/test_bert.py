"""Properties of BERT for any weights; tests/weights/test_bert.py compares it with published ones."""

from typing import Any

import pytest
import torch

from llm.generation.decoding import generates
from llm.models.classifier import Classifier, first_token, last_token

TOKENS = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bert(build):
    torch.manual_seed(0)
    return build("model=bert").eval()


def test_every_position_sees_the_whole_text(bert):
    changed = TOKENS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 97
    difference = (bert.hidden_states(TOKENS) - bert.hidden_states(changed)).abs().amax(dim=(0, 2))
    assert (difference > 1e-6).all()


def test_hidden_states_depend_on_order_and_segments_and_not_on_padding(bert):
    before = bert.hidden_states(TOKENS)
    assert not torch.allclose(bert.hidden_states(TOKENS.flip(1)).flip(1), before)
    segments = (torch.arange(12) >= 6).long().expand(2, -1)
    assert not torch.allclose(bert.hidden_states(TOKENS, segments=segments), before)
    real = torch.arange(12) < torch.tensor([[12], [5]])
    padded = bert.hidden_states(TOKENS, attention_mask=real)
    torch.testing.assert_close(padded[0], before[0])
    torch.testing.assert_close(padded[1, :5], bert.hidden_states(TOKENS[1:, :5])[0])


def test_head_shares_the_embedding_and_starts_near_uniform_probabilities(bert):
    assert bert.head.weight is bert.embedding.weight
    probabilities = bert(TOKENS).softmax(dim=-1)
    assert probabilities.shape == (2, 12, 97)
    assert (probabilities.max() < 3 / 97) & (probabilities.min() > 1 / 300)


@pytest.mark.parametrize("residual", ["post_norm", "pre_norm"])
@pytest.mark.parametrize("position", ["rotary", "sinusoidal", "none"])
def test_bert_works_with_other_residuals_and_positions(build, residual, position):
    model = build("model=bert", f"model/residual={residual}", f"model/position={position}").eval()
    assert model(TOKENS).isfinite().all()


def test_unsupported_parts_and_operations_are_refused(build):
    # `build` raises Hydra's exception, whose message contains ours.
    with pytest.raises(Exception, match="position: ALiBi is defined for earlier keys only"):
        build("model=bert", "model/position=alibi")
    with pytest.raises(ValueError, match="cannot generate text"):
        build("model=bert").new_cache(1)
    with pytest.raises(Exception, match="num_segments=0 is out of range; give 1 or more"):
        build("model=bert", "model.num_segments=0")


def test_a_classifier_reads_the_first_token_by_default(build):
    real = torch.arange(12) < torch.tensor([[12], [5]])
    classifier = Classifier(build("model=bert"), num_classes=3).eval()
    body: Any = classifier.body
    hidden = body.hidden_states(TOKENS, attention_mask=real)
    torch.testing.assert_close(classifier(TOKENS, real), classifier.head(hidden[:, 0]))
    assert Classifier(build("model=bert"), 3, pooling=last_token).pooling is last_token
    assert Classifier(build("model=bert"), 3).pooling is first_token
    assert Classifier(build("model=gpt2"), 3).pooling is last_token


def test_bert_learns_to_predict_a_token_from_later_ones(build):
    torch.manual_seed(0)
    model = build("model=bert", "model.dropout=0", vocab_size=9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        letters = torch.randint(8, (32, 1))
        tokens = letters.repeat(1, 4)
        tokens[:, 0] = 8  # the mask token
        logits = model(tokens)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, letters[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 < 2.08 - 0.1 < losses[0], "from guessing (ln 8) to certainty"


def test_bert_is_not_causal_and_does_not_generate(bert):
    assert not bert.causal
    assert not generates(bert)
