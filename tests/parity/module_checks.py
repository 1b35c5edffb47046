"""Checks that a module of ours computes what a module of diffusers or transformers does."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from diffusion_jax.types import Conditioning

TOLERANCE = 1e-4  # of the largest output
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def nchw(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def check(name, ours, theirs, tolerance=TOLERANCE):
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    assert ours.shape == theirs.shape, name
    scale = np.abs(theirs).max()
    error = np.abs(ours - theirs).max() / scale
    print(f"{name}: {error:.1e} of {scale:.2g}")
    assert scale > 0.05 and error < tolerance, name


@torch.no_grad()
def check_unet(model, module, params, theirs):
    context = theirs.config.cross_attention_dim
    x, tokens = normal(2, 8, 8, theirs.config.in_channels), normal(2, 5, context)
    time = np.array([1.0, 801.0], np.float32)
    vector, added = None, None
    if model.num_size_ids:
        pooled = normal(2, list(model.texts.values())[-1]["projection_dim"])
        sizes = np.tile(np.arange(1, model.num_size_ids + 1) * 37.0, (2, 1))
        sizes = sizes.astype(np.float32)
        added = dict(text_embeds=torch.tensor(pooled), time_ids=torch.tensor(sizes))
        vector = np.hstack([pooled, sinusoids(sizes, model.size_id_width)])
    cond = Conditioning(tokens=tokens, vector=vector)
    cond = jax.tree.map(jnp.asarray, cond)
    ours = jax.jit(module.apply)({"params": params}, x, jnp.asarray(time), cond)
    expected = theirs(
        nchw(x), torch.tensor(time), torch.tensor(tokens), added_cond_kwargs=added
    ).sample
    check("unet", ours, nhwc(expected))


def sinusoids(sizes, width):
    """[cos, sin] of every number, one behind the other."""
    i = np.arange(width // 2)
    angles = sizes[..., None] * np.exp(-np.log(10000.0) * i / (width // 2))
    both = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    return both.reshape(len(sizes), -1).astype(np.float32)


@torch.no_grad()
def check_vae(module, params, theirs):
    x, z = (
        np.tanh(normal(1, 16, 16, theirs.config.in_channels)),
        normal(1, 4, 4, theirs.config.latent_channels),
    )

    def both(params, x, z):
        variables = {"params": params}
        encoded = module.apply(variables, x, method="encode")
        return *encoded, module.apply(variables, z, method="decode")

    mean, logvar, image = jax.jit(both)(params, x, z)
    posterior = theirs.encode(nchw(x)).latent_dist
    check("vae mean", mean, nhwc(posterior.mean))
    check("vae logvar", logvar, nhwc(posterior.logvar))
    check("vae image", image, nhwc(theirs.decode(nchw(z)).sample))


@torch.no_grad()
def check_text(name, fields, module, params, theirs):
    tokens = RNG.integers(0, fields["vocab_size"] - 1, (2, 77)).astype(np.int32)
    tokens[0, 9:] = tokens[1, -1] = fields["vocab_size"] - 1
    hidden, pooled = jax.jit(module.apply)({"params": params}, jnp.asarray(tokens))
    out = theirs(torch.tensor(tokens).long(), output_hidden_states=True)
    if fields.get("skip_layers"):
        check(f"{name} hidden", hidden, out.hidden_states[-2])
    else:
        check(f"{name} hidden", hidden, out.last_hidden_state)
    is_projected = "projection_dim" in fields
    check(f"{name} pooled", pooled, out.text_embeds if is_projected else out[1])
