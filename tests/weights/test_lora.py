"""Low-rank adaptations: what is read, merged, trained and saved; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.clip import CLIPText
from diffusion_jax.models.text import ProjectedText
from diffusion_jax.models.unet import UNet
from diffusion_jax.types import Conditioning
from diffusion_jax.weights import convert, lora, lora_files, lora_names

RANK = 3


@pytest.fixture(scope="module")
def like():
    """A U-Net and two text towers, as shapes."""
    unet = UNet(channels=(8, 16), attention=("transformer", "none"), norm_groups=4)
    tower = CLIPText(vocab_size=9, width=8, num_layers=2, num_heads=2, mlp_width=16)
    tokens = jnp.zeros((1, 7), jnp.int32)
    inputs = {
        unet: (
            jnp.zeros((1, 8, 8, 4)),
            jnp.zeros(1),
            Conditioning(tokens=jnp.zeros((1, 7, 8))),
        ),
        tower: (tokens,),
        ProjectedText(tower, 12): (tokens,),
    }
    names = ("unet", "text_encoder", "text_encoder_2")
    key = jax.random.key(0)
    shapes = [
        jax.eval_shape(m.init, key, *args)["params"] for m, args in inputs.items()
    ]
    return dict(zip(names, shapes)) | {"latent_scale": 0.18215}


@pytest.fixture(scope="module")
def params(like):
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.standard_normal(np.shape(leaf)), jnp.float32)

    return jax.tree.map(draw, like)


def random_lora(like, pattern=".", seed=1):
    rng = np.random.default_rng(seed)
    made = lora.init(jax.random.key(0), like, rank=RANK, pattern=pattern)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), made)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, tol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tol, tol), a, b)


@pytest.mark.parametrize("dialect", sorted(lora.DIALECTS))
def test_reading_what_was_saved_gives_the_same_bits(like, dialect, tmp_path):
    made = random_lora(like)
    assert len(made["unet"]) > 50 and set(made) == {*like} - {"latent_scale"}
    tensors = lora.save(made, dialect)
    same(lora.read(tensors, like), made)
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())
    lora_files.write(tmp_path / "lora.safetensors", made, dialect=dialect)
    same(lora_files.load(tmp_path / "lora.safetensors", like), made)


def test_a_change_in_torch_is_the_product_of_its_factors(like):
    """Up (O, r, 1, 1) after down (r, I, h, w), and times alpha / r."""
    conv, linear = "conv_in", "time_embedding.linear_1"
    rng = np.random.default_rng(0)
    tensors, expected = {}, {}
    for name, size in ((conv, (3, 3)), (linear, ())):
        (path,) = [
            p for c, p in lora_names.kernels(like) if p == name.replace(".", "/")
        ]
        kernel = lora_names.kernels(like)["unet", path]
        inputs, outputs = kernel.shape[-2:]
        down = rng.standard_normal((RANK, inputs, *size)).astype(np.float32)
        up = rng.standard_normal((outputs, RANK)).astype(np.float32)
        stem = "lora_unet_" + name.replace(".", "_")
        ones = (1,) * len(size)
        tensors[f"{stem}.lora_down.weight"] = down
        tensors[f"{stem}.lora_up.weight"] = up.reshape(*up.shape, *ones)
        tensors[f"{stem}.alpha"] = np.float32(6)
        expected[f"{name}.weight"] = np.einsum("or,ri...->oi...", 6 / RANK * up, down)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), like["unet"])
    merged = lora.merge({"unet": zeros}, [lora.read(tensors, like)], [0.5])
    saved = convert.save_torch(merged["unet"])
    for key, tensor in saved.items():
        np.testing.assert_allclose(
            tensor, 0.5 * expected.get(key, 0 * tensor), 1e-4, 1e-5
        )


def test_a_linear_layer_may_be_stored_as_a_convolution_and_the_reverse(like):
    made = random_lora(like, "proj_in|attn1/to_q")
    tensors = lora.save(made)
    swapped = {
        key: tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor[:, :, None, None]
        for key, tensor in tensors.items()
    }
    assert {t.ndim for t in tensors.values()} == {2, 4}
    same(lora.read(swapped, like), made)


def test_half_precision_files_are_read_as_float32(like):
    made = random_lora(like, "attn1")
    half = {k: v.astype(jnp.bfloat16) for k, v in lora.save(made).items()}
    read = lora.read(half, like)
    same(read, jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16).astype("f"), made))
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {np.dtype("float32")}


@pytest.mark.parametrize("rank", [RANK, 6])
def test_alpha_is_that_of_tensors_then_metadata_then_the_rank(like, rank):
    path = "down_blocks.0/attentions.0/transformer_blocks.0/attn1/to_q"
    made = lora.init(jax.random.key(0), like, rank=rank, pattern=f"^unet/{path}$")
    made["unet"][path]["up"] = np.ones((rank, 8), np.float32)
    tensors = lora.save(made, "peft")

    def scale(extra=(), **metadata):
        metadata = {f"unet.{key}": value for key, value in metadata.items()}
        read = lora.read(tensors | dict(extra), like, metadata=metadata)
        return read["unet"][path]["up"].max()

    assert scale() == 1
    assert scale(lora_alpha=12) == pytest.approx(12 / rank)
    assert scale(lora_alpha=12, use_rslora=True) == pytest.approx(12 / rank**0.5)
    patterns = {"to_k": 1, "attn1.to_q": 9, "to_q": 3}
    assert scale(lora_alpha=12, alpha_pattern=patterns) == pytest.approx(9 / rank)
    assert scale(alpha_pattern={"o_q": 9}) == 1  # whole names only
    name = path.replace("/", ".")
    stored = {f"unet.{name}.alpha": np.float32(6)}
    assert scale(stored, lora_alpha=12) == pytest.approx(6 / rank)
    read = lora.read(tensors, like, metadata={"lora_alpha": 12, "text_encoder.r": 1})
    assert read["unet"][path]["up"].max() == pytest.approx(12 / rank)


def test_underscores_are_looked_up_and_never_interpreted(like):
    """Every layer has a spelling of its own in every dialect."""
    known = lora_names.spellings(like)
    for dialect in lora.DIALECTS.values():
        stems = [
            dialect(component, lora_names.published(component, path), dict(like))[0]
            for component, path in lora_names.kernels(like)
        ]
        assert len(set(stems)) == len(stems)
        for stem, place in zip(stems, lora_names.kernels(like)):
            assert known[stem] == [place]


PUBLISHED = {
    "sd1": (
        UNet(channels=(8,) * 4, norm_groups=4, num_heads=2),
        ["1_1", "2_1", "4_1", "5_1", "7_1", "8_1"],
        ["3_1", "4_1", "5_1", "6_1", "7_1", "8_1", "9_1", "10_1", "11_1"],
        ["input_blocks_3_0_op", "input_blocks_6_0_op", "input_blocks_9_0_op"],
        ["output_blocks_2_1_conv", "output_blocks_5_2_conv", "output_blocks_8_2_conv"],
    ),
    "xl": (
        UNet(
            channels=(8,) * 3,
            attention=("none", "transformer", "transformer"),
            norm_groups=4,
            num_heads=2,
        ),
        ["4_1", "5_1", "7_1", "8_1"],
        ["0_1", "1_1", "2_1", "3_1", "4_1", "5_1"],
        ["input_blocks_3_0_op", "input_blocks_6_0_op"],
        ["output_blocks_2_2_conv", "output_blocks_5_2_conv"],
    ),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_blocks_are_numbered_as_in_published_files(kind):
    """The numbers that latent-diffusion gives the blocks of SD 1 and of XL."""
    unet, inputs, outputs, down, up = PUBLISHED[kind]
    cond = Conditioning(tokens=jnp.zeros((1, 7, 8)))
    args = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), cond
    shapes = jax.eval_shape(unet.init, jax.random.key(0), *args)["params"]
    known = lora_names.spellings({"unet": shapes})
    names = {n.removeprefix("lora_unet_") for n in known if n.startswith("lora_unet_")}

    def attending(way):
        end = "_transformer_blocks_0_attn1_to_k"
        starts = [n.removesuffix(end) for n in names if n.endswith(end)]
        return {n.removeprefix(way) for n in starts if n.startswith(way)}

    assert attending("input_blocks_") == set(inputs)
    assert attending("output_blocks_") == set(outputs)
    assert attending("middle_block_") == {"1"}
    assert {n for n in names if n.endswith("_op")} == set(down)
    convs = {n for n in names if n.startswith("output_") and n.endswith("_conv")}
    assert convs == set(up)
    ends = {"time_embed_0", "time_embed_2", "input_blocks_0_0", "out_2"}
    assert ends <= names
    layers = {"in_layers_2", "emb_layers_1", "out_layers_3"}
    assert {f"middle_block_2_{layer}" for layer in layers} <= names
    assert "output_blocks_0_0_skip_connection" in names
    assert all(len(places) == 1 for places in known.values())


def test_names_that_two_text_encoders_share_must_say_which(like):
    stem = "text_model.encoder.layers.0.mlp.fc1"
    tensors = {
        f"{stem}.lora_A.weight": np.ones((2, 8), np.float32),
        f"{stem}.lora_B.weight": np.ones((16, 2), np.float32),
    }
    with pytest.raises(ValueError, match=r"any of \['text_encoder/encoder"):
        lora.read(tensors, like)
    one = {name: like[name] for name in ("unet", "text_encoder")}
    assert set(lora.read(tensors, one)) == {"text_encoder"}
    named = {f"text_encoder_2.{key}": tensor for key, tensor in tensors.items()}
    assert set(lora.read(named, like)) == {"text_encoder_2"}


STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (f"{STEM}.dora_scale", "DoRA is not"),
        ("unet.conv_in.lora_magnitude_vector", "DoRA is not"),
        (f"{STEM}.hada_w1_a", "LoHa is not"),
        (f"{STEM}.lokr_w1", "LoKr is not"),
        (f"{STEM}.oft_blocks", "OFT is not"),
        (f"{STEM}.lora_mid.weight", "Tucker decomposition is not"),
        (f"{STEM}.diff", r"full difference \(.diff\) is not"),
        (f"{STEM}.diff_b", r"full difference \(.diff\) is not"),
        ("unet.conv_in.lora_B.bias", "adapted bias is not"),
        ("text_encoder.token_embedding.lora_embedding_A", "adapted embedding is not"),
        (f"{STEM.replace('to_q', 'to_x')}.lora_up.weight", "of no layer of the model"),
        ("lora_te3_text_model.lora_up.weight", "of no layer of the model"),
        ("unet.conv_in.weight", "of no layer of the model"),
        (f"{STEM.replace('to_q', 'to_k')}.lora_up.weight", "without their partner"),
        (f"{STEM.replace('to_q', 'to_k')}.alpha", "without their partner"),
    ],
)
def test_what_would_not_be_used_is_an_error_that_names_it(like, extra, message):
    tensors = lora.save(random_lora(like, "attn1/to_q"), "kohya")
    assert f"{STEM}.lora_up.weight" in tensors
    with pytest.raises(ValueError, match=message) as error:
        lora.read(tensors | {extra: np.ones((2, 2), np.float32)}, like)
    assert extra in str(error.value)
    assert "\n" not in str(error.value)


def test_other_wrong_files_are_errors(like, tmp_path):
    tensors = lora.save(random_lora(like, "attn1/to_q"), "kohya")
    up = f"{STEM}.lora_up.weight"
    for wrong in (np.ones((8, 2)), np.ones((9, RANK)), np.ones((8, RANK, 3, 3))):
        with pytest.raises(ValueError, match=rf"factors .* of {STEM}"):
            lora.read(tensors | {up: wrong.astype(np.float32)}, like)
    twice = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B"
    with pytest.raises(ValueError, match="are the same"):
        lora.read(tensors | {f"{twice}.weight": tensors[up]}, like)
    with pytest.raises(ValueError, match="no tensors of a lora"):
        lora.read({}, like)
    with pytest.raises(ValueError, match="unet.use_dora=True"):
        lora.read(tensors, like, metadata={"unet.use_dora": True})
    many = {f"lora_unet_{i}.lora_up.weight": np.ones((2, 2)) for i in range(30)}
    with pytest.raises(ValueError, match="and 18 more"):
        lora.read(many, like)
    with pytest.raises(ValueError, match="unknown dialect 'a1111'; one of"):
        lora.save({}, "a1111")
    with pytest.raises(ValueError, match="do not name 'vae'"):
        lora.save(
            {"vae": {"conv_in": {"down": np.ones((2, 1)), "up": np.ones((1, 2))}}},
            "kohya",
        )
    with pytest.raises(FileNotFoundError, match="no lora at"):
        lora_files.load(tmp_path / "none.safetensors", like)
    with pytest.raises(FileNotFoundError, match="none of adapter_model"):
        lora_files.load(tmp_path, like)
    page = tmp_path / "page.safetensors"
    page.write_text("<!doctype html>" * 99)
    other = tmp_path / "other.safetensors"
    made = random_lora(like, "attn1/to_q")
    lora_files.write(other, {"unet": {"elsewhere": made["unet"].popitem()[1]}})
    for path, reason in ((page, "web page"), (other, "of no layer")):
        with pytest.raises(ValueError, match=reason) as error:
            lora_files.load(path, like)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_kohya_numbers_the_text_encoders_of_a_model_that_has_two(like):
    made = random_lora(like, "text.*fc1")

    def prefixes(made):
        return {key.split("_text_model")[0] for key in lora.save(made, "kohya")}

    assert prefixes(made) == {"lora_te1", "lora_te2"}
    assert prefixes({"text_encoder": made["text_encoder"]}) == {"lora_te"}


def test_scale_zero_changes_no_bit_and_what_is_not_adapted_is_shared(like, params):
    made = random_lora(like, "attn2|fc1")
    merged = lora.merge(params, [made], [0.0])
    same(merged, params)
    assert merged["unet"]["conv_in"]["kernel"] is params["unet"]["conv_in"]["kernel"]
    assert merged["latent_scale"] is params["latent_scale"]
    assert lora.merge(params, [], []) == params


def test_merging_is_linear_and_in_any_order(like, params):
    a, b = random_lora(like, "attn", 1), random_lora(like, "attn1|fc1", 2)
    both = lora.merge(params, [a, b], [0.5, -2.0])
    close(both, lora.merge(params, [b, a], [-2.0, 0.5]))
    close(both, lora.merge(lora.merge(params, [a], [0.5]), [b], [-2.0]), 1e-4)
    close(lora.merge(both, [a, b], [-0.5, 2.0]), params, 1e-4)
    doubled = jax.tree.map(lambda x: x * np.float32(2**0.5), a)
    close(lora.merge(params, [doubled], [1.0]), lora.merge(params, [a], [2.0]), 1e-4)


def test_a_scale_may_be_given_per_component(like, params):
    made = random_lora(like, "attn|fc1")
    merged = lora.merge(params, [made], [{"unet": 0.5, "text_encoder": -1.0}])
    parts = {name: {name: made[name]} for name in made}
    one = lora.merge(params, [parts["unet"], parts["text_encoder"]], [0.5, -1.0])
    same(merged, one)
    same(merged["text_encoder_2"], params["text_encoder_2"])


def test_a_merged_network_is_its_layer_and_the_path_beside_it(like, params):
    """What the name says: x W + s (x down) up, without the product being formed."""
    made = random_lora(like, "time_embedding/linear_1")
    factors = made["unet"]["time_embedding/linear_1"]
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    layer = params["unet"]["time_embedding"]["linear_1"]["kernel"]
    merged = lora.merge(params, [made], [0.3])["unet"]["time_embedding"]["linear_1"]
    beside = x @ layer + 0.3 * (x @ factors["down"]) @ factors["up"]
    np.testing.assert_allclose(x @ merged["kernel"], beside, 1e-4, 1e-4)


def test_arithmetic_is_float32_and_dtypes_are_kept(like, params):
    made = random_lora(like, "attn1")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    merged = lora.merge(half, [made, made], [0.3, 0.3])
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    exact = lora.merge(wide, [made, made], [0.3, 0.3])
    same(merged, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact))


def test_scales_are_traced_and_factors_have_gradients(like, params):
    made = [random_lora(like, "attn1", 1), random_lora(like, "attn1/to_q", 2)]
    traces = []

    @jax.jit
    def norm(params, loras, scales):
        traces.append(1)
        merged = lora.merge(params, loras, scales)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(merged["unet"]))

    values = [norm(params, made, [s, {"unet": 2 * s}]) for s in (0.0, 0.5, 1.0)]
    assert len(traces) == 1
    assert len(set(map(float, values))) == 3
    grads = jax.jit(jax.grad(norm, argnums=1))(params, made, [1.0, {"unet": 1.0}])
    place = "mid_block/attentions.0/transformer_blocks.0/attn1/to_v"
    kernel = lora.merge(params, made[:1], [1.0])["unet"]
    for part in place.split("/"):
        kernel = kernel[part]
    factors = made[0]["unet"][place]
    expected = {
        "down": 2 * kernel["kernel"] @ factors["up"].T,
        "up": factors["down"].T @ (2 * kernel["kernel"]),
    }
    close(grads[0]["unet"][place], expected, 1e-3)


def test_training_starts_from_the_model_that_is_adapted(like, params):
    made = lora.init(jax.random.key(0), like, rank=4)
    assert set(made) == {"unet"}
    leaves = {path.rsplit("/")[-1] for path in made["unet"]}
    assert leaves == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all("/attn1/" in path or "/attn2/" in path for path in made["unet"])
    same(lora.merge(params, [made], [1.0]), params)
    # Variance 1 / inputs, whatever the layer; another key, other numbers.
    every = lora.init(jax.random.key(0), like, rank=64, pattern="^unet")["unet"]
    for path, factors in every.items():
        variance = np.var(factors["down"]) * np.prod(factors["down"].shape[:-1])
        assert abs(variance - 1) < 0.3, path
        assert not np.any(factors["up"])
    other = lora.init(jax.random.key(1), like, rank=4)["unet"]
    same_place = [np.allclose(made["unet"][p]["down"], other[p]["down"]) for p in other]
    assert not any(same_place)
    first, second = list(made["unet"].values())[:2]
    assert not np.allclose(first["down"], second["down"])


def test_merging_and_starting_refuse_what_does_not_fit(like, params):
    made = random_lora(like, "attn1/to_q")
    with pytest.raises(ValueError, match="1 loras and 2 scales"):
        lora.merge(params, [made], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"loras of \['unet'\]; the model has"):
        lora.merge({"vae": {}}, [made], [1.0])
    with pytest.raises(ValueError, match=r"loras of \['u_net'\]"):
        lora.merge(params, [made], [{"u_net": 1.0}])
    with pytest.raises(ValueError, match="unet/nowhere; no such layer"):
        lora.merge(params, [{"unet": {"nowhere": {}}}], [1.0])
    wrong = {"down": np.ones((7, 2), np.float32), "up": np.ones((2, 8), np.float32)}
    with pytest.raises(ValueError, match=r"factors \(7, 2\) and \(2, 8\) for conv_in"):
        lora.merge(params, [{"unet": {"conv_in": wrong}}], [1.0])
    with pytest.raises(ValueError, match="rank 0"):
        lora.init(jax.random.key(0), like, rank=0)
    with pytest.raises(ValueError, match="no layer has a match of 'nowhere'"):
        lora.init(jax.random.key(0), like, rank=1, pattern="nowhere")


def test_a_scale_is_told_behind_a_colon(tmp_path):
    split = lora_files.split
    assert split("a/b.safetensors") == ("a/b.safetensors", 1.0)
    assert split("a/b.safetensors:0.5") == ("a/b.safetensors", 0.5)
    assert split("a:b.safetensors") == ("a:b.safetensors", 1.0)
    assert split("C:/b.safetensors:-2") == ("C:/b.safetensors", -2.0)
    file = tmp_path / "odd:2"
    file.touch()
    assert split(str(file)) == (str(file), 1.0)
