"""Seconds of Stable Diffusion 1.5 at full size, here and in diffusers, in one process.

    python tests/parity/bench_published.py unet decode encode text [--pairs 3]

Random weights, the same in both; float32; the two take turns, and the ratio is that of
the medians. `unet` is a guided step at 512 pixels: batch 2, 77 tokens.
"""

import argparse
import statistics
import time

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from diffusion_jax.models import clip
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.context import with_keys_values
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning
from diffusion_jax.weights import convert

DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3


def draw_params(module, *inputs, **options):
    """Parameters that keep the scale of what goes through, without an initialiser."""
    like = jax.eval_shape(module.init, jax.random.key(0), *inputs, **options)["params"]
    drawn = normal(2**20 + 7)  # repeated: a draw of its own for each takes a minute

    def draw(path, like):
        if path[-1].key == "scale":
            return np.ones(like.shape, np.float32)
        if path[-1].key == "bias":
            return np.zeros(like.shape, np.float32)
        fan_in = max(1, np.prod(like.shape[:-1]))
        return np.resize(drawn / np.float32(fan_in**0.5), like.shape)

    return jax.tree_util.tree_map_with_path(draw, like)


def same_weights(make, params):
    """The torch module of these parameters, without initialising it either."""
    with torch.device("meta"):
        module = make()
    state = {k: torch.from_numpy(v) for k, v in convert.save_torch(params).items()}
    own = set(module.state_dict())
    if not set(state) <= own:  # transformers drops a prefix
        state = {k.removeprefix("text_model."): v for k, v in state.items()}
    module.load_state_dict(state, assign=True, strict=True)
    for name, buffer in module.named_buffers():
        parent = module.get_submodule(name.rpartition(".")[0])
        size = buffer.shape[-1]  # position_ids, all that there are
        setattr(parent, name.rpartition(".")[2], torch.arange(size)[None])
    return module.eval()


def normal(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def nchw(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()


def make_unet(dtype):
    unet = UNet(dtype=dtype)
    x, time, tokens = normal(2, 64, 64, 4), np.full(2, 500.0, np.float32), None
    tokens = normal(2, 77, 768)
    cond = Conditioning(jnp.asarray(tokens))
    params = draw_params(unet, x, time, cond)
    theirs = same_weights(
        lambda: diffusers.UNet2DConditionModel(
            cross_attention_dim=768, down_block_types=DOWN, up_block_types=UP
        ),
        params,
    )
    params = cast(params, dtype)
    kept = jax.jit(lambda params: with_keys_values(unet, params, cond))(params)

    def step(params, x, time, cond):
        return unet.apply({"params": params}, x, time, cond)

    args = nchw(x), torch.from_numpy(time), torch.from_numpy(tokens)
    return step, (params, x, time, kept), lambda: nhwc(theirs(*args).sample)


def make_vae(method, dtype):
    vae = AutoencoderKL(dtype=dtype)
    image, z = normal(1, 512, 512, 3), normal(1, 64, 64, 4)
    params = draw_params(vae, image)
    theirs = same_weights(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ),
        params,
    )
    params = cast(params, dtype)

    def run(params, x):
        y = vae.apply({"params": params}, x, method=method)
        return y if method == "decode" else y[0]

    if method == "decode":
        return run, (params, z), lambda: nhwc(theirs.decode(nchw(z)).sample)
    mean = lambda: nhwc(theirs.encode(nchw(image)).latent_dist.mean)
    return run, (params, image), mean


def make_text(dtype):
    tower = clip.CLIPText(dtype=dtype)
    ids = np.random.default_rng(0).integers(0, 49406, (2, 77)).astype(np.int32)
    ids[:, -1] = 49407
    params = draw_params(tower, ids)
    config = transformers.CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=49407,
    )
    theirs = same_weights(lambda: transformers.CLIPTextModel(config), params)
    params = cast(params, dtype)

    def run(params, ids):
        return tower.apply({"params": params}, ids)[0]

    tokens = torch.from_numpy(ids).long()
    return run, (params, ids), lambda: theirs(tokens).last_hidden_state.numpy()


PARTS = {
    "unet": make_unet,
    "decode": lambda dtype: make_vae("decode", dtype),
    "encode": lambda dtype: make_vae("encode", dtype),
    "text": make_text,
}


def cast(params, dtype):
    return jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


def seconds(function):
    start = time.perf_counter()
    result = np.asarray(function(), np.float32)
    return time.perf_counter() - start, result


def measure(name, dtype, pairs):
    function, args, theirs = PARTS[name](dtype)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compile_s = time.perf_counter() - start
    temporary = compiled.memory_analysis().temp_size_in_bytes / 2**20
    _, ours = seconds(lambda: compiled(*args))
    _, expected = seconds(theirs)
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    times = [(seconds(lambda: compiled(*args))[0], seconds(theirs)[0])]
    for _ in range(pairs - 1):
        times.append((seconds(lambda: compiled(*args))[0], seconds(theirs)[0]))
    here, there = (statistics.median(column) for column in zip(*times))
    print(
        f"{name:8} {dtype:9} {compile_s:9.1f} {here:9.2f} {there:9.2f} "
        f"{here / there:7.2f} {error:9.1e} {temporary:9.0f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", default="float32", help="ours; theirs is float32")
    args = parser.parse_args()
    print(
        "part     dtype      compile s    here s   there s   ratio     error   temp MiB"
    )
    with torch.inference_mode():
        for name in args.parts:
            measure(name, args.dtype, args.pairs)


if __name__ == "__main__":
    main()
