"""Contrastive training of CLIP (Radford et al., 2021, arXiv:2103.00020, figure 3).

The loss is that of the whole batch, wherever its parts are: every caption is a negative
of every image on all devices, and the gradient is exact. Micro-batches of the training
loop (`accumulate`) see only their own pairs; `num_parts` saves as much memory with all
of them, since of the towers only the embeddings are kept (arXiv:2101.06983).

With `sam_rho` every replica of `samples_per_replica` consecutive pairs reads them with
weights of its own, perturbed by the gradient of the loss among these pairs (DALL·E 2,
arXiv:2204.06125, appendix C; tasks/sharpness.py). A replica is a part of the batch, not
a device: the numbers do not depend on how many devices there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from diffusion_jax.models.clip import CLIP, MAX_LOG_SCALE, MAX_SCALE
from diffusion_jax.tasks import sharpness
from diffusion_jax.types import Batch, Key, Metrics, Params, Task

# A parameter and its largest value, for the optimizer to keep.
MAXIMA = {"logit_scale": MAX_LOG_SCALE}


class Pairs(NamedTuple):
    """What the towers say of pairs, row by row."""

    image: Float[Array, "B E"]  # of unit norm
    text: Float[Array, "B E"]
    scale: Float[Array, "B"]  # of the logits of this row
    false: Float[Array, "B E"] | None = None  # of a false caption for each


Read = Callable[[Params, Batch], Pairs]


@jax.custom_vjp
def logit_scale(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """exp, at most 100; beyond, only gradients that lead back are let through."""
    return jnp.minimum(jnp.exp(log_scale), MAX_SCALE)


def _forward(log_scale: Array) -> tuple[Array, Array]:
    return logit_scale(log_scale), log_scale


def _backward(log_scale: Array, gradient: Array) -> tuple[Array]:
    gradient = gradient * logit_scale(log_scale)
    is_blocked = (log_scale >= MAX_LOG_SCALE) & (gradient < 0)
    return (jnp.where(is_blocked, 0.0, gradient),)


logit_scale.defvjp(_forward, _backward)


def contrastive_loss(
    image: Float[Array, "B E"],
    text: Float[Array, "B E"],
    scale: Float[Array, ""] | Float[Array, "B"],
    false: Float[Array, "B E"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The symmetric cross-entropy over all pairs, and how often the pair wins.

    `image` and `text` have unit norm; row i of one belongs to row i of the other. The
    images choose among `false` captions too (arXiv:2210.01936, section 4).
    """
    similarity = jnp.matmul(image, text.T, precision="highest")
    rows = jnp.broadcast_to(scale, len(image))[:, None]
    logits, transposed = rows * similarity, rows * similarity.T
    if false is not None:
        others = jnp.matmul(image, false.T, precision="highest")
        logits = jnp.concatenate([logits, rows * others], axis=1)
    labels = jnp.arange(len(image))
    losses = optax.softmax_cross_entropy_with_integer_labels
    loss = (losses(logits, labels).mean() + losses(transposed, labels).mean()) / 2
    accuracy = (logits.argmax(axis=1) == labels).mean()
    return loss, accuracy


