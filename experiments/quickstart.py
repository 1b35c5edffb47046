"""A whole small Stable Diffusion, from nothing to a grid of samples, in one command.

    python -m experiments.quickstart

trains CLIP, the autoencoder and latent diffusion on the embedded captioned scenes
through configs/small, then measures them and draws what they make into runs/quickstart.
A second run goes on where the first stopped, or straight to sampling.
"""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs.small import shapes_clip, shapes_ldm, shapes_vae
from diffusion_jax import build, command, evaluate, previews, runs, train
from diffusion_jax.data import scene_captions
from diffusion_jax.evaluation import curves, grids, latent_space
from diffusion_jax.pipelines.stage import image_keys
from diffusion_jax.tasks import clip as clip_task

_OUT = flags.DEFINE_string("out", "runs/quickstart", "Where everything is kept.")
_VARIANT = flags.DEFINE_string("variant", "", "'runlocal': a minute, to see it work.")
CONFIGS = {"clip": shapes_clip, "vae": shapes_vae, "ldm": shapes_ldm}


def train_all(out: pathlib.Path, seconds: dict[str, float]) -> dict[str, runs.Run]:
    """The three trainings in turn; adds what each took to `seconds`."""
    trained = {}
    for name, module in CONFIGS.items():
        config = module.get_config(_VARIANT.value)
        if name == "ldm":
            config.towers = dict(clip=str(out / "clip"), vae=str(out / "vae"))
        start = time.monotonic()
        trained[name] = train.train(config, out / name)
        seconds[name] = round(seconds.get(name, 0) + time.monotonic() - start, 1)
    return trained


def draw_reconstructions(run: runs.Run, out: pathlib.Path) -> None:
    batch, _ = previews.first_examples(run.config, run.tokenizer, "test", 8)
    model = build.autoencoder(run.config)
    output = model.apply({"params": run.params}, batch["image"])
    rows = {"original": batch["image"], "reconstruction": jnp.clip(output, -1, 1)}
    grids.save_png(grids.labelled_rows(rows), out / "reconstructions.png", metadata={})


def draw_samples(made: dict[str, evaluate.Samples], out: pathlib.Path) -> None:
    """Half of the grid from held-in captions, half from held-out combinations."""
    half = 12
    images = np.concatenate([part.images[:half] for part in made.values()])
    texts = [text for part in made.values() for text in part.captions[:half]]
    verdicts = [v for part in made.values() for v in part.accuracy.verdicts[:half]]
    grid = grids.captioned_grid(images, texts, columns=6, correct=verdicts)
    grids.save_png(grid, out / "samples.png", metadata={"prompts": json.dumps(texts)})


def draw_trajectory(run: runs.Run, out: pathlib.Path) -> None:
    """What each step of one sampling predicts as the clean image."""
    pipeline = build.stable_diffusion(run.config, run.tokenizer)
    params = {**run.frozen, "unet": run.params["unet"]}
    tokens, null = run.tokenizer(run.config.sampling.prompts[:1]), run.tokenizer([""])

    @jax.jit
    def frames(params, tokens, null):
        keys = image_keys(jax.random.key(0), jnp.arange(1))
        _, trace = pipeline.latents(params, keys, tokens, null)
        return pipeline.decode(params, trace[:, 0])

    shown = np.asarray(frames(params, tokens, null))
    chosen = np.unique(np.linspace(0, len(shown) - 1, 10).round().astype(int))
    strip = grids.trajectory_strip(shown[chosen], [f"step {i + 1}" for i in chosen])
    prompt = run.config.sampling.prompts[0]
    grids.save_png(strip, out / "trajectory.png", metadata={"prompt": prompt})


def draw_latent_space(run: runs.Run, out: pathlib.Path) -> None:
    """Captions and images of single objects, coloured by the object's colour."""
    batch, texts = previews.first_examples(run.config, run.tokenizer, "validation", 512)
    model = build.clip_model(run.config, run.tokenizer)
    image, text = clip_task.embed(model, run.params, batch["image"], batch["tokens"])
    claims = [scene_captions.parse(caption) for caption in texts]
    single = [i for i, claim in enumerate(claims) if len(claim.things) == 1]
    view = latent_space.joint_view(np.asarray(image)[single], np.asarray(text)[single])
    latent_space.plot_latent_space(
        view,
        [texts[i] for i in single],
        [claims[i].things[0].colour for i in single],
        out / "latent_space.png",
    )


def main(_: list[str]) -> None:
    command.enable_compilation_cache()
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.json"
    seconds = json.loads(file.read_text())["seconds"] if file.exists() else {}
    trained = train_all(out, seconds)
    start = time.monotonic()
    result = evaluate.evaluate_clip(trained["clip"])
    result |= evaluate.evaluate_autoencoder(trained["vae"])
    splits = {"held_in": "validation", "held_out": "test"}
    made = {
        name: evaluate.sample_split(trained["ldm"], split)
        for name, split in splits.items()
    }
    result |= {f"accuracy_{name}": made[name].accuracy.fraction for name in made}
    draw_samples(made, out)
    draw_reconstructions(trained["vae"], out)
    draw_trajectory(trained["ldm"], out)
    draw_latent_space(trained["clip"], out)
    tables = {name: out / name / "metrics.csv" for name in CONFIGS}
    curves.plot_curves(tables, out / "curves.png")
    seconds["evaluation"] = round(time.monotonic() - start, 1)
    result = {name: round(value, 4) for name, value in result.items()}
    result["retrieval"] = result["retrieval_held_in"]
    file.write_text(json.dumps(result | {"seconds": seconds}, indent=2) + "\n")
    print(f"look at {out / 'samples.png'}")
    print(json.dumps(result | {"seconds": seconds}))


if __name__ == "__main__":
    command.run(main)
