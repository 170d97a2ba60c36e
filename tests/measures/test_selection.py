import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwork_lens.measures.measure import Selection, refine


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.floats(0.001, 0.2), selection=st.sampled_from([0.02, 0.2, 0.9]))
def test_refinement_selects_what_exact_scores_select(seed, noise, selection):
    """As long as errors keep to β times the uncertainty, whatever they are, the selection is exact."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(300, generator=generator, dtype=torch.float64) + 0.01
    uncertainty = torch.rand(300, generator=generator, dtype=torch.float64) + 0.1
    off = (2 * torch.rand(300, generator=generator, dtype=torch.float64) - 1) * uncertainty
    estimates = truth * (noise * off).exp()
    rule, calls = Selection(top=selection), []

    def exact(some):
        calls.append(some)
        return truth[some]

    scores, exact_ones = refine(estimates, uncertainty, noise, exact, rule)
    assert torch.equal(rule.active(scores[None]), rule.active(truth[None]))
    assert torch.equal(scores[exact_ones], truth[exact_ones])
    assert torch.equal(scores[~exact_ones], estimates[~exact_ones])
    computed = torch.cat(calls) if calls else torch.tensor([])
    assert len(computed.unique()) == len(computed) == int(exact_ones.sum())


def test_a_wild_estimate_ends_in_the_dense_method():
    """Where the first refinement shows that the estimate means nothing, every neuron is refined."""
    generator = torch.Generator().manual_seed(0)
    truth, wild = (torch.rand(200, generator=generator, dtype=torch.float64) + 0.01 for _ in range(2))
    ones = torch.ones(200, dtype=torch.float64)
    scores, exact_ones = refine(wild, ones, 0.1, lambda some: truth[some], Selection(top=0.2))
    assert exact_ones.all()
    assert torch.equal(scores, truth)