def clip(
    model: CLIP,
    *,
    image_size: int,
    context_length: int,
    num_parts: int = 1,
    sam_rho: float = 0.0,
    samples_per_replica: int = 64,
) -> Task:
    """Trains both towers on batches of `image` [-1, 1], `tokens`, maybe `false_tokens`.

    The towers read the batch in `num_parts` parts, one after another, and once more for
    the gradient. With `sam_rho` the metrics are those of the perturbed weights.
    """

    def init(key: Key) -> tuple[Params, Params]:
        image = jnp.zeros((1, image_size, image_size, 3))
        tokens = jnp.zeros((1, context_length), jnp.int32)
        return model.init(key, image, tokens)["params"], {}

    def read(params: Params, batch: Batch) -> Pairs:
        image, text = embed(model, params, batch["image"], batch["tokens"])
        scale = jnp.broadcast_to(logit_scale(params["logit_scale"]), len(image))
        if "false_tokens" not in batch:
            return Pairs(image, text, scale)
        tokens = batch["false_tokens"]
        false = model.apply({"params": params}, tokens, method="encode_text")
        return Pairs(image, text, scale, false)

    unit = samples_per_replica if sam_rho else 1
    reader = perturbed(read, sam_rho, unit) if sam_rho else read

    def loss(
        params: Params, frozen: Params, key: Key, batch: Batch
    ) -> tuple[Float[Array, ""], Metrics]:
        names = ("image", "tokens", "false_tokens")
        batch = {name: batch[name] for name in names if name in batch}
        size = len(batch["tokens"])
        check_batch(size, num_parts, sam_rho, samples_per_replica)
        pairs = in_parts(reader, params, batch, num_parts, unit)
        value, accuracy = contrastive_loss(*pairs)
        return value, {"accuracy": accuracy, "logit_scale": pairs.scale.mean()}

    return Task(init, loss)


def perturbed(read: Read, rho: float, samples_per_replica: int) -> Read:
    """As `read`, but every replica reads with weights that it has perturbed alone."""

    def read_one(params: Params, batch: Batch) -> Pairs:
        def local_loss(params: Params) -> Float[Array, ""]:
            return contrastive_loss(*read(params, batch))[0]

        return read(sharpness.ascend(local_loss, params, rho), batch)

    def read_all(params: Params, batch: Batch) -> Pairs:
        replicas = jax.tree.map(
            lambda x: x.reshape(-1, samples_per_replica, *x.shape[1:]), batch
        )
        pairs = jax.vmap(read_one, in_axes=(None, 0))(params, replicas)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs)

    return read_all


def in_parts(
    read: Read, params: Params, batch: Batch, num_parts: int, unit: int = 1
) -> Pairs:
    """As `read`, whose inner values are kept of one part of the batch at a time.

    `unit` consecutive pairs stay together. Units are dealt out to the parts in turn,
    so that each stays on its device when the batch is sharded.
    """
    if num_parts == 1:
        return read(params, batch)

    def deal(x: Array) -> Array:
        dealt = x.reshape(-1, num_parts, unit, *x.shape[1:]).swapaxes(0, 1)
        return dealt.reshape(num_parts, -1, *x.shape[1:])

    def collect(x: Array) -> Array:
        dealt = x.reshape(num_parts, -1, unit, *x.shape[2:]).swapaxes(0, 1)
        return dealt.reshape(-1, *x.shape[2:])

    read_part = jax.checkpoint(lambda part: read(params, part), prevent_cse=False)
    return jax.tree.map(collect, jax.lax.map(read_part, jax.tree.map(deal, batch)))


def check_batch(
    size: int,
    num_parts: int = 1,
    sam_rho: float = 0.0,
    samples_per_replica: int = 64,
) -> None:
    """Raises unless a batch divides into equal parts, with SAM of whole replicas."""
    for name, value, least in (
        ("num_parts", num_parts, 1),
        ("sam_rho", sam_rho, 0),
        ("samples_per_replica", samples_per_replica, 2),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; at least {least}")
    if size % num_parts:
        raise ValueError(f"{size} pairs do not divide into num_parts = {num_parts}")
    if sam_rho and (size // num_parts) % samples_per_replica:
        raise ValueError(
            f"{size // num_parts} pairs at once do not divide into replicas of "
            f"samples_per_replica = {samples_per_replica}"
        )


def embed(
    model: CLIP,
    params: Params,
    image: Float[Array, "B H W 3"],
    tokens: Int[Array, "B L"],
) -> tuple[Float[Array, "B E"], Float[Array, "B E"]]:
    """Unit-norm embeddings of images and of captions in the shared space."""
    variables = {"params": params}
    return (
        model.apply(variables, image, method="encode_image"),
        model.apply(variables, tokens, method="encode_text"),
    )
