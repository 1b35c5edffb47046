"""The command line beside diffusers: from the same noise, the same images."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from PIL import Image

from tests import entry_points
from tests.parity import published_dirs

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
PROMPT, NEGATIVE, STEPS, SCALE = "a red circle above a blue square", "cat", 10, 5.0
CASES = {
    "sd1": (published_dirs.write_sd1, "dpmpp_2m", "DPMSolverMultistepScheduler"),
    "sdxl": (published_dirs.write_sdxl, "euler", "EulerDiscreteScheduler"),
}


@pytest.mark.parametrize("family", CASES)
def test_images_from_the_same_noise_are_those_of_diffusers(family, tmp_path):
    write, sampler, name = CASES[family]
    theirs = write(tmp_path / family)
    scheduler = type(theirs.scheduler)  # as its file says it, defaults and all
    config = scheduler.from_pretrained(tmp_path / family, subfolder="scheduler").config
    theirs.scheduler = getattr(diffusers, name).from_config(config)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn((2, 4, 8, 12), generator=torch.Generator().manual_seed(0))
    factor = theirs.vae_scale_factor
    size = dict(height=8 * factor, width=12 * factor)
    wanted = theirs(
        prompt=[PROMPT] * 2,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        latents=noise.clone(),
        output_type="np",
        **size,
    ).images
    np.save(tmp_path / "noise.npy", noise.numpy())
    words = ["--weights", tmp_path / family, "--prompt", PROMPT, "--negative", NEGATIVE]
    words += ["--sampler", sampler, "--steps", STEPS, "--guidance", SCALE, "--batch", 2]
    words += [word for side, value in size.items() for word in (f"--{side}", value)]
    words += ["--latents", tmp_path / "noise.npy", "--array", tmp_path / "images.npy"]
    entry_points.sample(*words, "--out", tmp_path / "out")
    made = np.load(tmp_path / "images.npy") / 2 + 0.5
    assert wanted.std() > 0.05  # not grey
    assert np.abs(made - wanted).max() <= 1 / 255
    with Image.open(tmp_path / "out" / "00001-seed0.png") as image:
        difference = np.asarray(image) - np.rint(wanted[1] * 255)
    assert np.abs(difference).max() <= 1
