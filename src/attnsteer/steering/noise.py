"""The noise level in the one measure that all schedulers share: log signal-to-noise ratio.

latents = a x_0 + b noise,   log SNR = log(a^2 / b^2)   in nats
"""

import math
from typing import Any

LIMIT = 20.0  # nats; stands for the noiseless and the signal-free end of a schedule


def log_snr_of_alpha(alpha_cumprod: float) -> float:
    """Variance preserving, a^2 = alpha_cumprod and b^2 = 1 - a^2; in [-20, 20]."""
    if not 0.0 <= alpha_cumprod <= 1.0:
        raise ValueError(f"alpha_cumprod must be in [0, 1], got {alpha_cumprod}")
    return _log_ratio(alpha_cumprod, 1.0 - alpha_cumprod)


def log_snr_of_flow(sigma: float) -> float:
    """Flow matching, a = 1 - sigma and b = sigma; in [-20, 20]."""
    if not 0.0 <= sigma <= 1.0:
        raise ValueError(f"sigma must be in [0, 1], got {sigma}")
    return _log_ratio((1.0 - sigma) ** 2, sigma**2)


def is_flow_matching(scheduler: Any) -> bool:
    """Whether a diffusers scheduler is one of flow matching."""
    config = scheduler.config
    flow = "FlowMatch" in type(scheduler).__name__ or config.get("use_flow_sigmas")
    return bool(flow or config.get("prediction_type") == "flow_prediction")


def log_snr_of(scheduler: Any, timestep: float) -> float:
    """Log-SNR of a diffusers scheduler's latents at one of its timesteps; in [-20, 20].

    Args:
        scheduler: Any scheduler with `alphas_cumprod`, or one of flow matching. Scaling of the denoiser's input does
            not change the ratio, so the EDM-style schedulers need nothing else.
        timestep: As handed to the denoiser, in [0, num_train_timesteps]; may be fractional.

    Raises:
        ValueError: if the scheduler does not tell its noise level, or the timestep is out of range.
    """
    config = scheduler.config
    total = int(config.get("num_train_timesteps", 0))
    if not 0.0 <= timestep <= total:
        raise ValueError(f"timestep must be in [0, {total}], got {timestep}")
    if is_flow_matching(scheduler):
        return log_snr_of_flow(timestep / total)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise ValueError(
            f"{type(scheduler).__name__} does not tell its noise level (no alphas_cumprod, no flow matching); "
            "use DDIM, Euler, DPM-Solver, UniPC or a flow-matching scheduler"
        )
    low = min(int(timestep), len(alphas) - 1)
    high = min(low + 1, len(alphas) - 1)
    share = min(timestep - low, 1.0)
    return log_snr_of_alpha((1 - share) * float(alphas[low]) + share * float(alphas[high]))


def _log_ratio(signal: float, noise: float) -> float:
    if signal <= 0.0:
        return -LIMIT
    if noise <= 0.0:
        return LIMIT
    return min(max(math.log(signal / noise), -LIMIT), LIMIT)
