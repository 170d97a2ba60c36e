"""The sequential method: switch off one neuron at a time through a hook and measure what changes."""

import torch

from mwork_lens.model.sites import SITES


def output_hook(model, layer, site, where):
    if site in ("q", "k"):
        return f"blocks.{layer}.attn.hook_pattern"
    if where == "stream":
        return f"blocks.{layer}.hook_{'attn' if site == 'v' else 'mlp'}_out"
    return None


def own_output(model, layer, site):
    """The modules' own output, before any post-norm, caught by a forward hook of torch."""
    block = model.blocks[layer]
    return block.attn if site == "v" else block.mlp


@torch.inference_mode()
def sequential(model, ids, layer, site, neuron, where="stream", rows=None):
    """‖change‖_F / √positions when one neuron is zeroed at every position."""
    rows = torch.ones(len(ids), dtype=torch.bool) if rows is None else rows
    name = output_hook(model, layer, site, where)

    def run(hooks):
        kept = []
        if name is None:
            handle = own_output(model, layer, site).register_forward_hook(lambda m, i, out: kept.append(out))
            try:
                model.run_with_hooks(ids[None], fwd_hooks=hooks, stop_at_layer=layer + 1)
            finally:
                handle.remove()
        else:
            keep = (name, lambda activation, hook: kept.append(activation.clone()))
            model.run_with_hooks(ids[None], fwd_hooks=[*hooks, keep], stop_at_layer=layer + 1)
        return kept[0][0]

    def zero(activation, hook):
        flat = activation.flatten(2).clone()
        flat[..., neuron] = 0
        return flat.view(activation.shape)

    change = run([(SITES[site].hook_name(layer), zero)]) - run([])
    # positions are the second-last axis of a pattern [head, query, key] and of an output [pos, d_model]
    change = change[..., rows, :]
    return (change.square().sum() / rows.sum()).sqrt().item()
