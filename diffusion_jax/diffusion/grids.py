"""Every grid by name: (schedule, steps) -> the steps + 1 times that a sampler visits.

The network is evaluated at all of them but the last, `end`: 0 is clean data; 1, on a
schedule of whole steps, is what Stable Diffusion was released with. Times are in the
schedule's own units, which for whole steps are one more than what the network hears.
A grid is computed when it is traced, so it is a constant of the compiled program.
"""

from __future__ import annotations

from diffusion_jax.diffusion.align_your_steps import align_your_steps
from diffusion_jax.diffusion.noise_grids import (
    beta,
    crash,
    exponential,
    karras,
    kl_optimal,
    laplace,
    polyexponential,
    uniform_logsnr,
    vp,
)
from diffusion_jax.diffusion.respaced_grids import distilled, respaced, thinned
from diffusion_jax.diffusion.shifted_grids import resolution_shifted, sd3, shifted
from diffusion_jax.diffusion.time_grids import (
    explicit,
    from_sigmas,
    leading,
    leading_open,
    linspace,
    linspace_open,
    quadratic,
    trailing,
)
from diffusion_jax.diffusion.visited_times import Grid

__all__ = ["GRIDS", "Grid", "align_your_steps", "beta", "crash", "distilled"]
__all__ += ["explicit", "exponential", "from_sigmas", "karras", "kl_optimal", "laplace"]
__all__ += ["leading", "leading_open", "linspace", "linspace_open", "polyexponential"]
__all__ += ["quadratic", "resolution_shifted", "respaced", "sd3", "shifted"]
__all__ += ["thinned", "trailing", "uniform_logsnr", "vp"]

GRIDS = {
    "leading": leading,
    "leading_open": leading_open,
    "trailing": trailing,
    "linspace": linspace,
    "linspace_open": linspace_open,
    "quadratic": quadratic,
    "explicit": explicit,
    "from_sigmas": from_sigmas,
    "respaced": respaced,
    "distilled": distilled,
    "thinned": thinned,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
    "uniform_logsnr": uniform_logsnr,
    "laplace": laplace,
    "kl_optimal": kl_optimal,
    "vp": vp,
    "crash": crash,
    "align_your_steps": align_your_steps,
    "shifted": shifted,
    "sd3": sd3,
    "resolution_shifted": resolution_shifted,
}
